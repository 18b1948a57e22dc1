"""Warm processes on a real Ray: actors of a pool and of a training run start in them, or as usual without them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from humpback_ray.needs import Resources
from humpback_ray.placement import PoolPlacement, TaskPlacement
from humpback_ray.records import PAIR
from humpback_ray.stages import warm
from humpback_ray.stages.stage import Stage
from tests.jobs.heads import wait_for
from tests.stages.test_stage import make_source, place

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def kept() -> Iterator[None]:
    """One process is kept for a pool and is ready."""
    warm.keep(actors=1, training_workers=0)
    try:
        wait_for(lambda: idle(warm.MODELS), "a warm process", 300)
        yield
    finally:
        warm.drop()


def idle(variables: dict[str, str]) -> list[int]:
    """Idle worker processes whose environment has these variables."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] == ["ray::IDLE"] and variables.items() <= process.environ().items():
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.ZombieProcess, IndexError):
            continue
    return found


class Tells:
    """Records the process in which it is made."""

    def __init__(self, path: Path, resources: Resources) -> None:
        path.write_text(str(os.getpid()))

    def __call__(self, table: pa.Table) -> pa.Table:
        return table


def run(folder: Path) -> int:
    """Run a stage of one row and return the process id of its worker."""
    source = Stage(place(folder, "source"), {}, {}, PAIR).once(make_source, ([1],), TaskPlacement(cpus=0.5))
    pool = PoolPlacement(cpus_per_replica=0.5)
    Stage(place(folder, "made"), {}, {"source": source}, PAIR).run(Tells, (folder / "pid",), pool, source)
    return int((folder / "pid").read_text())


@pytest.mark.usefixtures("kept")
def test_an_actor_starts_in_a_warm_process_and_another_one_replaces_it(tmp_path: Path) -> None:
    ready = idle(warm.MODELS)
    assert run(tmp_path) in ready
    wait_for(lambda: set(idle(warm.MODELS)) - set(ready), "another warm process", 300)


def test_without_them_actors_start_as_usual(tmp_path: Path) -> None:
    assert warm.pool_environment() is None
    assert warm.training_environment() == {"env_vars": warm.ALLOCATOR}
    assert run(tmp_path) not in idle(warm.MODELS)


def test_environments_are_written_as_ray_writes_those_of_its_training_actors() -> None:
    import ray

    class Worker:
        def environment(self) -> str:
            return ray.get_runtime_context().get_runtime_env_string()

    class Controller(Worker):
        def of_a_worker(self, variables: dict[str, str]) -> str:
            worker = ray.remote(Worker).options(num_cpus=0, runtime_env={"env_vars": variables}).remote()
            return ray.get(worker.environment.remote())

    variables = warm.training_variables()
    environment = {"env_vars": variables}
    controller = ray.remote(Controller).options(num_cpus=0, runtime_env=environment).remote()
    assert ray.get(controller.environment.remote()) == warm._written(environment)
    training = variables | warm.ALLOCATOR | warm.TRAINING
    inherited = warm._written({"env_vars": training}, inherited=True)
    assert ray.get(controller.of_a_worker.remote(training)) == inherited


def test_none_are_requested_if_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Raylet:
        def prestart(self, job_id: bytes, environment: str, keep_s: int) -> None:
            asked.append(keep_s)

    raylet: Any = Raylet()
    reserve = warm.Reserve(raylet, b"")
    for free, processes in ((10, 3), (2.5, 2), (0.9, 0)):
        memory = type("Memory", (), {"available": int(free * warm.PROCESS_BYTES)})
        monkeypatch.setattr(psutil, "virtual_memory", lambda memory=memory: memory)
        asked.clear()
        reserve.replace(actors=3, training_workers=0)
        assert len(asked) == processes
    assert set(asked) <= {warm.IDLE_S}
