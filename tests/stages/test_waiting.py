"""On a real Ray: a waiting stage says what it waits for, status shows it, and it gives up at the placement's limit."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from humpback_ray import storage
from humpback_ray.needs import Need, Resources
from humpback_ray.operate.status import Unfinished
from humpback_ray.placement import PoolPlacement, TaskPlacement
from humpback_ray.records import PAIR
from humpback_ray.stages import progress, waiting
from humpback_ray.stages.errors import StageFailed
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.stage import Stage
from humpback_ray.stages.waiting import Constructor, Waiting, Workers, offer_words
from tests.conftest import Said
from tests.jobs.heads import wait_for
from tests.stages.test_stage import make_source, place

POOL = PoolPlacement(rows_per_shard=10, cpus_per_replica=0.5)
PATIENCE_S = 240


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of a second are reported, and there is a line every second."""
    monkeypatch.setattr(waiting, "LOOK_EVERY_S", 0.2)
    monkeypatch.setattr(waiting, "NAMED_AFTER_S", 1.0)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 1.0)


@pytest.fixture(scope="module")
def source(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    stage = Stage(place(tmp_path_factory.mktemp("waiting"), "source"), {}, {}, PAIR)
    return stage.once(make_source, ([8],), TaskPlacement(cpus=0.5))


class Hangs:
    """Its constructor does not return before a file exists."""

    def __init__(self, folder: str, resources: Resources) -> None:
        Path(folder, "written").write_text(str(os.getpid()))
        Path(folder, "written").rename(Path(folder, "process"))
        deadline = time.monotonic() + PATIENCE_S
        while not Path(folder, "go").exists() and time.monotonic() < deadline:
            time.sleep(0.1)

    def __call__(self, table: pa.Table) -> pa.Table:
        return table


class DiesWhileBuilt:
    def __init__(self, resources: Resources) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, table: pa.Table) -> pa.Table:
        return table


def lines(said: Said) -> list[str]:
    return [text for _, text in list(said.records)]


@pytest.mark.ray
@pytest.mark.usefixtures("impatient")
def test_a_constructor_that_hangs_is_named_with_its_node_and_process_in_the_log_and_in_status(
    source: Manifest, tmp_path: Path, said: Said
) -> None:
    stage = Stage(place(tmp_path, "hangs"), {}, {"source": source}, PAIR)

    def shown() -> str:
        return Unfinished("hangs", stage.place.uri, 0.0).status().waiting

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(stage.run, Hangs, (str(tmp_path),), POOL, source)
        try:
            wait_for((tmp_path / "process").exists, "the constructor", PATIENCE_S)
            named = f"for a constructor on node {os.uname().nodename} (process {(tmp_path / 'process').read_text()})"
            wait_for(lambda: named in shown(), "the note for status", PATIENCE_S)
            wait_for(lambda: any(named in line for line in lines(said)), "the line", PATIENCE_S)
        finally:
            (tmp_path / "go").touch()
        assert running.result().rows == source.kept
    assert not storage.list_names(stage.ledger.at("drivers")), "nobody waits, and nobody is there"


@pytest.mark.ray
@pytest.mark.usefixtures("impatient")
def test_a_pool_whose_gpu_never_comes_says_what_it_waits_for_and_gives_up_at_its_limit(
    source: Manifest, tmp_path: Path, said: Said
) -> None:
    stage = Stage(place(tmp_path, "gpus"), {}, {"source": source}, PAIR)
    gpus = POOL.model_copy(
        update={"gpus_per_replica": 1, "accelerator_type": "H100", "give_up_waiting_minutes": 5 / 60}
    )
    wanted = r"for a node with 0.5 CPUs and 1 GPU \(H100\); the cluster has 1 node with 2 CPUs, .* free"
    with pytest.raises(StageFailed, match=rf"gpus: no worker was up for 0.08\d* minutes, .*give_up.* waited {wanted}"):
        stage.run(Hangs, (str(tmp_path),), gpus, source)
    assert any("0 of" in line and "waiting" in line and "1 GPU (H100); the cluster has" in line for line in lines(said))
    assert not stage.ledger.committed()


@pytest.mark.ray
@pytest.mark.usefixtures("impatient")
def test_a_worker_whose_process_is_killed_during_construction_is_not_restarted_forever(
    source: Manifest, tmp_path: Path
) -> None:
    stage = Stage(place(tmp_path, "dies"), {}, {"source": source}, PAIR)
    with pytest.raises(StageFailed, match=r"dies: the process of a worker died silently \d+ times during construction"):
        stage.run(DiesWhileBuilt, (), POOL, source)


@pytest.mark.ray
@pytest.mark.usefixtures("impatient")
def test_a_global_step_that_finds_no_room_says_so_and_gives_up(local_ray: None, tmp_path: Path, said: Said) -> None:
    import ray

    @ray.remote(num_cpus=2)
    def hold(folder: str) -> None:
        while not Path(folder, "let go").exists():
            time.sleep(0.1)

    holding = hold.remote(str(tmp_path))
    try:
        wait_for(lambda: not ray.available_resources().get("CPU"), "the CPUs", PATIENCE_S)
        stage = Stage(place(tmp_path, "busy"), {}, {}, PAIR)
        with pytest.raises(StageFailed, match=r"waited for room for 1 CPU on 1 node, which is busy"):
            stage.once(make_source, ([3],), TaskPlacement(give_up_waiting_minutes=4 / 60))
    finally:
        (tmp_path / "let go").touch()
        ray.get(holding)
    assert any("busy: at work" in line and "which is busy" in line for line in lines(said))


def looked(states: Iterator[Workers], **more: Any) -> Waiting:
    return Waiting("stage", Need(1, {"CPU": 1}), lambda: next(states), **more)


def test_a_constructor_that_takes_a_moment_is_not_reported(tmp_path: Path) -> None:
    built = Workers(constructors=[Constructor("a", "node", 7)])
    watched = looked(iter([built, Workers(up=1)]), note=str(tmp_path / "drivers/first.waiting"))
    watched.look()
    assert watched.words() == ""
    watched.look()
    assert watched.words() == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("impatient")
def test_a_constructor_is_named_although_others_are_up_and_forgotten_when_it_returns(tmp_path: Path) -> None:
    note = tmp_path / "drivers/first.waiting"
    one, other = Constructor("a", "far", 7), Constructor("b", "near", 8)
    watched = looked(iter([Workers(1, [one]), Workers(1, [one, other]), Workers(2)]), note=str(note))
    watched.look()
    time.sleep(1.1)
    watched.look()
    assert watched.words() == "; waiting 1 s for a constructor on node far (process 7) and 1 more"
    assert json.loads(note.read_text())["what"] == "a constructor on node far (process 7) and 1 more"
    watched.look()
    assert watched.words() == ""
    assert not note.exists()


@pytest.mark.usefixtures("impatient")
def test_watching_continues_after_an_error(said: Said) -> None:
    seen = threading.Event()

    def answers() -> Iterator[Workers]:
        yield Workers(1)
        seen.set()
        while True:
            yield Workers(1)

    states, first = answers(), [True]

    def look() -> Workers:
        if first.pop() if first else False:
            raise RuntimeError("the head node does not answer")
        return next(states)

    with Waiting("stage", Need(1, {"CPU": 1}), look):
        assert seen.wait(PATIENCE_S)
    assert any("the head node does not answer" in line for line in lines(said))


def test_offers_are_named_by_kind_with_what_is_free() -> None:
    def node(number: int, labels: dict[str, str], **resources: float) -> dict[str, Any]:
        return {"NodeID": str(number), "Labels": labels, "Resources": resources}

    spot = {"ray.io/market-type": "spot"}
    gpus = {"CPU": 8.0, "GPU": 4.0, "accelerator_type:A100": 1.0}
    nodes = [node(0, {}, CPU=2.0), node(1, spot, **gpus), node(2, spot, **gpus)]
    free = {"0": {"CPU": 2.0}, "1": {"CPU": 1.0}, "2": {"CPU": 8.0, "GPU": 0.5}}
    assert offer_words(nodes, free) == (
        "the cluster has 2 nodes with 8 CPUs and 4 GPUs (A100, spot), 9 CPUs and 0.5 GPUs free; "
        "1 node with 2 CPUs, 2 CPUs free"
    )
    assert offer_words([], {}) == "the cluster has no node"
