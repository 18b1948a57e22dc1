"""A stage on a cluster of nodes with GPUs that are only said to be there, spot and on-demand; see test_pools.py.

python -m tests.pools FOLDER        writes found.json: which process worked where and when, and how many GPUs were taken

The pool may have four actors of half a GPU. There is one spot node with one GPU at first, and a second one after a
while; the on-demand node has GPUs enough from the start, and none of them may be used.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from humpback_ray.placement import PoolPlacement, Resources, TaskPlacement
from humpback_ray.records import PAIR
from humpback_ray.stage import Stage
from tests.jobs.heads import wait_for
from tests.test_stage import fates, make_source, place

SPOT, ON_DEMAND = ({"ray.io/market-type": name} for name in ("spot", "on-demand"))
ROWS = 80
SLOW_S = 15
"""How long one of the last shards takes; the others take a second."""
POOL = PoolPlacement(
    min_replicas=1, max_replicas=4, cpus_per_replica=0.1, gpus_per_replica=0.5, labels=SPOT, rows_per_shard=1,
    shards_in_flight=1, straggler_factor=None,
)  # fmt: skip


class Notes:
    """Takes its time over a shard, and notes who worked on it, when, where and on which GPU."""

    def __init__(self, folder: str, slow: str, resources: Resources) -> None:
        import ray

        self.folder, self.slow = Path(folder), slow
        context = ray.get_runtime_context()
        self.who = {"pid": os.getpid(), "node": context.get_node_id(), "gpus": ray.get_gpu_ids()}

    def __call__(self, table: pa.Table) -> pa.Table:
        rows, since = table["id"].to_pylist(), time.time()
        time.sleep(SLOW_S if self.slow in rows else 1)
        note = {**self.who, "since": since, "until": time.time()}
        (self.folder / f"{rows[0]}.json").write_text(json.dumps(note))
        return table


@contextlib.contextmanager
def gpus_taken(found: list[tuple[float, float]]) -> Iterator[None]:
    """Note twice a second how many of the cluster's GPUs are taken."""
    import ray

    over = threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            free = ray.available_resources().get("GPU", 0.0)
            found.append((time.time(), ray.cluster_resources().get("GPU", 0.0) - free))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()


def main(root: Path) -> None:
    """Start the nodes, run the stage, add a node on the way, write down what was seen."""
    import ray
    from ray.cluster_utils import Cluster

    small: dict[str, Any] = {"object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False, **small})
    cluster.add_node(num_cpus=1, num_gpus=4, labels=ON_DEMAND, **small)
    cluster.add_node(num_cpus=1, num_gpus=1, labels=SPOT, **small)
    ray.init(address=cluster.address, log_to_driver=False)
    source = Stage(place(root, "source"), {}, {}, PAIR).once(make_source, ([ROWS],), TaskPlacement(cpus=0.5))
    slow = sorted(key for key, reason in fates(source).items() if reason is None)[-2]
    stage, taken = Stage(place(root, "pool"), {}, {"source": source}, PAIR), []
    notes = root / "notes"
    notes.mkdir()
    with ThreadPoolExecutor(1) as thread, gpus_taken(taken):
        running = thread.submit(stage.run, Notes, (str(notes), slow), POOL, source)
        wait_for(lambda: len(list(notes.iterdir())) >= 4 or running.done(), "the fourth shard", 300)
        first = spot_nodes()
        cluster.add_node(num_cpus=1, num_gpus=1, labels=SPOT, **small)
        done = running.result()
    found = {
        "shards": len(done.commits), "spot": spot_nodes(), "first": first, "taken": taken, "slow": slow,
        "notes": {path.stem: json.loads(path.read_text()) for path in notes.iterdir()},
    }  # fmt: skip
    (root / "found.json").write_text(json.dumps(found))
    ray.shutdown()
    cluster.shutdown()


def spot_nodes() -> list[str]:
    """Return the ids of the spot nodes."""
    import ray

    return [node["NodeID"] for node in ray.nodes() if node["Labels"].items() >= SPOT.items()]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
