"""Where work runs decides no id and no fate: CPUs, replicas, shards in flight, rows per shard, batch size."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from humpback_ray.augment import AugmentConfig, AugmentRecipe, make_candidates
from humpback_ray.curate.rounds import CurateConfig, CurateRecipe, make_scores
from humpback_ray.engines import EchoEngine
from humpback_ray.placement import PoolPlacement, TaskPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.records import SEGMENT
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.models import Model
from humpback_ray.stages.stage import Place, Stage
from tests.jobs.prepared import write_corpus, write_model

pytestmark = pytest.mark.ray
PLACEMENTS = (
    PoolPlacement(rows_per_shard=1000),
    PoolPlacement(rows_per_shard=7, min_replicas=2, cpus_per_replica=0.5, shards_in_flight=3, batch_rows=2),
    PoolPlacement(rows_per_shard=40, cpus_per_replica=2, shards_in_flight=1, straggler_factor=None),
)


def rows(manifest: Manifest) -> dict[str, dict[str, Any]]:
    found = [row for table in manifest.tables(kept=False) for row in table.to_pylist()]
    assert len({row["id"] for row in found}) == len(found) == 120
    return {row["id"]: row for row in found}


@pytest.mark.parametrize(
    "placements",
    [PLACEMENTS[:2], pytest.param(PLACEMENTS, marks=[pytest.mark.chaos, pytest.mark.slow])],
    ids=["one and many", "all"],
)
def test_candidates_and_scores_are_the_same_wherever_they_are_made(
    local_ray: None, tmp_path: Path, placements: Sequence[PoolPlacement]
) -> None:
    def place(name: str) -> Place:
        return Place(name.rpartition("/")[2], str(tmp_path / name), "first")

    corpus = Stage(place("corpus"), {}, {}, SEGMENT).once(write_corpus, (120,), TaskPlacement(cpus=0.5))
    model = Model.of(Stage(place("model"), {}, {}).leased(write_model))
    recipe = AugmentRecipe(engine=EchoEngine(delay_s=0.001), max_new_tokens=6, max_failed_share=1)
    rating = CurateRecipe(engine=EchoEngine(), max_failed_share=1)
    made = []
    for number, placement in enumerate(placements):
        config = AugmentConfig(recipe=recipe, placement=placement)
        candidates = make_candidates(config, ChatRecipe(), corpus, model, place(f"{number}/candidates"))
        curate = CurateConfig(recipe=rating, placement=placement)
        scores = make_scores(curate, ChatRecipe(), candidates, model, place(f"{number}/scores"))
        found = [row for table in scores.tables(kept=False) for row in table.to_pylist()]
        made.append((rows(candidates), sorted(found, key=lambda row: row["id"])))
    assert all(found == made[0] for found in made[1:])
    assert len({row["drop_reason"] for row in made[0][0].values()}) > 1, "some are kept and some are not"
