"""A pass acts on the findings of its watch, counts every commit once, and ends everything it started; without Ray."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.placement import PoolPlacement
from humpback_ray.records import PAIR
from humpback_ray.stages import processes
from humpback_ray.stages.actor import Report
from humpback_ray.stages.ledger import Ledger
from humpback_ray.stages.lone import WorkerFailed
from humpback_ray.stages.pace import Pace
from humpback_ray.stages.passes import SHARDS_PER_BLOCK, SINGLE_BLOCKS, Pass, Work, groups
from humpback_ray.stages.progress import Progress
from humpback_ray.stages.shards import Shard
from tests.conftest import Said
from tests.jobs.heads import wait_for

PATIENCE_S = 60
ROWS = 10


@given(st.integers(0, 3 * SINGLE_BLOCKS))
def test_groups_hold_every_shard_once_in_order_and_end_with_single_ones(count: int) -> None:
    shards = [Shard(str(number)) for number in range(count)]
    made = list(groups(shards))
    assert [shard for group in made for shard in group] == shards
    assert all(1 <= len(group) <= SHARDS_PER_BLOCK for group in made)
    assert all(len(group) == 1 for group in made[-min(count, SINGLE_BLOCKS) :])


@dataclass
class Lone:
    """Replaces a lone actor: answers when told to, and fails when closed."""

    away_from: str | None
    answer: Report | None = None
    closed: bool = False
    told: threading.Event = field(default_factory=threading.Event)

    def call(self, method: str, text: str, second: bool, limit_s: float | None) -> Report:
        assert (method, second) == ("work", True)
        assert self.told.wait(PATIENCE_S)
        if self.answer is None:
            raise WorkerFailed("the worker was stopped")
        return self.answer

    def close(self) -> None:
        self.closed = True
        self.told.set()


@dataclass(frozen=True)
class LoneWork(Work):
    """Work whose lone actors are stand-ins."""

    lone: list[Lone] = field(default_factory=list)

    def lone_worker(self, avoid_node: str | None = None) -> Any:
        self.lone.append(Lone(avoid_node))
        return self.lone[-1]


class Results:
    """Replaces a data set whose executor runs until it is shut down; yields the reports that a test put there."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.stopped = 0
        self._current_executor = SimpleNamespace(shutdown=self.shutdown)

    def shutdown(self, force: bool) -> None:
        assert force
        self.stopped += 1

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        for report in self.reports:
            yield pa.Table.from_pylist([dict(report)])


def begun(folder: Path, count: int, placement: PoolPlacement | None = None) -> tuple[Pass, LoneWork, Results]:
    """A pass over shards with one running attempt each, two in each process."""
    shards = [Shard(f"{number:06d}", slices=(("f", 0, ROWS),)) for number in range(count)]
    rows = {shard.name: ROWS for shard in shards}
    ledger, placement = Ledger(str(folder), "first"), placement or PoolPlacement(limit_floor_s=4)
    work = LoneWork(
        "stage", ledger, PAIR, type, (), placement, Progress("stage", count * ROWS), rows, Pace(placement, rows)
    )
    results: Any = Results()
    made = Pass(work, shards, results)
    for number, shard in enumerate(shards):
        ledger.begin(shard.name, node_id=f"node {number // 2}")
    return made, work, results


def report(shard: str, **more: Any) -> Report:
    made: Any = {"shard": shard, "error": "", "held_by": "", "tokens": 0, "seconds": 1.0, **more}
    return made


def commit(work: Work, shard: str) -> None:
    """Put a commit where the ledger lists them."""
    Path(work.ledger.at("commits")).mkdir(exist_ok=True)
    Path(work.ledger.at("commits", f"{shard}.json")).write_text("{}")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The watch's clock, which shows `now`."""
    clock = SimpleNamespace(now=100.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr("humpback_ray.stages.watch.time", clock)
    return clock


def test_a_commit_that_is_both_listed_and_reported_counts_once(tmp_path: Path) -> None:
    running, work, results = begun(tmp_path, 3)
    commit(work, "000001")
    running.look()
    results.reports = [
        report("000001", tokens=5), report("000000", tokens=7), report("000000"), report("000002", error="OSError: x")
    ]  # fmt: skip
    running.take_reports()
    assert (work.progress.done, work.progress.tokens) == (2 * ROWS, 12)
    assert running.watch.flights.open_shards == 0
    assert running.left_to_others == 0


def test_shards_held_by_other_drivers_are_counted_separately(tmp_path: Path) -> None:
    running, work, results = begun(tmp_path, 3)
    results.reports = [report("000000", held_by="theirs"), report("000002", held_by="theirs")]
    running.take_reports()
    assert (running.left_to_others, work.progress.done, running.watch.flights.open_shards) == (2, 0, 1)


def test_an_attempt_over_its_limit_fails_its_process_ends_and_its_neighbor_is_not_charged(
    tmp_path: Path, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []
    monkeypatch.setattr(processes, "end", lambda *process: ended.append(process))
    placement = PoolPlacement(limit_floor_s=4, limit_factor=10, straggler_factor=None)
    running, work, _ = begun(tmp_path, 5, placement)
    assert isinstance(running.watch.pace.weights, dict)
    running.watch.pace.weights["000002"] = 1.0  # ten times as small as the others
    running.watch.pace.ended(1.0, 1.0)
    running.look()
    clock.now += 9.0
    running.look()
    assert ended == []
    clock.now += 30.0
    running.look()
    [(node, _, _)] = ended
    assert node == "node 1"
    found = {shard: work.ledger.attempts(shard)[0] for shard in running.watch.shards}
    assert found["000002"].get("error") == "still running after 39 s; the limit for this shard is 10 s"
    assert found["000002"].get("charged") is True
    assert found["000003"].get("error") == "its process was ended because of shard 000002"
    assert found["000003"].get("charged") is False
    assert not any("error" in found[shard] for shard in ("000000", "000001", "000004"))
    running.look()
    assert len(ended) == 1, "a failed attempt is no longer running"


def second_try(folder: Path, clock: SimpleNamespace) -> tuple[Pass, LoneWork, Results]:
    """A pass in which all but shard 000003 are committed, and that one is a straggler."""
    made = begun(folder, 4, PoolPlacement(limit_floor_s=4, limit_factor=1000.0, straggler_factor=3.0))
    running, _, results = made
    running.look()
    results.reports = [report(f"00000{number}") for number in range(3)]
    running.take_reports()
    assert results.stopped == 0
    clock.now += 100.0
    return made


def test_a_straggler_is_started_again_and_its_commit_ends_the_pass(tmp_path: Path, clock: SimpleNamespace) -> None:
    running, work, results = second_try(tmp_path, clock)
    with running:
        running.look()
        running.look()
        [lone] = work.lone
        assert lone.away_from == "node 1"
        assert results.stopped == 0
        lone.answer = report("000003", tokens=3)
        lone.told.set()
        wait_for(lambda: results.stopped, "the end of the pass", PATIENCE_S)
    assert work.progress.done == 4 * ROWS
    assert lone.closed


def test_second_tries_end_with_the_pass_and_none_starts_after_it(tmp_path: Path, clock: SimpleNamespace) -> None:
    running, work, results = second_try(tmp_path, clock)
    with contextlib.suppress(KeyboardInterrupt), running:
        running.look()
        raise KeyboardInterrupt
    assert results.stopped == 1
    assert [lone.closed for lone in work.lone] == [True]

    late, _, _ = second_try(tmp_path / "late", clock)
    with late:
        pass
    started = threading.active_count()
    late.look()
    assert threading.active_count() == started


def test_a_second_try_that_fails_leaves_the_pass_to_the_first(
    tmp_path: Path, clock: SimpleNamespace, said: Said
) -> None:
    running, work, results = second_try(tmp_path, clock)
    with running:
        running.look()
        work.lone[0].told.set()
        words = "stage: shard 000003, started again: the worker was stopped"
        wait_for(lambda: any(words in text for _, text in said.records), "the words", PATIENCE_S)
        assert results.stopped == 0


def test_watching_survives_stray_files_and_unexpected_errors(
    tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, work, _ = begun(tmp_path, 2)
    with running:
        for name in (".nfs0000012", "notes.json", "1.tmp", "0001.json.swp"):
            (tmp_path / "attempts/000000" / name).write_text("")
        (tmp_path / "commits").mkdir()
        (tmp_path / "commits/.DS_Store").write_text("")
        with monkeypatch.context() as patch:
            patch.setattr(running.watch.flights, "commit", None)
            wait_for(lambda: said.records, "a complaint", PATIENCE_S)
        work.ledger.begin("000001")
        wait_for(lambda: ("000001", 2) in dict(running.watch.flights.on_their_way()), "the attempt", PATIENCE_S)
    assert "watching the attempts failed and will be tried again" in said.records[0][1]
