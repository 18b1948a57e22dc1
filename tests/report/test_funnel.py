"""The report's rows, lengths, scores and trainings agree with the tables that it was made from."""

import math
import statistics
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.records import PAIR, RESPONSE, SCORE
from humpback_ray.report import funnel, lengths, ratings, report, summary, training
from humpback_ray.report.reading import pairs_to_read
from humpback_ray.report.summary import failure_sentence
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.outputs import TableWriter
from tests.report.conftest import MadeRun

Manifests = dict[str, Manifest]


def test_every_row_of_a_stage_is_kept_or_dropped_for_a_reason(finished: Manifests) -> None:
    rows = funnel.funnel(finished)
    assert [row.stage for row in rows][:4] == ["seed", "segments", "corpus", "candidates"]
    for row in rows:
        assert row.kept + sum(drop.rows for drop in row.drops) == row.rows
        assert row.kept_share + sum(drop.share for drop in row.drops) == pytest.approx(1)


def test_models_have_no_row_in_the_funnel_but_cost_time(finished: Manifests) -> None:
    assert not any(row.stage.startswith("models/") for row in funnel.funnel(finished))
    costs = {row.stage: row for row in funnel.timing(finished)}
    assert list(costs) == list(finished)
    assert costs["models/m0"].rows_per_s is None
    assert costs["models/m0"].tokens == 900 * 60
    assert costs["candidates"].rows_per_s == pytest.approx(60 / costs["candidates"].wall_s)


def test_fields_without_a_form_contaminated_rows_and_empty_outputs_are_counted(tmp_path: Path) -> None:
    run = MadeRun(tmp_path)

    def write(attempt: Attempt) -> Commit:
        writer = TableWriter(attempt, PAIR)
        reasons = [None, "contaminated", "no_pair", "no_pair"]
        rows = [{"id": str(n), "instruction": "", "drop_reason": reason} for n, reason in enumerate(reasons)]
        writer.write(pa.Table.from_pylist(rows, schema=PAIR))
        return writer.commit(extra={"unknown_keys": {"title, body": 2}})

    run.leased("seed", write, {}, PAIR)
    run.candidates()
    reasons = ["prompt_too_long", None, "quarantined"]
    answers = [{"id": str(n), "output": "", "drop_reason": reason} for n, reason in enumerate(reasons)]
    run.table("evaluation/m0", RESPONSE, answers, {})
    notes = {row.stage: row.note for row in funnel.funnel(run.manifests)}
    assert notes["seed"] == "fields of records without a pair: (title, body) in 2"
    assert notes["evaluation/m0"] == "2 prompts have an empty output"
    said = " ".join(summary.sentences(run.manifests, [], []))
    assert "1 rows of seed and 0 rows of candidates contain an evaluation prompt and were dropped" in said


@given(st.lists(st.integers(0, 100_000), min_size=2))
def test_moments_are_those_of_the_statistics_module(values: list[int]) -> None:
    moments = lengths.Moments()
    moments.add(values[:3])
    moments.add(values[3:])
    assert moments.mean == pytest.approx(statistics.mean(values))
    assert moments.sd == pytest.approx(statistics.stdev(values), abs=1e-6)


def test_lengths_are_characters_of_kept_pairs(finished: Manifests) -> None:
    rows = {row.label: row for row in lengths.length_table(finished) if not row.paper}
    texts = [text for t in finished["seed"].tables(["response"]) for text in t["response"].to_pylist()]
    assert rows["seed"].output[0] == pytest.approx(statistics.mean(map(len, texts)))
    assert rows["all candidates"].rows == finished["candidates"].kept
    kept = rows["kept in round 2"]
    assert kept.rows == finished["round-2/curated"].kept
    assert kept.share == kept.rows / finished["candidates"].kept
    assert len([row for row in lengths.length_table(finished) if row.paper]) == 4


def test_every_rating_is_in_one_bin_or_failed(finished: Manifests) -> None:
    found = ratings.ratings(finished, 1)
    assert found is not None
    assert sum(found.bins) == sum(found.whole) == found.rated == 54
    assert [(drop.reason, drop.rows) for drop in found.failed] == [("unrated_unparsed", 6)]
    assert found.failed_share == pytest.approx(0.1)
    assert found.threshold == 4.5
    assert sum(found.bins[14:]) == found.kept, "the threshold is an edge between bins"


def test_without_a_threshold_in_the_recipe_the_lowest_kept_score_is_used(tmp_path: Path) -> None:
    made = MadeRun(tmp_path)
    made.round(1, threshold=3.3)
    curated = made.manifests["round-1/curated"]
    lowest = min(score for table in curated.tables(["score"]) for score in table["score"].to_pylist())
    unnamed = replace(curated, recipe={"keep": {"top": 10}})
    found = ratings.ratings({**made.manifests, "round-1/curated": unnamed}, 1)
    assert found is not None
    assert found.threshold == lowest


@pytest.mark.parametrize(
    ("lowest", "highest", "points"),
    [
        (1.0, 5.0, range(1, 6)),
        (2.5, 4.0, range(1, 6)),
        (0.3, 5.0, range(6)),
        (-0.4, 1.2, range(-1, 3)),
        (-500, 2, range(-38, 3)),
    ],
)
def test_the_scale_follows_the_scores(lowest: float, highest: float, points: range) -> None:
    assert ratings.points_of(lowest, highest) == points


def test_scores_of_any_scale_are_each_in_one_bin_and_failed_replies_are_counted_twice(tmp_path: Path) -> None:
    made = MadeRun(tmp_path)
    rows = [
        {"id": str(i), "score": score, "samples": [score, None], "first_failures": [None, "unrated_unparsed"],
         "drop_reason": reason}
        for i, (score, reason) in enumerate(
            [(-0.4, None), (0.1, None), (1.2, None), (None, "unrated_unparsed")]
        )
    ]  # fmt: skip
    rows += [{"id": "over", "drop_reason": "not_passed_on"}]
    made.table("round-1/scores", SCORE, rows, {})
    found = ratings.ratings(made.manifests, 1)
    assert found
    assert (found.points, found.whole, sum(found.bins)) == (range(-1, 3), (0, 2, 1, 0), 3)
    assert (found.replies, found.failed_first, found.failed_last) == (8, 4, 5)
    assert (found.pairs, found.passed_over, found.failed_share) == (4, 1, 0.25)
    said = failure_sentence(found)
    assert "4 of 8 replies had no score, 5 after the retry; 1 of 4 pairs stayed unrated" in said
    assert "1 more were not passed on" in said
    assert "62.5% of the samples have no score" in said
    assert "5 (62.5%) after the retry" in report(made.manifests).replace("\n", "")
    assert "Not passed on by the cheap scorer: 1" in report(made.manifests)
    _, buckets = pairs_to_read(made.manifests, found.points) or (0, [])
    assert [(bucket.label, bucket.total) for bucket in buckets] == [
        ("score 2", 0), ("score 1", 1), ("score 0", 2), ("score -1", 0), ("not passed on", 1), ("unrated", 1)
    ]  # fmt: skip


@pytest.mark.parametrize(("score", "point"), [(1.0, 1), (1.49, 1), (1.5, 2), (4.5, 5), (5.0, 5)])
def test_nearest_rounds_halves_up(score: float, point: int) -> None:
    assert ratings.nearest(score) == point


def test_a_model_without_metrics_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    made = MadeRun(tmp_path)
    made.leased("sample/base", lambda attempt: attempt.describe([], {}, extra={"metrics": [[20, 3.0], [40, 2.5]]}), {})
    made.leased("models/m1", lambda attempt: attempt.describe([], {}), {})
    base, m1 = training.model_rows(made.manifests)
    assert (base.losses, base.steps) == (((20, 3.0), (40, 2.5)), 40)
    assert (base.first_loss, base.last_loss, base.last_rate, base.mfu) == (3.0, 2.5, None, None)
    assert (m1.losses, m1.first_loss, m1.steps) == ((), None, 0)


def test_the_metrics_of_every_step_give_losses_rates_and_medians(finished: Manifests) -> None:
    m2 = next(row for row in training.model_rows(finished) if row.model == "m2")
    assert (m2.examples, m2.steps, m2.output_tokens, m2.parameters) == (30, 80, 80 * 900, 410_000)
    assert m2.first_rate == 1e-5
    assert m2.last_rate == pytest.approx(9e-6)
    assert m2.last_loss is not None
    assert m2.first_loss is not None
    assert not math.isnan(m2.last_loss)
    assert m2.last_loss < m2.first_loss
    assert [step for step, _ in m2.validation] == [20, 40, 60, 80]
    assert (m2.tokens_per_s, m2.mfu, m2.padding_share, m2.memory_bytes) == (18_000, 0.4, 0.25, 80 * 10**9)
