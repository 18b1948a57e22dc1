"""Pools of actors on GPUs: fractions on spot nodes, growing while shards wait and shrinking afterward; whole GPUs.

The GPUs are only declared to Ray, but Ray really places the actors and counts the GPUs. Shards wait until the test has
seen what it waits for, so nothing here depends on the speed of the machine.
"""

import contextlib
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from humpback_ray.needs import Resources
from humpback_ray.placement import PoolPlacement, TaskPlacement
from humpback_ray.records import PAIR
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.stage import Stage
from tests.jobs.heads import wait_for
from tests.stages.test_stage import fates, make_source, place

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

SPOT, ON_DEMAND = ({"ray.io/market-type": name} for name in ("spot", "on-demand"))
HALVES = PoolPlacement(
    min_replicas=1, max_replicas=4, cpus_per_replica=0.1, gpus_per_replica=0.5, labels=SPOT, rows_per_shard=1,
    shards_in_flight=1, straggler_factor=None,
)  # fmt: skip
PAIRS = PoolPlacement(
    min_replicas=2, cpus_per_replica=0.5, gpus_per_replica=2, rows_per_shard=2, pipeline_parallel=2, memory_share=0.8
)
ROWS = 40
PATIENCE_S = 200


@pytest.fixture(scope="module")
def cluster(local_ray: "Cluster") -> "Iterator[Cluster]":
    """Two on-demand nodes with more GPUs than needed here, and a spot node with one; others may be added."""
    for labels, gpus in ((ON_DEMAND, 3), (ON_DEMAND, 3), (SPOT, 1)):
        add(local_ray, labels, gpus)
    yield local_ray
    for node in list(local_ray.worker_nodes):
        local_ray.remove_node(node)


def add(cluster: "Cluster", labels: dict[str, str], gpus: int) -> None:
    """Start one more node and wait for it."""
    cluster.add_node(num_cpus=1, num_gpus=gpus, labels=labels, object_store_memory=80_000_000)


@pytest.fixture(scope="module")
def source(cluster: "Cluster", tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    stage = Stage(place(tmp_path_factory.mktemp("pools"), "source"), {}, {}, PAIR)
    return stage.once(make_source, ([ROWS],), TaskPlacement(cpus=0.5))


class Waits:
    """Records who works on a shard and on which GPU, and ends it once the file of its gate exists."""

    def __init__(self, folder: str, slow: str, resources: Resources) -> None:
        import ray

        self.folder, self.slow = Path(folder), slow
        context = ray.get_runtime_context()
        self.who = {"pid": os.getpid(), "node": context.get_node_id(), "gpus": ray.get_gpu_ids()}

    def __call__(self, table: pa.Table) -> pa.Table:
        (row,) = table["id"].to_pylist()
        gate = self.folder / ("open-slow" if row == self.slow else "open")
        note = {**self.who, "since": time.time()}
        whole = self.folder / f"{row}.{os.getpid()}.part"
        whole.write_text(json.dumps(note))
        whole.rename(self.folder / f"{row}.{os.getpid()}.begun")
        deadline = time.monotonic() + PATIENCE_S
        while not gate.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return table


@dataclass
class Seen:
    """Observations of the pool."""

    notes: list[dict[str, Any]] = field(default_factory=list)
    """For each shard: who worked on it, and since when."""
    grown: list[dict[str, Any]] = field(default_factory=list)
    """The same for the running shards when the pool was at its largest and none had ended."""
    taken: list[tuple[float, float]] = field(default_factory=list)
    """Times, and the number of GPUs taken at each."""
    spot: list[str] = field(default_factory=list)
    """Nodes; the first was there from the start."""
    shards: int = 0


@contextlib.contextmanager
def gpus_taken(found: list[tuple[float, float]]) -> Iterator[None]:
    """Record ten times a second how many of the cluster's GPUs are taken."""
    import ray

    over = threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            free = ray.available_resources().get("GPU", 0.0)
            found.append((time.time(), ray.cluster_resources().get("GPU", 0.0) - free))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()


def spot_nodes() -> list[str]:
    """Return the ids of the spot nodes."""
    import ray

    return [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Labels"].items() >= SPOT.items()]


@pytest.fixture(scope="module")
def seen(cluster: "Cluster", source: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Run a stage whose shards wait for four actors, two of them on a late node, and whose last shard waits for one.

    It must really be the last: a shard queued behind it in the same actor would wait forever.
    """
    root = tmp_path_factory.mktemp("halves")
    notes = root / "notes"
    notes.mkdir()
    slow = max(key for key, reason in fates(source).items() if reason is None)
    stage, seen = Stage(place(root, "pool"), {}, {"source": source}, PAIR), Seen()

    def begun() -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in notes.glob("*.begun")]

    def shrunk() -> bool:
        return seen.taken[-1][1] == HALVES.gpus_per_replica

    with ThreadPoolExecutor(1) as thread, gpus_taken(seen.taken):
        running = thread.submit(stage.run, Waits, (str(notes), slow), HALVES, source)
        try:
            wait_for(lambda: running.done() or len(begun()) == 2, "the second actor", PATIENCE_S)
            seen.spot = spot_nodes()
            add(cluster, SPOT, 1)
            wait_for(lambda: running.done() or len(begun()) == 4, "the fourth actor", PATIENCE_S)
            seen.grown = begun()
            (notes / "open").touch()
            wait_for(lambda: running.done() or shrunk(), "a pool of one actor", PATIENCE_S)
        finally:
            for gate in ("open", "open-slow"):
                (notes / gate).touch()
        seen.shards = len(running.result().commits)
    seen.notes, seen.spot = begun(), [*seen.spot, *(node for node in spot_nodes() if node not in seen.spot)]
    return seen


def test_every_shard_runs_once_and_only_on_spot_nodes(seen: Seen) -> None:
    assert len(seen.notes) == seen.shards > 30
    assert {note["node"] for note in seen.notes} == set(seen.spot)


def test_two_actors_with_half_a_gpu_each_share_one_at_the_same_time(seen: Seen) -> None:
    by_gpu: dict[tuple[str, int], set[int]] = defaultdict(set)
    for note in seen.grown:
        (gpu,) = note["gpus"]
        by_gpu[note["node"], gpu].add(note["pid"])
    assert [len(processes) for processes in by_gpu.values()] == [2, 2]


def test_the_pool_grows_from_its_minimum_to_its_maximum_and_shrinks_at_the_end(seen: Seen) -> None:
    assert next(gpus for _, gpus in seen.taken if gpus) == 0.5, "one actor at the start"
    assert max(gpus for _, gpus in seen.taken) == 2.0, "four at the most"
    most = max(at for at, gpus in seen.taken if gpus == 2.0)
    assert any(gpus == 0.5 for at, gpus in seen.taken if at > most), "one for the last shard"


def test_a_node_that_comes_late_is_used(seen: Seen) -> None:
    there, late = seen.spot
    assert min(note["since"] for note in seen.notes if note["node"] == late) > min(
        note["since"] for note in seen.notes if note["node"] == there
    )


class Replica:
    """Records its resources, and waits until all replicas have done so."""

    def __init__(self, folder: str, resources: Resources) -> None:
        import ray

        context = ray.get_runtime_context()
        given = {"node": context.get_node_id(), "gpus": ray.get_gpu_ids(), "tensor": resources.tensor_parallel}
        Path(folder, f"{context.get_actor_id()}.json").write_text(json.dumps(given))
        deadline = time.monotonic() + PATIENCE_S
        while len(list(Path(folder).iterdir())) < PAIRS.min_replicas and time.monotonic() < deadline:
            time.sleep(0.05)

    def __call__(self, table: pa.Table) -> pa.Table:
        return table


def test_a_replica_gets_all_of_its_gpus_on_one_node(source: Manifest, tmp_path: Path) -> None:
    (tmp_path / "replicas").mkdir()
    stage = Stage(place(tmp_path, "made"), {}, {"source": source}, PAIR)
    stage.run(Replica, (str(tmp_path / "replicas"),), PAIRS, source)
    given = [json.loads(path.read_text()) for path in (tmp_path / "replicas").iterdir()]
    assert [len(replica["gpus"]) for replica in given] == [2, 2]
    assert len({replica["node"] for replica in given}) == 2, "no node has four"
    assert [replica["tensor"] for replica in given] == [1, 1]
