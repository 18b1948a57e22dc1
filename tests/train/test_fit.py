import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from humpback_ray import storage
from humpback_ray.placement import TrainPlacement
from humpback_ray.stages import progress, waiting
from humpback_ray.train.causes import first_cause
from humpback_ray.train.checkpoint import store
from humpback_ray.train.fit import Pulse, TrainingFailed, headline, launch
from humpback_ray.train.job import OutOfMemory, TrainingStopped, TrainJob, TrainResult
from tests.conftest import Said
from tests.train.conftest import plain_loop
from tests.train.drivers import driver, wait_for
from tests.train.workers import job

STEPS = 24
PLACEMENT = TrainPlacement(workers=2, cpus_per_worker=0.5, micro_batch_tokens=400, checkpoint_every_steps=4)

DRIVER = """
import json, sys
import ray
from humpback_ray.placement import TrainPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.train.fit import launch
from humpback_ray.train.job import TrainJob
from humpback_ray.train.recipe import TrainRecipe

values = json.loads(sys.argv[1])
job = TrainJob(**values["job"] | {"recipe": TrainRecipe(**values["recipe"]), "chat": ChatRecipe()})
ray.init(address="local", num_cpus=2, include_dashboard=False)
launch(job, TrainPlacement(**values["placement"]), "m0", values["storage"])
"""


def this(base: Path, pairs: tuple[str, ...], export: Path) -> TrainJob:
    return job(base, pairs, export, steps={"m0": STEPS})


def checkpoints_of(storage: Path) -> list[str]:
    """Return the checkpoints that a run could resume from."""
    return [found.uri] if (found := store.newest(str(storage))) else []


def kill_driver(job: TrainJob, storage: Path) -> None:
    """Run the job under a driver with its own Ray; kill both once there is a checkpoint."""
    recipe = job.recipe.model_dump(mode="json")
    names = {key: value for key, value in vars(job).items() if key not in ("recipe", "chat", "provenance")}
    values = {"job": names, "recipe": recipe, "placement": PLACEMENT.model_dump(), "storage": str(storage)}
    with driver(DRIVER, [json.dumps(values)], storage.parent / "driver.log") as process:
        wait_for(lambda: checkpoints_of(storage), lambda: process.poll() is None)


def launch_and_kill_worker(job: TrainJob, storage: Path) -> TrainResult:
    """Launch, and kill rank 0 once there is a new checkpoint."""
    known, results = checkpoints_of(storage), []
    thread = threading.Thread(target=lambda: results.append(launch(job, PLACEMENT, "m0", str(storage))))
    thread.start()
    wait_for(lambda: checkpoints_of(storage) not in ([], known), thread.is_alive)
    os.kill(json.loads((storage / "m0" / "progress.json").read_text())["pid"], signal.SIGKILL)
    thread.join()
    return results[0]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("driver_first", [False, pytest.param(True, marks=pytest.mark.chaos)])
def test_a_run_whose_driver_and_worker_or_worker_alone_are_killed_ends_as_if_undisturbed(
    base: Path, pairs: tuple[str, ...], tmp_path: Path, local_ray: None, driver_first: bool
) -> None:
    killed = this(base, pairs, tmp_path / "model")
    if driver_first:
        kill_driver(killed, tmp_path / "runs")
    resumed = launch_and_kill_worker(killed, tmp_path / "runs")
    undisturbed = [loss for loss, _ in plain_loop(base, pairs, killed.recipe)]
    assert resumed.resumed_from is not None
    assert resumed.resumed_from >= (8 if driver_first else 4)
    assert [row.step for row in resumed.metrics] == list(range(1, STEPS + 1))
    assert [row.loss for row in resumed.metrics] == pytest.approx(undisturbed, rel=1e-5)
    assert undisturbed[-1] < undisturbed[0]
    assert {file.name for file in resumed.files} == {path.name for path in (tmp_path / "model").iterdir()}


@pytest.mark.ray
@pytest.mark.slow
def test_a_workers_error_reaches_the_caller_once(base: Path, tmp_path: Path, local_ray: None) -> None:
    missing = str(tmp_path / "nothing.parquet")
    placement = TrainPlacement(workers=1, cpus_per_worker=0.5, max_failures=0)
    with pytest.raises(
        TrainingFailed, match=r"training m0 failed on worker 0: FileNotFoundError.*nothing\.parquet"
    ) as error:
        launch(this(base, (missing,), tmp_path / "model"), placement, "m0", str(tmp_path / "runs"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "model").exists()


@pytest.mark.ray
@pytest.mark.parametrize("workers", [2, pytest.param((2, 3), marks=pytest.mark.chaos)], ids=["fixed", "elastic"])
def test_a_training_that_waits_for_gpus_says_so_and_gives_up_without_a_traceback(
    base: Path, tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch, said: Said, workers: Any
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    monkeypatch.setattr(waiting, "LOOK_EVERY_S", 0.2)
    monkeypatch.setattr(waiting, "NAMED_AFTER_S", 1.0)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 1.0)
    gpus = TrainPlacement(
        workers=workers, cpus_per_worker=0.5, gpus_per_worker=1, accelerator_type="H100",
        give_up_waiting_minutes=3 / 60,
    )  # fmt: skip
    note = tmp_path / "drivers/one.waiting"
    with pytest.raises(TrainingFailed, match=r"no worker was up for 0\.05 minutes, .* the cluster has") as error:
        launch(this(base, (), tmp_path / "model"), gpus, "m0", str(tmp_path / "runs"), str(note))
    assert "\n" not in str(error.value)
    lines = [text for _, text in said.records]
    wanted = "for a node with 0.5 CPUs and 1 GPU (H100) (2 of them); the cluster has 1 node with 2 CPUs"
    assert any(line.startswith("train m0: at work") and wanted in line for line in lines), lines
    assert not note.exists()


def test_the_worker_that_failed_by_itself_is_named_not_those_that_lost_their_peer() -> None:
    from ray.exceptions import RayActorError

    peer, own = RuntimeError("[gloo/pair.cc] Connection closed by peer"), ValueError("a row has no text\nof any kind")
    assert first_cause({0: peer, 1: own, 2: own}) == (1, own)
    assert first_cause({1: peer}) == (1, peer)
    assert first_cause({}) is None
    assert headline(own) == "ValueError: a row has no text"
    for cause in (
        ConnectionError("s3://bucket: connection reset, socket closed"), RayActorError(), TrainingStopped("barrier"),
        RuntimeError("the size of tensor a must match that of b"),
    ):  # fmt: skip
        assert first_cause({0: peer, 1: cause}) == (1, cause), "it only sounds like a lost peer, or is the lost peer"
    starved = OutOfMemory("rank 2: NCCL could not allocate")
    assert first_cause({0: peer, 1: own, 2: starved}) == (2, starved)


def test_training_continues_with_a_warning_if_the_progress_file_cannot_be_written(tmp_path: Path, said: Said) -> None:
    (tmp_path / "runs").write_text("a file where the directory should be")
    uri = str(tmp_path / "runs/m0/progress.json")
    pulse = Pulse("m0", uri)
    for step in (1, 2, 3):
        pulse({"step": step, "steps": 3, "tokens": 10})
    ((level, message),) = said.records
    assert level == "WARNING"
    assert message.startswith(f"train m0: writing {uri} failed and will be tried again: ")
    (tmp_path / "runs").unlink()
    pulse({"step": 3, "steps": 3, "tokens": 10})
    assert json.loads(Path(uri).read_text())["tokens_so_far"] == 40


@pytest.mark.parametrize("error", [RuntimeError("the client is closed"), OSError("503 Slow Down")])
def test_any_error_while_writing_the_progress_file_is_logged(
    tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(uri: str, body: bytes) -> None:
        raise error

    monkeypatch.setattr(storage, "write_bytes", broken)
    Pulse("m0", str(tmp_path / "progress.json"))({"step": 1, "steps": 3, "tokens": 10})
    ((_, message),) = said.records
    assert str(error) in message
