"""The code that runs in an actor: the ledger around a stage's worker.

Ray Data feeds shards to a `ShardActor`, several at a time on one event loop. `LoneActor` does the same outside a pool
for one shard: a straggler's second try, or a shard that is taken apart (isolation.py).

    commit read → attempt recorded → shard loaded → rows made → rows uploaded → commit created
"""

import asyncio
import inspect
import json
import os
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypedDict, cast

import pyarrow as pa
import pyarrow.compute as pc

from humpback_ray import storage
from humpback_ray.placement import PoolPlacement
from humpback_ray.records import QUARANTINE
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.drivers import Others
from humpback_ray.stages.ledger import Attempt, AttemptRecord, Ledger, charged
from humpback_ray.stages.nodes import alive_nodes, node_id
from humpback_ray.stages.processes import Dead, Process, answer_when_ended
from humpback_ray.stages.provenance import node
from humpback_ray.stages.shards import Shard
from humpback_ray.stages.tables import blank_row, check_same_ids, conform, is_quarantined
from humpback_ray.storage import InputFile, check_unchanged, steps

TEXT_CHARS = 4000
"""Number of characters kept of a quarantined row's JSON."""


class _Held(Exception):
    """Another live driver is working on the shard."""

    def __init__(self, by: str) -> None:
        super().__init__(by)
        self.by = by


class Report(TypedDict):
    """The result of a shard, as an actor reports it to the driver."""

    shard: str
    error: str
    """"" if the shard is committed or held."""
    held_by: str
    """Another submission that is working on the shard; "" if none is."""
    tokens: int
    seconds: float


class TableWorker(Protocol):
    """A worker on the rows of a shard."""

    def __call__(self, rows: pa.Table, /) -> pa.Table | Awaitable[pa.Table]:
        """Return one row of the stage's schema for each row, with the same id."""
        ...


class FileWorker(Protocol):
    """A worker on input files that can also read parts of a file, so a file can be taken apart."""

    def __call__(self, file: InputFile, /) -> pa.Table:
        """Return the rows of a whole file."""
        ...

    def count(self, file: InputFile) -> int:
        """Return the number of records in a file."""
        ...

    def part(self, file: InputFile, first: int, last: int) -> pa.Table:
        """Return the rows of the records `first` to `last` (exclusive), as if nothing came before."""
        ...

    def merge(self, parts: pa.Table) -> pa.Table:
        """Turn the rows of consecutive parts into the rows of one file."""
        ...

    def unread(self, file: InputFile, index: int) -> tuple[dict[str, Any], str]:
        """Return the row for a record that no worker survives, without its reason, and the record as text."""
        ...


Worker = TableWorker | FileWorker


class ShardActor:
    """One actor of a pool.

    Args:
        ledger: of the stage.
        schema: of its tables.
        placement: of the pool.
        worker: the stage's class, built here with `arguments` and the actor's resources.
        arguments: picklable.
        dead: submissions whose drivers the driver knows to be dead, so the actor need not check.
    """

    def __init__(
        self,
        ledger: Ledger,
        schema: pa.Schema,
        placement: PoolPlacement,
        worker: Callable[..., Worker],
        arguments: tuple[Any, ...],
        dead: Sequence[str] = (),
    ) -> None:
        self.ledger, self.schema, self.placement = ledger, schema, placement
        self.others = Others(ledger.uri, ledger.submission, dead)
        answer_when_ended()
        self.worker = worker(*arguments, replace(placement.resources, agree=ledger.agree))

    async def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Work on the shards of a block, one after another; return the columns of their reports."""
        results = [await self._report(str(text)) for text in batch["shards"][0]]
        return {name: [result[name] for result in results] for name in results[0]}

    async def _report(self, text: str) -> Report:
        nothing: Report = {"shard": Shard.parse(text).name, "error": "", "held_by": "", "tokens": 0, "seconds": 0.0}
        try:
            return await self.work(text)
        except _Held as held:
            return {**nothing, "held_by": held.by}
        except Exception as error:  # noqa: BLE001 an error in a worker costs its shard an attempt, not its block
            return {**nothing, "error": f"{type(error).__name__}: {error}"[:500]}

    async def work(self, text: str, second: bool = False) -> Report:
        """Commit one shard, given as JSON; with `second`, even if another attempt is running.

        Raises:
            ShardExhausted: the shard was tried as often as the placement allows.
        """
        shard = Shard.parse(text)
        commit = await asyncio.to_thread(self.ledger.commit_of, shard.name)
        if commit is None:
            attempt = await asyncio.to_thread(self._begin, shard.name, second)
            commit = await self._work(shard, attempt)
        return {
            "shard": shard.name, "error": "", "held_by": "", "tokens": commit.tokens, "seconds": commit.seconds
        }  # fmt: skip

    def _begin(self, shard: str, second: bool) -> Attempt:
        return self.ledger.begin(shard, None if second else self._is_worn, node_id())

    def _is_worn(self, past: list[AttemptRecord]) -> bool:
        if by := self.others.holder(past):
            raise _Held(by)
        return len(charged(past, self.ledger.submission, alive_nodes())) >= self.placement.max_attempts

    async def _work(self, shard: Shard, attempt: Attempt) -> Commit:
        with attempt:
            loaded = await asyncio.to_thread(shard.load)
            steps.reach(4)
            table = conform(await self._call(loaded), self.schema)
            if isinstance(loaded, pa.Table):
                check_same_ids(shard.name, loaded, table)
            steps.reach(5)
            return await asyncio.to_thread(attempt.write, table, {"file": shard.file} if shard.file else None)

    async def _call(self, loaded: "InputFile | pa.Table") -> pa.Table:
        call = cast(Callable[[Any], Any], self.worker)  # the stage's source decides which protocol it has
        try:
            if inspect.iscoroutinefunction(type(self.worker).__call__):
                return await call(loaded)
            return await asyncio.to_thread(call, loaded)
        except Dead:
            # Ray replaces this actor, and its running attempts are charged. A normal exit would wait for the threads
            # of the dead engine.
            sys.stderr.write(traceback.format_exc())
            sys.stderr.flush()
            os._exit(1)


@dataclass(frozen=True)
class LostRow:
    """A record that no worker survived: its index in the shard, and how the worker ended."""

    index: int
    error: str
    last_words: str
    node: str


class LoneActor(ShardActor):
    """An actor for one shard, made with `ray.remote`."""

    async def ready(self) -> Process:
        """Return this process, once the worker is built."""
        try:
            stderr = os.readlink("/proc/self/fd/2")
        except OSError:
            stderr = ""
        return Process(node_id(), node(), os.getpid(), stderr if os.path.isfile(stderr) else "")

    @property
    def _reader(self) -> FileWorker:
        """The worker, if shards are files."""
        return cast(FileWorker, self.worker)

    async def count(self, text: str) -> int:
        """Load a shard and return its number of records."""
        loaded = await self._load(text)
        return await asyncio.to_thread(self._reader.count, loaded) if isinstance(loaded, InputFile) else loaded.num_rows

    async def _load(self, text: str) -> "InputFile | pa.Table":
        """Return a shard's rows, or its file; each process reads it once."""
        if getattr(self, "_shard", None) != Shard.parse(text):
            self._shard = Shard.parse(text)
            self._loaded = await asyncio.to_thread(self._shard.load)
        return self._loaded

    async def part(self, text: str, first: int, last: int) -> tuple[float, pa.Table]:
        """Make the rows of a part of the shard; return the seconds that took, and the rows."""
        loaded, since = await self._load(text), time.monotonic()
        if isinstance(loaded, InputFile):
            made = conform(await asyncio.to_thread(self._reader.part, loaded, first, last), self.schema)
        else:
            given = loaded.slice(first, last - first)
            made = conform(await self._call(given), self.schema)
            check_same_ids(self._shard.name, given, made)
        return time.monotonic() - since, made

    async def finish(
        self, text: str, attempt: Attempt, parts: Sequence[Any], lost: Sequence[LostRow], before: Commit | None
    ) -> Commit:
        """Put a shard together and commit it.

        Args:
            text: the shard, as JSON.
            attempt: at this shard.
            parts: references to its parts, in order.
            lost: its rows that no worker survived.
            before: its earlier commit, if parts and lost rows come from that commit's quarantine.
        """
        loaded = await self._load(text)
        made = await asyncio.gather(*parts)
        if before is not None:
            made = [*await asyncio.to_thread(self._not_quarantined, before), *made]
        blanks, known = zip(*(self._stand_in(row, attempt) for row in lost), strict=True) if lost else ((), ())
        table = pa.concat_tables([self.schema.empty_table(), *made, pa.Table.from_pylist(list(blanks), self.schema)])
        if isinstance(loaded, pa.Table):
            check_same_ids(self._shard.name, loaded, table)
        else:
            await asyncio.to_thread(check_unchanged, loaded)
            table = conform(await asyncio.to_thread(self._reader.merge, table), self.schema)
        steps.reach(5)
        extra = {"file": self._shard.file} if self._shard.file else None
        ids = table.filter(is_quarantined(table))["id"].to_pylist()  # merging gives duplicates new ids
        known = [{**row, "id": id_} for row, id_ in zip(known, ids, strict=True)]
        quarantine = pa.Table.from_pylist(known, QUARANTINE)
        return await asyncio.to_thread(attempt.write, table, extra, quarantine)

    def _not_quarantined(self, commit: Commit) -> list[pa.Table]:
        """Read the rows of a commit that are not quarantined."""
        tables = [storage.read_table(self.ledger.at(file.name)) for file in commit.files]
        return [table.filter(pc.call_function("invert", [is_quarantined(table)])) for table in tables]

    def _stand_in(self, lost: LostRow, attempt: Attempt) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a lost record's row for the stage's table and its row for the quarantine."""
        loaded = self._loaded
        if isinstance(loaded, InputFile):
            identity, text = self._reader.unread(loaded, lost.index)
        else:
            row = loaded.slice(lost.index, 1).to_pylist()[0]
            identity, text = {"id": row["id"]}, json.dumps(row, default=str, ensure_ascii=False)
        known = {
            "id": identity["id"], "shard": attempt.shard, "index": lost.index, "attempt": attempt.number,
            "error": lost.error, "last_words": lost.last_words, "node": lost.node, "text": text[:TEXT_CHARS],
        }  # fmt: skip
        return blank_row(self.schema, identity), known
