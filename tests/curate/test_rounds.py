"""A round with chained scorers, through real stages: one fate per candidate, whatever the shards."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from humpback_ray import storage
from humpback_ray.curate.rounds import CurateConfig, CurateRecipe, count_samples, make_curated, make_scores
from humpback_ray.curate.scorers import Chained, Rubric
from humpback_ray.curate.select import SelectRecipe
from humpback_ray.engines import EchoEngine
from humpback_ray.operate.verify import verify
from humpback_ray.placement import PoolPlacement, TaskPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.records import CANDIDATE
from humpback_ray.report import ratings
from humpback_ray.report.summary import failure_sentence
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.errors import StageFailed
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.models import Model
from humpback_ray.stages.outputs import TableWriter
from humpback_ray.stages.stage import Place, Stage
from tests.jobs.prepared import write_model

pytestmark = pytest.mark.ray
ROWS, EMPTY = 60, 3


def write_candidates(attempt: Attempt) -> Commit:
    """Sixty pairs, three of which the cheap scorer cannot rate."""
    rows = [
        {"id": f"c{i:02}", "instruction": f"What is {i}?", "response": "" if i < EMPTY else f"Number {i} " + "a " * i}
        for i in range(ROWS)
    ]
    writer = TableWriter(attempt, CANDIDATE)
    for part in (rows[:25], rows[25:]):
        writer.write(pa.Table.from_pylist(part, schema=CANDIDATE))
    return writer.commit()


class Made:
    """A root with candidates and a model, for running rounds."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.candidates = Stage(self.place("candidates"), {}, {}, CANDIDATE).leased(write_candidates)
        self.model = Model.of(Stage(self.place("models/m0"), {}, {}).leased(write_model))
        storage.write_bytes(str(root / "run.json"), b"{}")

    def place(self, name: str) -> Place:
        return Place(name, str(self.root / name), "s")

    def config(self, rows_per_shard: int, scorer: Any, **recipe: Any) -> CurateConfig:
        return CurateConfig(
            recipe=CurateRecipe(scorer=scorer, engine=EchoEngine(), **recipe),
            placement=PoolPlacement(rows_per_shard=rows_per_shard, cpus_per_replica=0.5),
            select_placement=TaskPlacement(cpus=0.5),
        )

    def rate(self, config: CurateConfig) -> tuple[Manifest, Manifest]:
        scorer = config.recipe.scorer
        assert isinstance(scorer, Chained)
        first = config.scored_by(scorer.first)
        cheap = make_scores(first, ChatRecipe(), self.candidates, self.model, self.place("round-1/prescores"))
        place = self.place("round-1/scores")
        return cheap, make_scores(config, ChatRecipe(), self.candidates, self.model, place, cheap)


def rows_of(manifest: Manifest) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for table in manifest.tables(kept=False) for row in table.to_pylist()}


@pytest.fixture(scope="module")
def made(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, Manifest, Manifest]:
    """A finished chained round in shards of 7 rows."""
    made = Made(tmp_path_factory.mktemp("chain"))
    return (made, *made.rate(made.config(7, Chained(share=0.3), max_failed_share=0.5)))


def test_the_best_share_is_rated_and_the_others_have_a_verdict_and_their_cheap_score(
    made: tuple[Made, Manifest, Manifest],
) -> None:
    _, cheap, scores = made
    before, after = rows_of(cheap), rows_of(scores)
    assert len(after) == ROWS
    assert {row["scorer"] for row in before.values()} == {"likelihood"}
    passed = {row_id for row_id, row in after.items() if row["drop_reason"] != "not_passed_on"}
    unrated = {row_id for row_id, row in before.items() if row["score"] is None}
    assert len(unrated) == EMPTY
    assert unrated < passed, "what the cheap scorer could not rate is passed on"
    assert len(passed) == EMPTY + 18, "ceil(0.3 * 57)"
    assert all(row["pre_score"] == before[row_id]["score"] for row_id, row in after.items())
    for row_id in passed:
        assert (after[row_id]["scorer"], len(after[row_id]["samples"])) == ("rubric", 3)
        assert after[row_id]["model"] == made[0].model.digest
        assert json.loads(after[row_id]["sampling"])["temperature"] == 0.7
    for row_id in after.keys() - passed:
        assert (after[row_id]["score"], after[row_id]["scorer"]) == (None, None)


def test_shards_change_no_fate(made: tuple[Made, Manifest, Manifest], tmp_path: Path) -> None:
    again = Made(tmp_path)
    _, scores = again.rate(again.config(50, Chained(share=0.3), max_failed_share=0.5))
    assert len(scores.commits) < len(made[2].commits)
    assert rows_of(scores) == rows_of(made[2])


def test_selection_keeps_the_verdict_and_verify_proves_one_fate_each(made: tuple[Made, Manifest, Manifest]) -> None:
    root, _, scores = made
    config = root.config(7, Chained(share=0.3), rounds=(SelectRecipe(threshold=1, min_kept=0),))
    curated = make_curated(config, 1, root.candidates, scores, root.place("round-1/curated"))
    fates, rated = rows_of(curated), rows_of(scores)
    for row_id, row in rated.items():
        assert (fates[row_id]["drop_reason"] == "not_passed_on") == (row["drop_reason"] == "not_passed_on")
        assert (fates[row_id]["drop_reason"] is None) == (row["score"] is not None)
    said = list(verify(str(root.root)))
    for stage in ("round-1/prescores", "round-1/scores", "round-1/curated"):
        proof = next(line for line in said if line.startswith(f"{stage}:"))
        assert f"each of {ROWS} ids from candidates has one fate" in proof


def test_the_report_counts_what_was_not_passed_on_apart_from_failures(made: tuple[Made, Manifest, Manifest]) -> None:
    found = ratings.ratings({"round-1/scores": made[2]}, 1)
    assert found
    assert (found.passed_over, found.pairs, found.replies) == (ROWS - EMPTY - 18, EMPTY + 18, 3 * (EMPTY + 18))
    assert not {"not_passed_on"} & {drop.reason for drop in found.failed}
    assert "39 more were not passed on by the cheap scorer" in failure_sentence(found)


def test_lost_samples_stop_the_run_even_if_few_pairs_fail(made: tuple[Made, Manifest, Manifest]) -> None:
    """Seven tokens are too few for the longer replies: many samples fail, but few pairs lose all three."""
    root, cheap, scores = made
    assert count_samples(scores) == (3 * (EMPTY + 18), 0)
    scorer = Chained(share=0.9, then=Rubric(max_new_tokens=7, retry_room=None, min_samples=1))
    place = root.place("round-3/scores")

    def rate(most: float) -> Manifest:
        config = root.config(50, scorer, max_failed_share=most)
        return make_scores(config, ChatRecipe(), root.candidates, root.model, place, cheap)

    with pytest.raises(StageFailed, match=r"round-3/scores: \d+ of 165 \(.*%\) samples had no score after the retry"):
        rate(0.3)
    passed = rate(0.9)
    rows = [row for row in rows_of(passed).values() if row["samples"]]
    assert sum(row["failed_samples"] for row in rows) == count_samples(passed)[1] > 0.3 * 165
    assert sum(row["score"] is None for row in rows) <= 0.3 * len(rows), "the pairs alone would have passed"


def test_failures_are_measured_against_the_pairs_passed_on(made: tuple[Made, Manifest, Manifest]) -> None:
    """Nine candidates are passed on and all of them fail: 15 % of all candidates, but 100 % of those rated."""
    root, cheap, _ = made
    no_room = Rubric(max_new_tokens=1, retry_room=None)
    config = root.config(50, Chained(share=0.1, then=no_room), max_failed_share=0.5)
    with pytest.raises(StageFailed, match=r"9 of 9 \(100.0%\) rows failed"):
        make_scores(config, ChatRecipe(), root.candidates, root.model, root.place("round-2/scores"), cheap)
