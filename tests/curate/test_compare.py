"""Agreement by textbook examples, and a comparison through real stages: drawn by ids, resumable, failures counted."""

import math
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from humpback_ray.curate.compare import (
    CompareRecipe,
    Comparison,
    area_under_curve,
    compare,
    make_sample,
    ranks,
    spearman,
)
from humpback_ray.curate.rounds import make_scores
from humpback_ray.curate.scorers import Likelihood, Rubric, RubricExpected
from humpback_ray.operate.verify import verify
from humpback_ray.placement import TaskPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.sample import selfcheck
from humpback_ray.stages.manifest import read_manifest
from tests.curate.test_rounds import EMPTY, ROWS, Made, rows_of

VALUES = st.lists(st.sampled_from([1.0, 2.0, 2.5, 4.0, 5.0]), min_size=2, max_size=30)


def test_spearman_of_a_worked_example() -> None:
    """IQ and hours of television of ten people: ranks without ties; textbooks give -29/165."""
    iq = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110]
    hours = [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]
    assert spearman(iq, hours) == pytest.approx(-29 / 165)


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    assert ranks([5.0, 1.0, 5.0, 2.0]) == [3.5, 1, 3.5, 2]
    assert spearman([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(3 / math.sqrt(10))


@given(VALUES, st.randoms())
def test_spearman_depends_only_on_order_and_is_none_for_a_single_value(values: list[float], rng: Random) -> None:
    other = [rng.random() for _ in values]
    found = spearman(values, other)
    if len(set(values)) == 1 or len(set(other)) == 1:
        assert found is None
        return
    assert found is not None
    assert spearman([math.exp(value) for value in values], other) == pytest.approx(found)
    assert spearman([-value for value in values], other) == pytest.approx(-found)
    assert spearman(values, values) == pytest.approx(1)


@given(st.lists(st.tuples(st.none() | st.sampled_from([1.0, 2.0, 3.0]), st.booleans()), max_size=20))
def test_the_area_under_the_curve_is_that_of_the_self_check(rows: list[tuple[float | None, bool]]) -> None:
    good, others = ([score for score, is_good in rows if is_good == kind] for kind in (True, False))
    lowest = [-math.inf if score is None else score for score, _ in rows]
    found = area_under_curve(lowest, [is_good for _, is_good in rows])
    if good and others:
        assert found == pytest.approx(selfcheck.area_under_curve(good, others))
    else:
        assert found is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scorers": {"rubric": Rubric()}}, "at least 2"),
        ({"scorers": {"a/b": Rubric(), "c": Rubric()}}, "'a/b' names a directory"),
        ({"size": 1}, "greater than or equal to 2"),
        ({"keep_share": 0}, "greater than 0"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused(values: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CompareRecipe(**values)


@pytest.fixture(scope="module")
def made(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, Comparison]:
    """Three scorers on 20 of 60 candidates, in a separate root; the rubric has too little room."""
    made = Made(tmp_path_factory.mktemp("compare"))
    sample = make_sample(CompareRecipe(size=20), made.candidates, made.place("compare/sample"), TaskPlacement(cpus=0.5))
    scorers = {
        "rubric": Rubric(samples=2, max_new_tokens=5), "expected": RubricExpected(), "ifd": Likelihood(layout="raw")
    }  # fmt: skip
    found = {}
    for name, scorer in scorers.items():
        config = made.config(7, Rubric(), max_failed_share=1.0).scored_by(scorer)
        found[name] = make_scores(config, ChatRecipe(), sample, made.model, made.place(f"compare/round-1/{name}"))
    return made, compare(1, found, 0.5, good={"c10", "c20", "c30", "c40"})


@pytest.mark.ray
def test_the_sample_depends_only_on_ids_and_every_candidate_has_a_fate(
    made: tuple[Made, Comparison], tmp_path: Path
) -> None:
    sample = read_manifest(made[0].place("compare/sample").uri)
    assert sample
    rows = rows_of(sample)
    assert (len(rows), sample.kept, sample.drops) == (ROWS, 20, {"not_in_sample": ROWS - 20})
    assert all(row["response"] == "" for row in rows.values() if row["drop_reason"])
    drawn = {row_id for row_id, row in rows.items() if not row["drop_reason"]}
    larger = make_sample(CompareRecipe(size=30), made[0].candidates, made[0].place("larger"), TaskPlacement(cpus=0.5))
    assert drawn < {row_id for row_id, row in rows_of(larger).items() if not row["drop_reason"]}


@pytest.mark.ray
def test_failures_and_costs_are_those_of_the_rows(made: tuple[Made, Comparison]) -> None:
    root, comparison = made
    for one in comparison.scorers:
        manifest = read_manifest(root.place(f"compare/round-1/{one.name}").uri)
        assert manifest
        rows = list(rows_of(manifest).values())
        assert one.pairs == len(rows) == 20
        assert one.rated == sum(row["score"] is not None for row in rows) == manifest.kept
        assert one.failed_first == sum(f is not None for row in rows for f in row["first_failures"])
        assert one.failed_last == sum(s is None for row in rows for s in row["samples"])
        assert one.prompt_tokens + one.completion_tokens == manifest.tokens
        assert one.actor_s == pytest.approx(manifest.work_s)
        assert one.per_1000(one.prompt_tokens) == 50 * one.prompt_tokens
    rubric, expected, ifd = comparison.scorers
    assert (rubric.replies, expected.replies) == (40, 20)
    assert rubric.failed_first > rubric.failed_last > 0
    assert rubric.completion_tokens > 0 == expected.completion_tokens
    assert ifd.pairs - ifd.rated <= EMPTY


@pytest.mark.ray
def test_agreement_is_symmetric_and_kept_sets_are_of_one_size(made: tuple[Made, Comparison]) -> None:
    comparison = made[1]
    assert comparison.kept == round(0.5 * min(one.rated for one in comparison.scorers))
    for a in range(3):
        assert comparison.spearman[a][a] == pytest.approx(1)
        assert comparison.overlap[a][a] == 1
        for b in range(3):
            assert comparison.spearman[a][b] == pytest.approx(comparison.spearman[b][a])
            assert comparison.overlap[a][b] == comparison.overlap[b][a]
    assert all(one.auc is not None and 0 <= one.auc <= 1 for one in comparison.scorers)
    stored = comparison.json()["scorers"][0]
    assert stored["prompt_tokens_per_1000_pairs"] == 50 * comparison.scorers[0].prompt_tokens


@pytest.mark.ray
def test_verify_proves_the_stages_of_a_comparison(made: tuple[Made, Comparison]) -> None:
    said = "\n".join(verify(str(made[0].root)))
    assert (
        f"compare/sample: {ROWS} rows, files and counts agree, each of {ROWS} ids from candidates has one fate" in said
    )
    for name in ("rubric", "expected", "ifd"):
        assert (
            f"compare/round-1/{name}: 20 rows, files and counts agree, each of 20 ids from sample has one fate" in said
        )
