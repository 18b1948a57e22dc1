"""Shards over a pool of Ray Data actors: what a pass is, what an actor does with a shard, when a stage gives up.

A pass maps the uncommitted shards, as descriptors, one per block; rows never go through the object store. A shard that
failed as often as its placement allows runs once more with no other beside it in its actor, since a process that dies
takes its neighbours' attempts with it; then it fails the stage.
"""

import asyncio
import inspect
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from humpback_ray.ledger import Commit, Ledger, Shard, ShardExhausted, StageFailed, last_words
from humpback_ray.placement import PoolPlacement
from humpback_ray.progress import Progress

logger = logging.getLogger(__name__)

NODE_WAIT_S = 4 * 3600
"""How long a pass may go without progress before Ray Data gives up: GPU nodes can take hours to come."""


@dataclass
class Pool:
    """The work of one stage on its shards, within one submission."""

    name: str
    ledger: Ledger
    schema: pa.Schema
    worker: type
    arguments: tuple[Any, ...]
    progress: Progress
    rows: Mapping[str, int]
    """What each shard counts for in the progress."""
    idle: int = 0
    """Passes in a row that changed nothing."""

    def work_on(self, pending: Sequence[Shard], placement: PoolPlacement, total: int) -> None:
        """Make one pass over the uncommitted shards.

        Raises:
            StageFailed: a shard failed in company and alone, or several passes in a row changed nothing.
        """
        tried = self.ledger.attempts_made()
        suspect = {name for name, count in tried.items() if count >= placement.max_attempts}
        worn = [s for s in pending if s.name in suspect and len(self.attempts(s.name)) >= placement.max_attempts]
        fresh = [shard for shard in pending if shard not in worn]
        alone = placement.model_copy(update={"shards_in_flight": 1, "max_attempts": placement.max_attempts + 1})
        before = self._state()
        self._pass(fresh or worn, placement if fresh else alone)
        after = self._state()
        if not fresh:
            self._refuse([shard for shard in worn if shard.name not in after[0]], len(after[0]), total)
        self.idle = self.idle + 1 if before == after else 0
        if self.idle >= placement.max_attempts:
            raise StageFailed(
                f"{self.name}: {self.idle} passes neither committed nor tried one of {len(pending)} open "
                "shards; the errors are in the log"
            )

    def attempts(self, shard: str) -> list[dict[str, Any]]:
        """Return this submission's attempts at a shard."""
        return [a for a in self.ledger.attempts(shard) if a["submission"] == self.ledger.submission]

    def _state(self) -> tuple[set[str], int]:
        return self.ledger.committed(), self.ledger.attempts_made().total()

    def _refuse(self, failed: Sequence[Shard], committed: int, total: int) -> None:
        if not failed:
            return
        ours = self.attempts(failed[0].name)
        raise StageFailed(
            f"{self.name}: {committed} of {total} shards are committed, {len(failed)} failed, shard "
            f"{failed[0].name} {len(ours)} times, last: {last_words(ours)}. Mend the cause and run again"
        )

    def _pass(self, shards: Sequence[Shard], placement: PoolPlacement) -> None:
        import ray.data
        from ray.exceptions import RayError

        with ray.data.DataContext.current(_context()):
            blocks = ray.data.from_items([{"shard": shard.json()} for shard in shards], override_num_blocks=len(shards))
            results = blocks.map_batches(
                ShardActor,
                fn_constructor_args=(self.ledger, self.schema, placement, self.worker, self.arguments),
                **placement.map_arguments(),
            )
            try:
                for row in results.iter_rows():
                    self.progress.advance(self.rows[row["shard"]] if row["committed"] else 0, row["tokens"])
            except RayError as error:
                raise StageFailed(f"{self.name}: {_reason(error)}; mend it and run again") from error


def _context() -> Any:
    """Return Ray Data's settings for a pass: errors cost a block, actors that die while starting are replaced twice."""
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.max_errored_blocks = -1
    context.max_consecutive_actor_init_deaths = 2
    context.execution_no_progress_timeout_s = NODE_WAIT_S
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    return context


def _reason(error: BaseException) -> str:
    """Return the error inside Ray's wrapping as one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("File ", "ray::", "If you continue"))]
    inner = [line for line in said if "Error" in line.split(":")[0].split(".")[-1]]
    return f"its workers could not run: {(inner or said or [type(error).__name__])[-1][:500]}"


class ShardActor:
    """What Ray Data runs: the ledger around a stage's worker. Several shards at a time, on one event loop."""

    def __init__(
        self, ledger: Ledger, schema: pa.Schema, placement: PoolPlacement, worker: type, arguments: tuple[Any, ...]
    ) -> None:
        self.ledger, self.schema, self.placement = ledger, schema, placement
        self.worker = worker(*arguments, placement.resources)

    async def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Work on the one shard of a batch; returns what the driver's progress wants to know."""
        shard = Shard.parse(str(batch["shard"][0]))
        commit = await self._work(shard)
        return {"shard": [shard.name], "committed": [commit is not None], "tokens": [commit.tokens if commit else 0]}

    async def _work(self, shard: Shard) -> Commit | None:
        commit = await asyncio.to_thread(self.ledger.commit_of, shard.name)
        if commit:
            return commit
        try:
            attempt = await asyncio.to_thread(self.ledger.begin, shard.name, self.placement.max_attempts)
        except ShardExhausted as exhausted:
            logger.error("%s", exhausted)
            return None
        with attempt:
            loaded = await asyncio.to_thread(shard.load)
            table = conform(await self._call(loaded), self.schema)
            if isinstance(loaded, pa.Table):
                check_same_ids(shard.name, loaded, table)
            return await asyncio.to_thread(attempt.write, table, {"file": shard.file} if shard.file else None)

    async def _call(self, loaded: "str | pa.Table") -> pa.Table:
        if inspect.iscoroutinefunction(type(self.worker).__call__):
            return await self.worker(loaded)
        return await asyncio.to_thread(self.worker, loaded)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Cast a table to a stage's schema; a missing or surplus column is an error that names it."""
    missing, surplus = set(schema.names) - set(table.column_names), set(table.column_names) - set(schema.names)
    if missing or surplus:
        raise ValueError(f"worker returned columns that differ from the schema: {missing=} {surplus=}")
    return table.select(schema.names).cast(schema)


def check_same_ids(shard: str, loaded: pa.Table, made: pa.Table) -> None:
    """Raise unless every id that went in came out exactly as often (P1)."""
    went, came = Counter(loaded["id"].to_pylist()), Counter(made["id"].to_pylist())
    if went != came:
        lost, surplus = (went - came).total(), (came - went).total()
        raise ValueError(f"shard {shard}: {lost} of {went.total()} ids lost and {surplus} made up by the worker")
