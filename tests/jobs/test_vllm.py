"""Stages on vLLM through Ray: two actors, the same ratings as transformers, and kills that change no fate."""

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from humpback_ray.augment import AugmentRecipe, Predictor
from humpback_ray.curate.rounds import CurateConfig, CurateRecipe, make_scores
from humpback_ray.curate.scorers import RubricExpected
from humpback_ray.engines import TransformersEngine, VllmEngine
from humpback_ray.inputs.contamination import NOTHING
from humpback_ray.needs import Resources
from humpback_ray.operate.verify import verify_stage
from humpback_ray.placement import PoolPlacement, TaskPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.prompts.instructions import InstructionFilters
from humpback_ray.records import CANDIDATE, SEGMENT
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.models import Model
from humpback_ray.stages.stage import Place, Stage
from tests.engines.test_vllm import engine_processes
from tests.engines.tiny import save_model
from tests.jobs import prepared

ROWS = 120
ENGINE = VllmEngine(dtype="float32", eager=True)
ANY = InstructionFilters(reasons=())
RECIPE = AugmentRecipe(engine=ENGINE, max_new_tokens=60, max_failed_share=1, filters=ANY)
POOL = PoolPlacement(
    min_replicas=2, cpus_per_replica=0.5, rows_per_shard=10, shards_in_flight=3, max_attempts=9, cache_bytes=64 << 20
)

pytestmark = [pytest.mark.vllm, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


class Together(Predictor):
    """The stage's own worker; the first actors start work when both exist, and finish no shard while they are held."""

    def __init__(self, folder: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.hold = Path(f"{folder}-hold")
        (Path(folder) / str(os.getpid())).touch()
        while len(list(Path(folder).iterdir())) < POOL.min_replicas:
            time.sleep(0.1)

    async def __call__(self, segments: pa.Table) -> pa.Table:
        made = await super().__call__(segments)
        while self.hold.exists():
            await asyncio.sleep(0.1)
        return made


@pytest.fixture(scope="module")
def root(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


def place(root: Path, name: str) -> Place:
    return Place(name, str(root / name), "first")


@pytest.fixture(scope="module")
def corpus(root: Path) -> Manifest:
    return Stage(place(root, "corpus"), {}, {}, SEGMENT).once(prepared.write_corpus, (ROWS,), TaskPlacement(cpus=0.5))


@pytest.fixture(scope="module")
def model(root: Path) -> Model:
    made = Model.of(Stage(place(root, "model"), {}, {}).leased(prepared.write_model))
    save_model(Path(made.uri), context_tokens=2048)
    return made


def augmented(root: Path, name: str, corpus: Manifest, model: Model) -> Manifest:
    (root / f"{name}-actors").mkdir()
    stage = Stage(place(root, name), {"name": name}, {"corpus": corpus}, CANDIDATE)
    made = stage.run(Together, (str(root / f"{name}-actors"), RECIPE, ChatRecipe(), model.uri, NOTHING), POOL, corpus)
    verify_stage(made)
    assert len(prepared.fates(root / name)) == ROWS
    return made


@pytest.fixture(scope="module")
def candidates(root: Path, corpus: Manifest, model: Model) -> Manifest:
    return augmented(root, "candidates", corpus, model)


def test_two_actors_predict_instructions_from_several_shards_at_once(root: Path, candidates: Manifest) -> None:
    attempts = prepared.attempts(root / "candidates")
    assert len(attempts) == ROWS // POOL.rows_per_shard, "no shard was made twice"
    assert len({attempt["pid"] for attempt in attempts}) == 2
    rows = [row for table in candidates.tables(kept=False) for row in table.to_pylist()]
    assert {row["finish_reason"] for row in rows} == {"stop", "length"}
    assert {row["drop_reason"] for row in rows} <= {None, "unfinished_instruction", "empty_instruction"}
    assert all(row["completion_tokens"] for row in rows)


def test_ratings_equal_those_of_transformers(root: Path, candidates: Manifest, model: Model) -> None:
    scorer, chat = RubricExpected(min_grade_mass=0), ChatRecipe()  # a random model knows no grades
    config = CurateConfig(
        recipe=CurateRecipe(engine=ENGINE, scorer=scorer, max_failed_share=0),
        placement=POOL.model_copy(update={"min_replicas": 1}),
    )
    scores = make_scores(config, chat, candidates, model, place(root, "scores"))
    rated = {row["id"]: row["score"] for table in scores.tables() for row in table.to_pylist()}
    rows = [row for table in candidates.tables() for row in table.to_pylist()]
    assert rated.keys() == {row["id"] for row in rows} != set()
    engine = TransformersEngine(dtype="float32").build(model.uri, Resources())
    expected = asyncio.run(scorer.score(rows, chat, engine))
    engine.close()
    assert rated == pytest.approx({row["id"]: row["score"] for row in expected}, abs=1e-3)
    assert len({round(score, 3) for score in rated.values()}) > 1


def test_the_death_of_an_engine_and_of_an_actor_change_no_fate(root: Path, corpus: Manifest, model: Model) -> None:
    stage, killed = root / "killed", []

    (root / "killed-actors-hold").touch()

    def kill() -> None:
        deadline = time.monotonic() + 500
        while len({attempt["pid"] for attempt in prepared.attempts(stage)}) < POOL.min_replicas:
            assert time.monotonic() < deadline, "two actors never worked at the same time"
            time.sleep(0.1)
        first, second = (psutil.Process(int(path.name)) for path in (root / "killed-actors").iterdir())
        engines = {actor: engine_processes(actor.pid) for actor in (first, second)}
        killed.extend([first, second, *engines[first], *engines[second]])
        for process in [*engines[first], second]:
            process.kill()
        (root / "killed-actors-hold").unlink()

    killer = threading.Thread(target=kill)
    killer.start()
    made = augmented(root, "killed", corpus, model)
    killer.join()
    assert len(killed) >= 4, "two actors and their engines"
    assert psutil.wait_procs(killed, timeout=20)[1] == [], "an engine's actor follows it, an actor's engine too"
    attempts = prepared.attempts(stage)
    assert len({attempt["pid"] for attempt in attempts}) > 2
    assert len(attempts) > ROWS // POOL.rows_per_shard
    assert made.quarantined == 0
