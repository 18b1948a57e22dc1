from collections import Counter

import pytest

from humpback_ray.engines.base import Request
from humpback_ray.engines.sampling import RowLimits, RowSampler


def drawn(requests: list[Request], probabilities: list[list[float]]) -> list[int]:
    import torch

    return RowSampler(requests, torch.device("cpu"))(None, torch.tensor(probabilities).log()).argmax(-1).tolist()


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


def test_greedy_rows_pass_unchanged_beside_sampled_ones() -> None:
    import torch

    scores = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    out = RowSampler([Request(""), Request("", temperature=1)], torch.device("cpu"))(None, scores)
    assert out[0].tolist() == scores[0].tolist()
    assert torch.isinf(out[1]).sum() == 2
    assert scores[1].tolist() == [0.0, 1.0, 2.0]


def test_a_row_draws_the_same_whoever_sits_beside_it() -> None:
    row, others = Request("", temperature=1, seed=5), [Request("", temperature=1, seed=s) for s in range(3)]
    flat = [[0.25] * 4]
    assert drawn([row], flat) == drawn([*others, row], flat * 4)[3:]


def test_a_row_ends_at_its_own_limit() -> None:
    import torch

    limits = RowLimits([Request("", max_new_tokens=1), Request("", max_new_tokens=3)], 10, torch.device("cpu"))
    assert limits(torch.zeros(2, 11), None).tolist() == [True, False]
    assert limits(torch.zeros(2, 13), None).tolist() == [True, True]
