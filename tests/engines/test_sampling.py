from collections import Counter

import pytest

from humpback_ray.engines import sampling
from humpback_ray.engines.base import Request
from humpback_ray.engines.sampling import Dice, next_tokens


def drawn(requests: list[Request], probabilities: list[list[float]]) -> list[int]:
    import torch

    return next_tokens(torch.tensor(probabilities).log(), [Dice(request) for request in requests])


def test_tokens_are_drawn_in_proportion_to_their_probability_within_the_nucleus() -> None:
    rows = [Request("", temperature=1, top_p=0.79, seed=seed) for seed in range(2000)]
    counts = Counter(drawn(rows, [[0.1, 0.5, 0.1, 0.3]] * 2000))
    assert set(counts) == {1, 3}  # 0.5 + 0.3 reach 0.79
    assert counts[1] / 2000 == pytest.approx(0.5 / 0.8, abs=0.04)


def test_the_token_that_crosses_the_nucleus_is_part_of_it_and_there_is_always_one() -> None:
    rows = [Request("", temperature=1, top_p=0.6, seed=seed) for seed in range(200)]
    assert set(drawn(rows, [[0.5, 0.4, 0.1]] * 200)) == {0, 1}
    assert set(drawn([Request("", temperature=1, top_p=1e-9, seed=s) for s in range(50)], [[0.4, 0.6]] * 50)) == {1}


def test_a_low_temperature_sharpens() -> None:
    rows = [Request("", temperature=0.1, seed=seed) for seed in range(300)]
    assert Counter(drawn(rows, [[0.4, 0.6]] * 300))[1] > 280


def test_greedy_rows_take_the_likeliest_token_beside_sampled_rows() -> None:
    rows = [Request("") if i % 2 else Request("", temperature=1, seed=i) for i in range(200)]
    tokens = drawn(rows, [[0.3, 0.4, 0.3]] * 200)
    assert set(tokens[1::2]) == {1}
    assert set(tokens[::2]) == {0, 1, 2}


def test_a_nucleus_with_more_tokens_than_are_sorted_first_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Request("", temperature=1, top_p=0.9, seed=seed) for seed in range(300)]
    probabilities = [[0.05, 0.3, 0.16, 0.1, 0.25, 0.14]] * 300
    expected = drawn(rows, probabilities)
    monkeypatch.setattr(sampling, "NUCLEUS_TOKENS", 2)
    assert drawn(rows, probabilities) == expected
    assert len(set(expected)) == 5  # all but the least likely


def test_a_rows_tokens_do_not_depend_on_the_other_rows() -> None:
    row, others = Request("", temperature=1, seed=5), [Request("", temperature=1, seed=s) for s in range(3)]
    flat = [[0.25] * 4]
    assert drawn([row], flat) == drawn([*others, row], flat * 4)[3:]
