import math
from random import Random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from humpback_ray.curate.scorers import Choice, ScorerConfig

SCORES = st.dictionaries(st.text(max_size=3), st.none() | st.sampled_from([-1.0, 0.0, 0.25, 2.0]), max_size=30)


def choice(scores: dict[str, float | None], share: float) -> Choice:
    table = pa.table({"id": pa.array(scores, pa.string()), "score": pa.array(scores.values(), pa.float64())})
    return Choice(table, share)


@given(SCORES, st.sampled_from([0.1, 0.5, 0.9]), st.randoms())
def test_the_best_share_and_all_failures_are_passed_on_whatever_the_order_and_the_cut(
    scores: dict[str, float | None], share: float, rng: Random
) -> None:
    found = dict(zip(scores, choice(scores, share).look_up(list(scores)), strict=True))
    shuffled = list(scores.items())
    rng.shuffle(shuffled)
    again = choice(dict(shuffled), share)
    for row_id, (passed, pre_score) in found.items():
        assert again.look_up([row_id]) == [(passed, pre_score)], "one row at a time"
        assert pre_score == scores[row_id]
    rated = {row_id: score for row_id, score in scores.items() if score is not None}
    assert all(found[row_id][0] for row_id in scores.keys() - rated.keys())
    best = sorted(rated, key=lambda row_id: (-rated[row_id], row_id))[: math.ceil(share * len(rated))]
    assert {row_id for row_id in rated if found[row_id][0]} == set(best)


def test_a_candidate_without_a_cheap_score_is_refused_with_its_id() -> None:
    with pytest.raises(ValueError, match="1 of 2 candidates have no cheap score, first: z"):
        choice({"a": 1.0}, 0.5).look_up(["a", "z"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "chained", "share": 1}, "less than 1"),
        ({"kind": "chained", "share": 0}, "greater than 0"),
        ({"kind": "chained", "first": {"kind": "chained"}}, "chained"),
    ],
)
def test_a_chain_that_passes_all_or_nothing_or_a_chain_is_refused(values: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(ScorerConfig).validate_python(values)
