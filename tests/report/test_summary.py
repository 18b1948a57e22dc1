"""A warning appears exactly if the figures call for it, and states them."""

import math
from dataclasses import replace

import pytest

from humpback_ray.report import ratings, summary, training
from humpback_ray.report.funnel import Drop, TimingRow
from humpback_ray.report.ratings import Ratings
from humpback_ray.report.training import ModelRow
from humpback_ray.stages.manifest import Manifest

GOOD = Ratings(1, 98, (Drop("unrated_unparsed", 2, 0.02),), (), (20, 20, 20, 20, 18), 1.0, 5.0, 3.1, 4.5, 18)
MODEL = ModelRow("m0", 7_000_000_000, 3200, 500, ((1, 2.0), (500, 1.0)), 1e-5, 9e-6, 100, 10.0)
USUAL = dict.fromkeys(summary.USUAL)


def warnings(
    rating: Ratings = GOOD, model: ModelRow = MODEL, manifests: dict[str, Manifest] | None = None
) -> list[str]:
    return summary._rating_warnings(rating) + summary._loss_warnings(model) + summary._size_warnings([model])


def test_a_healthy_run_is_not_warned_about() -> None:
    assert warnings() == []


@pytest.mark.parametrize(
    ("rating", "words"),
    [
        (
            replace(GOOD, rated=50, failed=(Drop("unrated_unparsed", 50, 0.5),)),
            "50.0% of the ratings failed (50 of 100",
        ),
        (replace(GOOD, lowest=3.0, highest=3.0), "every score is 3"),
        (replace(GOOD, whole=(40, 40, 18, 0, 0), highest=3.2), "no pair was rated 5; the highest score is 3.20"),
        (
            replace(GOOD, replies=294, failed_first=100, failed_last=30),
            "10.2% of the samples had no score after the retry (30 of 294)",
        ),
        (replace(GOOD, kept=0), "kept nothing"),
        (replace(GOOD, kept=97), "kept 99% of the pairs that it rated"),
    ],
)
def test_ratings_that_cannot_be_trusted_are_named(rating: Ratings, words: str) -> None:
    assert [warning for warning in warnings(rating) if words in warning]


def test_a_demo_size_base_model_is_said_to_write_nonsense() -> None:
    found = warnings(model=replace(MODEL, parameters=410_000))
    assert len(found) == 1
    assert "0.41 million parameters" in found[0]
    assert "nonsense" in found[0]


def test_a_loss_that_did_not_fall_or_is_nan_is_named() -> None:
    assert "did not fall (1.000 at the start, 2.000" in warnings(model=replace(MODEL, losses=((1, 1.0), (2, 2.0))))[0]
    assert "NaN" in warnings(model=replace(MODEL, losses=((1, 1.0), (2, math.nan))))[0]


def test_retries_missing_stages_and_mixed_versions_are_named(finished: dict[str, Manifest]) -> None:
    costs = [TimingRow("candidates", 1.0, 1.0, 10, 0, shards=2, attempts=5, nodes=1)]
    seed = finished["seed"]
    other = replace(seed, commits=tuple(replace(commit, versions={"ray": "1.0"}) for commit in seed.commits))
    found = summary.warnings({**finished, "seed": other, "evaluation/m0": finished["evaluation/m0"]}, [], [], costs)
    assert "candidates needed 5 attempts for 2 shards; some died or were stopped." in found
    assert [warning for warning in found if "This run mixes versions of ray" in warning]
    partial = summary.warnings({"seed": seed}, [], [], [])
    assert "not finished: segments, corpus, models/backward, models/m0, candidates" in partial[0]


def test_the_summary_describes_every_stage_in_order(finished: dict[str, Manifest]) -> None:
    found = [rating for number in ratings.rounds(finished) if (rating := ratings.ratings(finished, number))]
    said = " ".join(summary.sentences(finished, found, training.model_rows(finished)))
    assert said.startswith("20 human-written pairs are the seed.")
    assert "Round 1 rated 54 of 60 pairs" in said
    assert f"kept {finished['round-2/curated'].kept} from a score of 4.5" in said
    assert said.endswith("m2 was trained on 30 examples in 80 steps.")


def test_the_identity_tells_when_where_and_with_what(finished: dict[str, Manifest]) -> None:
    found = summary.identity(finished)
    assert found["started"].endswith("UTC")
    assert found["node_count"] == found["submissions"] == 1
    assert found["prints"]["seed"] == finished["seed"].fingerprint[:12]
    assert "ray" in found["versions"]
