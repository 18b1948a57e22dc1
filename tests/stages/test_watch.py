"""The watch over a pass finds slow attempts at the same cost for any number of shards."""

import time
from pathlib import Path

from humpback_ray.placement import PoolPlacement
from humpback_ray.stages.ledger import Ledger
from humpback_ray.stages.pace import Pace
from humpback_ray.stages.shards import Shard
from humpback_ray.stages.watch import Watch

SHARDS = [f"{number:06d}" for number in range(4)]
MANY = 20_000
PATIENCE_S = 60


def watch(folder: Path, count: int) -> Watch:
    shards = [Shard(f"{number:06d}", slices=(("f", 0, 10),)) for number in range(count)]
    placement = PoolPlacement(max_replicas=100, limit_floor_s=4)
    pace = Pace(placement, {shard.name: 10 for shard in shards})
    ledger = Ledger(str(folder), "first")
    return Watch("stage", ledger, shards, pace)


def test_the_events_of_twenty_thousand_shards_cost_a_moment_each(tmp_path: Path) -> None:
    """With a recount at every event, they took minutes."""
    watched = watch(tmp_path, MANY)
    names = list(watched.shards)
    since = time.process_time()
    watched.flights.note([(name, 1) for name in names], [], (begun := time.monotonic()))
    for number, name in enumerate(names[: MANY - 300]):
        watched.committed(name, 5.0 + number % 7)
    for flight, seen in watched.flights.on_their_way():
        assert seen == begun
        assert watched.pace.limit_s(watched.pace.weights[flight[0]]) > 0
        watched.concern()
    assert watched.flights.open_shards == 300
    assert time.process_time() - since < 10
