"""Two drivers on one stage: each leaves the other's shards alone while it is alive, and takes them once it is dead."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from humpback_ray import storage
from humpback_ray.placement import PoolPlacement, TaskPlacement
from humpback_ray.records import PAIR
from humpback_ray.stages import drivers, pool
from humpback_ray.stages.drivers import Others, Presence, beat_uri
from humpback_ray.stages.ledger import Ledger
from humpback_ray.stages.manifest import Manifest, read_manifest
from humpback_ray.stages.passes import in_order
from humpback_ray.stages.shards import Shard
from humpback_ray.stages.stage import Stage
from tests.jobs.heads import wait_for
from tests.stages.test_stage import Shout, fates, make_source, place

REPOSITORY = Path(__file__).parents[2]
POOL = PoolPlacement(rows_per_shard=5, cpus_per_replica=0.5, shards_in_flight=1, straggler_factor=None)
PATIENCE_S = 240


def attempt(submission: str, number: int = 1, **more: Any) -> dict[str, Any]:
    return {"submission": submission, "attempt": number, **more}


@pytest.mark.parametrize(
    ("past", "holder"),
    [
        ([], ""),
        ([attempt("mine")], ""),
        ([attempt("theirs")], "theirs"),
        ([attempt("dead")], ""),
        ([attempt("theirs", error="ValueError", charged=True)], ""),
        ([attempt("theirs"), attempt("mine", 2)], ""),
        ([attempt("mine"), attempt("theirs", 2)], "theirs"),
    ],
)
def test_a_shard_is_held_if_its_latest_attempt_has_not_ended_and_that_driver_is_alive(
    past: list[dict[str, Any]], holder: str, tmp_path: Path
) -> None:
    with Presence(str(tmp_path), "theirs"):
        assert Others(str(tmp_path), "mine").holder(past) == holder


def test_a_driver_is_alive_while_its_beat_changes_and_dead_once_that_is_stale_or_gone(tmp_path: Path) -> None:
    others, patient = Others(str(tmp_path), "mine", stale_s=0.5), Others(str(tmp_path), "mine", stale_s=600)
    assert others.there() == []
    with Presence(str(tmp_path), "theirs", beat_s=0.02) as presence:
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            assert others.there() == ["theirs"]
        presence.stop()
        assert patient.lives("theirs")
        wait_for(lambda: not others.lives("theirs"), "its death", PATIENCE_S)
        assert others.dead() == ["theirs"]
        assert not Others(str(tmp_path), "mine", dead=["theirs"], stale_s=600).lives("theirs")
    assert not patient.lives("theirs"), "it has ended and took its beat along"


def test_a_driver_whose_process_on_this_machine_was_killed_is_dead_at_once(tmp_path: Path) -> None:
    beating = multiprocessing.get_context("spawn").Process(target=beat_for_ever, args=(str(tmp_path),))
    beating.start()
    others = Others(str(tmp_path), "mine", stale_s=600)
    wait_for(lambda: storage.exists(beat_uri(str(tmp_path), "theirs")), "the beat", PATIENCE_S)
    assert others.lives("theirs")
    beating.kill()
    wait_for(lambda: not others.lives("theirs"), "its death", PATIENCE_S)
    beating.join()
    assert not others.lives("theirs")


def beat_for_ever(stage: str) -> None:
    with Presence(stage, "theirs"):
        time.sleep(PATIENCE_S)


def test_each_submission_has_its_own_order_and_always_the_same() -> None:
    shards = [Shard(f"{number:06d}") for number in range(50)]
    mine, theirs = in_order(shards, "mine"), in_order(shards, "theirs")
    assert sorted(mine, key=lambda shard: shard.name) == shards
    assert mine != theirs
    assert mine == in_order(shards, "mine")


@pytest.fixture(scope="module")
def source(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    stage = Stage(place(tmp_path_factory.mktemp("drivers"), "source"), {}, {}, PAIR)
    return stage.once(make_source, ([40],), TaskPlacement(cpus=0.5))


@pytest.mark.ray
def test_a_driver_leaves_anothers_shards_alone_and_takes_them_once_its_beat_is_stale(
    source: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drivers, "STALE_S", 3.0)
    monkeypatch.setattr(pool, "HELD_EVERY_S", 0.2)
    stage = Stage(place(tmp_path, "shared"), {}, {"source": source}, PAIR)
    theirs = Ledger(stage.place.uri, "theirs")
    with Presence(stage.place.uri, "theirs", beat_s=0.1) as other, ThreadPoolExecutor(1) as thread:
        for shard in ("000001", "000004"):
            theirs.begin(shard)
        running = thread.submit(stage.run, Shout, (), POOL, source)
        shards = set(map("{:06d}".format, range(7)))
        free = shards - {"000001", "000004"}
        wait_for(lambda: running.done() or stage.ledger.committed() >= free, "the free shards", PATIENCE_S)
        assert stage.ledger.committed() == free
        assert not running.done(), "it waits for the other's"
        theirs_now = len(theirs.attempts("000001"))
        assert theirs_now == 1
        other.stop()
        done = running.result(PATIENCE_S)
    assert done.attempts == len(shards) + 2, "only what the dead one had begun was begun again"
    assert set(fates(done)) == {key for key, reason in fates(source).items() if reason is None}


class Slow(Shout):
    async def __call__(self, table: pa.Table) -> pa.Table:
        import asyncio

        await asyncio.sleep(1)
        return await super().__call__(table)


DRIVER = """
import sys, time
from pathlib import Path
import ray
from humpback_ray.stages.manifest import read_manifest
from humpback_ray.stages.stage import Stage
from humpback_ray.records import PAIR
from tests.stages.test_drivers import POOL, Slow
from tests.stages.test_stage import place

root, submission, address = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
ray.init(address=address, log_to_driver=False)
source = read_manifest(str(root / "source"))
(root / f"ready-{submission}").touch()
while not (root / "go").exists():
    time.sleep(0.05)
Stage(place(root, "shared", submission), {}, {"source": source}, PAIR).run(Slow, (), POOL, source)
"""


@pytest.fixture
def pair(local_ray: Any, tmp_path: Path) -> "Iterator[list[subprocess.Popen[bytes]]]":
    """Two drivers started on one stage of `tmp_path`."""
    Stage(place(tmp_path, "source"), {}, {}, PAIR).once(make_source, ([100],), TaskPlacement(cpus=0.5))
    with (tmp_path / "log").open("w") as log:
        both = [
            subprocess.Popen(
                [sys.executable, "-c", DRIVER, str(tmp_path), name, local_ray.address],
                cwd=REPOSITORY, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )
            for name in ("one", "other")
        ]  # fmt: skip
        try:
            ready = [tmp_path / "ready-one", tmp_path / "ready-other"]
            wait_for(lambda: all(path.exists() for path in ready), "the drivers", PATIENCE_S)
            (tmp_path / "go").touch()
            yield both
        finally:
            for process in both:
                process.kill()
                process.wait()
            print((tmp_path / "log").read_text())


def begun_by(root: Path) -> Counter[str]:
    records = [json.loads(path.read_text()) for path in (root / "shared/attempts").glob("*/*.json")]
    return Counter(record["submission"] for record in records if "submission" in record)


@pytest.mark.ray
@pytest.mark.chaos
def test_two_drivers_share_the_shards_and_do_hardly_any_of_them_twice(
    pair: "list[subprocess.Popen[bytes]]", tmp_path: Path
) -> None:
    assert [process.wait(PATIENCE_S) for process in pair] == [0, 0]
    made, tried = read_manifest(str(tmp_path / "shared")), begun_by(tmp_path)
    assert made is not None
    shards = len(made.commits)
    assert shards == 18
    assert sum(tried.values()) <= shards + 1
    assert min(tried.values()) >= shards // 4, "together they are faster than one"


@pytest.mark.ray
@pytest.mark.chaos
def test_when_one_of_two_drivers_is_killed_the_other_finishes_the_stage(
    pair: "list[subprocess.Popen[bytes]]", tmp_path: Path
) -> None:
    wait_for(lambda: len(begun_by(tmp_path)) == 2, "both at work", PATIENCE_S)
    pair[0].kill()
    assert pair[1].wait(PATIENCE_S) == 0
    made = read_manifest(str(tmp_path / "shared"))
    assert made is not None
    assert len({commit.shard for commit in made.commits}) == len(made.commits) == 18
