"""A pool whose replicas have two GPUs each, on a cluster of two nodes with three made-up ones; see test_placement.py.

python -m tests.min_replicas FOLDER        writes down which GPUs of which node each replica got
"""

import json
import sys
import time
from pathlib import Path

import pyarrow as pa

from humpback_ray.placement import PoolPlacement, Resources, TaskPlacement
from humpback_ray.records import PAIR
from humpback_ray.stage import Stage
from tests.test_stage import make_source, place

POOL = PoolPlacement(
    min_replicas=2, cpus_per_replica=0.5, gpus_per_replica=2, rows_per_shard=2, pipeline_parallel=2, memory_share=0.8
)


class Replica:
    """Writes down what it was given, and waits until all replicas have done so."""

    def __init__(self, folder: str, resources: Resources) -> None:
        import ray

        node = ray.get_runtime_context().get_node_id()
        given = {"node": node, "gpus": ray.get_gpu_ids(), "tensor": resources.tensor_parallel}
        Path(folder, f"{ray.get_runtime_context().get_actor_id()}.json").write_text(json.dumps(given))
        deadline = time.monotonic() + 100
        while len(list(Path(folder).iterdir())) < POOL.min_replicas and time.monotonic() < deadline:
            time.sleep(0.1)

    def __call__(self, table: pa.Table) -> pa.Table:
        return table


def main(root: Path) -> None:
    """Start the cluster and run the stage."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=1, num_gpus=3)
    ray.init(address=cluster.address, log_to_driver=False)
    source = Stage(place(root, "source"), {}, {}, PAIR).once(make_source, ([9],), TaskPlacement(cpus=0.5))
    (root / "replicas").mkdir()
    Stage(place(root, "made"), {}, {"source": source}, PAIR).run(Replica, (str(root / "replicas"),), POOL, source)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
