"""Which rows a shard loses while the machine has faults; without Ray, with the real actor's calls."""

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from humpback_ray import storage
from humpback_ray.placement import PoolPlacement
from humpback_ray.records import PAIR
from humpback_ray.stages import actor, isolation
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.errors import StageFailed
from humpback_ray.stages.isolation import Isolation
from humpback_ray.stages.ledger import Ledger
from humpback_ray.stages.lone import WorkerFailed
from humpback_ray.stages.pace import Pace
from humpback_ray.stages.shards import Shard
from tests.stages.test_stage import pairs

ROWS = 64
SHARD = Shard("000000", slices=(("f", 0, ROWS),))
Fault = Callable[[int, int, int], str | None]
"""Takes a call's number and a part's first and last row + 1; returns the error it fails with, or None."""


class Worker:
    """Replaces a `LoneWorker`: the calls are the real actor's, the faults are made up."""

    closed = False

    def __init__(self, ledger: Ledger, table: pa.Table, fault: Fault) -> None:
        self.table, self.fault, self.calls, self.processes = table, fault, 0, 1
        self.actor: Any = actor.LoneActor.__new__(actor.LoneActor)
        self.actor.ledger, self.actor.schema, self.actor._shard, self.actor._loaded = ledger, PAIR, SHARD, table

    def replace(self) -> None:
        self.processes += 1

    def call(self, method: str, *arguments: Any, limit_s: float | None, returns: int = 1) -> Any:
        if method == "count":
            return self.table.num_rows
        if method == "part":
            self.calls += 1
            _, first, last = arguments
            if fault := self.fault(self.calls, first, last):
                raise WorkerFailed(fault)
            return 1.0, self.table.slice(first, last - first)

        async def finish() -> Commit:
            async def made(part: pa.Table) -> pa.Table:
                return part

            text, attempt, parts, lost, before = arguments
            return await self.actor.finish(text, attempt, [made(part) for part in parts], lost, before)

        return asyncio.run(finish())


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses pass at once; their lengths are recorded."""
    slept: list[float] = []
    monkeypatch.setattr(isolation, "time", SimpleNamespace(sleep=slept.append, monotonic=lambda: sum(slept)))
    monkeypatch.setattr(isolation, "node_id", lambda: "n")
    return slept


def run(folder: Path, fault: Fault) -> Commit:
    ledger, placement = Ledger(str(folder), "s"), PoolPlacement()
    table = pairs(ROWS).set_column(5, "drop_reason", pa.nulls(ROWS, pa.string())).cast(PAIR)
    worker: Any = Worker(ledger, table, fault)
    Isolation("s", ledger, worker, Pace(placement, {SHARD.name: ROWS}), placement.max_quarantined_share).run(SHARD)
    commit = ledger.commit_of(SHARD.name)
    assert commit
    return commit


@pytest.mark.parametrize("calls", [1, 14, 30])
@pytest.mark.parametrize(
    "fault", ["OSError: [Errno 28] No space left on device", "ConnectionResetError: peer", "NodeDiedError: gone"]
)
def test_a_fault_of_the_machine_that_passes_costs_no_row(tmp_path: Path, calls: int, fault: str) -> None:
    commit = run(tmp_path, lambda number, *_: fault if number <= calls else None)
    assert (commit.rows, commit.kept) == (ROWS, ROWS)


def test_a_fault_of_the_machine_that_stays_stops_the_stage_and_costs_no_row(tmp_path: Path, clock: list[float]) -> None:
    with pytest.raises(StageFailed, match=r"because of a fault of the machine; last: OSError: \[Errno 28\]"):
        run(tmp_path, lambda *_: "OSError: [Errno 28] No space left on device")
    assert sum(clock) > isolation.PATIENCE_S
    assert not Ledger(str(tmp_path), "").committed()


def test_a_full_root_is_reported_at_once_and_costs_no_row(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: int) -> str:
        monkeypatch.setattr(os, "fsync", full)
        return "OSError: [Errno 28] No space left on device"

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(storage.StorageError, match=f"cannot write to {tmp_path}: No space left on device; make room"):
        run(tmp_path, fault)
    assert clock == []
    assert not Ledger(str(tmp_path), "").committed()


def test_a_changed_input_is_reported_at_once(tmp_path: Path, clock: list[float]) -> None:
    with pytest.raises(StageFailed, match=r"last: InputChanged: \[Errno 5\] a.warc"):
        run(tmp_path, lambda *_: "InputChanged: [Errno 5] a.warc")
    assert clock == []


def test_a_fault_of_another_kind_that_passes_costs_no_row_either(tmp_path: Path) -> None:
    commit = run(tmp_path, lambda number, *_: "RuntimeError: CUDA error" if number <= 8 else None)
    assert (commit.rows, commit.kept) == (ROWS, ROWS)


def test_a_row_is_given_up_only_if_a_good_one_works_right_after_it(tmp_path: Path) -> None:
    ill = range(20, 26)  # calls during which the whole machine fails, while row 5 is judged

    def fault(number: int, first: int, last: int) -> str | None:
        return "RuntimeError: cannot" if first <= 5 < last or number in ill else None

    commit = run(tmp_path, fault)
    assert (commit.rows, commit.kept, commit.drops) == (ROWS, ROWS - 1, {"quarantined": 1})


def test_if_a_good_row_keeps_failing_too_no_row_is_lost(tmp_path: Path) -> None:
    def fault(number: int, first: int, last: int) -> str | None:
        return "RuntimeError: cannot" if first <= 5 < last or number > 13 else None

    with pytest.raises(StageFailed, match="failed with row 5 and with one that worked before"):
        run(tmp_path, fault)
    assert not Ledger(str(tmp_path), "").committed()
