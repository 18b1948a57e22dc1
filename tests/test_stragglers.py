"""A shard that runs far beyond the median is started once more elsewhere; the first commit wins and ends the pass."""

import os
import time
from pathlib import Path

import pyarrow as pa
import pytest

from humpback_ray.ledger import Manifest
from humpback_ray.placement import PoolPlacement, Resources, TaskPlacement
from humpback_ray.records import PAIR
from humpback_ray.stage import Stage
from tests.test_stage import fates, make_source, place

pytestmark = pytest.mark.ray
POOL = PoolPlacement(rows_per_shard=5, cpus_per_replica=0.5, min_replicas=2, shards_in_flight=1, limit_floor_s=30)


class SlowAtFirst:
    """The first process that sees row 0012 sleeps over it."""

    def __init__(self, folder: str, seconds: float, resources: Resources) -> None:
        self.folder, self.seconds = Path(folder), seconds

    def __call__(self, table: pa.Table) -> pa.Table:
        if "0012" in table["id"].to_pylist():
            marker = self.folder / "seen"
            first = not marker.exists()
            with marker.open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(self.seconds if first else 0)
        return table


@pytest.mark.parametrize(("factor", "seconds"), [(3.0, 60), (None, 8)])
def test_a_straggler_is_started_once_more_unless_that_is_off(
    local_ray: None, tmp_path: Path, factor: float | None, seconds: float
) -> None:
    source: Manifest = Stage(place(tmp_path, "source"), {}, {}, PAIR).once(
        make_source, ([25],), TaskPlacement(cpus=0.5)
    )
    stage = Stage(place(tmp_path, "slow"), {}, {"source": source}, PAIR)
    since = time.monotonic()
    changes = {"straggler_factor": factor, "limit_floor_s": 30 if factor else 300}
    done = stage.run(SlowAtFirst, (str(tmp_path), seconds), POOL.model_copy(update=changes), source)
    took_s = time.monotonic() - since
    assert fates(done) == {key: None for key, reason in fates(source).items() if reason is None}
    starts = (tmp_path / "seen").read_text().split()
    if factor is None:
        assert len(starts) == 1
        assert took_s > seconds, "it was waited for"
    else:
        assert len(set(starts)) == 2
        assert done.attempts == len(done.commits) + 1
        assert took_s < seconds, "the pass did not wait for the slow one"
