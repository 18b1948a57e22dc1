"""A stage on a Ray of its own whose memory monitor is near its limit, and a row that eats memory; see test_poison.py.

python -m tests.memory FOLDER        prints the fates and the quarantine as JSON
"""

import json
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa

from humpback_ray.needs import Resources
from humpback_ray.placement import TaskPlacement
from humpback_ray.records import PAIR
from humpback_ray.stages.stage import Stage
from tests.stages.test_poison import POOL
from tests.stages.test_stage import fates, make_source, place

ROOM_BYTES, MOST_BYTES, PIECE_BYTES = 3 << 30, 8 << 30, 512 << 20


class EatsMemory:
    """Takes more and more memory over row 0014, until somebody stops it."""

    def __init__(self, resources: Resources) -> None:
        self.eaten: list[bytearray] = []

    def __call__(self, table: pa.Table) -> pa.Table:
        while "0014" in table["id"].to_pylist():
            if len(self.eaten) * PIECE_BYTES < MOST_BYTES:
                self.eaten.append(bytearray(b"x") * PIECE_BYTES)
            else:
                time.sleep(0.05)
        return table


def main(root: Path) -> None:
    """Start Ray, run the stage, write down what became of its rows."""
    import ray

    memory = psutil.virtual_memory()
    threshold = (memory.total - memory.available + ROOM_BYTES) / memory.total
    settings = {"memory_usage_threshold": threshold, "memory_monitor_refresh_ms": 100}
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _system_config=settings)
    source = Stage(place(root, "source"), {}, {}, PAIR).once(make_source, ([16],), TaskPlacement(cpus=0.5))
    stage = Stage(place(root, "eats"), {}, {"source": source}, PAIR)
    done = stage.run(EatsMemory, (), POOL.model_copy(update={"rows_per_shard": 2}), source)
    found = {"fates": fates(done), "quarantine": done.quarantine().to_pylist()}
    (root / "found.json").write_text(json.dumps(found))
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
