"""A shard that runs far beyond the median is started again elsewhere; the first commit wins and ends the pass."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from humpback_ray.needs import Resources
from humpback_ray.placement import PoolPlacement, TaskPlacement
from humpback_ray.records import PAIR
from humpback_ray.stages.ledger import Ledger
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.pace import Pace
from humpback_ray.stages.shards import Shard
from humpback_ray.stages.stage import Stage
from humpback_ray.stages.watch import Watch
from tests.stages.test_stage import fates, make_source, place

POOL = PoolPlacement(rows_per_shard=5, cpus_per_replica=0.5, min_replicas=2, shards_in_flight=1, limit_floor_s=30)
PATIENCE_S = 240


class SlowAtFirst:
    """The first process that sees row 0012 waits until a file exists, then records that it was released."""

    def __init__(self, folder: str, resources: Resources) -> None:
        import pyarrow.parquet  # noqa: F401 import it now, so the first shard does not pay for it

        self.folder = Path(folder)

    def __call__(self, table: pa.Table) -> pa.Table:
        if "0012" in table["id"].to_pylist():
            marker = self.folder / "seen"
            first = not marker.exists()
            with marker.open("a") as file:
                file.write(f"{os.getpid()}\n")
            deadline = time.monotonic() + PATIENCE_S
            while first and not (self.folder / "let go").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            if first:
                (self.folder / "went on").touch()
        return table


@pytest.mark.ray
def test_a_straggler_is_started_again_and_the_pass_does_not_wait_for_it(local_ray: None, tmp_path: Path) -> None:
    source: Manifest = Stage(place(tmp_path, "source"), {}, {}, PAIR).once(
        make_source, ([25],), TaskPlacement(cpus=0.5)
    )
    stage = Stage(place(tmp_path, "slow"), {}, {"source": source}, PAIR)
    done = stage.run(SlowAtFirst, (str(tmp_path),), POOL, source)
    assert not (tmp_path / "went on").exists(), "the pass did not wait for the slow one"
    assert fates(done) == {key: None for key, reason in fates(source).items() if reason is None}
    starts = (tmp_path / "seen").read_text().split()
    assert len(set(starts)) == 2
    assert done.attempts == len(done.commits) + 1


class Clock:
    """Replaces the module `time` of the watch; shows the time that the test sets."""

    now = 1.0

    def monotonic(self) -> float:
        return self.now


@contextmanager
def watched(folder: Path, factor: float | None) -> Iterator[Callable[[float], list[tuple[str, str | None]]]]:
    """Watch a pass over four shards, two of which took a second; yield a look: time → shards to start again."""
    ledger, clock = Ledger(str(folder), "first"), Clock()
    shards = [Shard(f"{number:06d}") for number in range(4)]
    placement = POOL.model_copy(update={"straggler_factor": factor, "limit_floor_s": 4.0, "limit_factor": 1000.0})
    watch = Watch("slow", ledger, shards, Pace(placement, {shard.name: 5.0 for shard in shards}))
    for shard in shards:
        ledger.begin(shard.name, node_id=f"node of {shard.name}")

    def look(now: float) -> list[tuple[str, str | None]]:
        clock.now = now
        watch.look()
        return [(found.shard.name, found.away_from) for found in watch.stragglers()]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("humpback_ray.stages.watch.time", clock)
        watch.look()
        for shard in shards[:2]:
            watch.committed(shard.name, 1.0)
        yield look


def test_a_shard_is_a_straggler_after_three_times_the_median_and_is_started_again_elsewhere(tmp_path: Path) -> None:
    with watched(tmp_path, factor=3.0) as look:
        assert look(3.9) == []
        assert look(4.1) == [("000002", "node of 000002"), ("000003", "node of 000003")]
        assert look(900.0) == [], "once"


def test_no_shard_is_a_straggler_if_that_is_off(tmp_path: Path) -> None:
    with watched(tmp_path, factor=None) as look:
        assert look(900.0) == []
