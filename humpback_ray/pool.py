"""Shards over a pool of Ray Data actors: what a pass is, and what becomes of shards that fail.

A pass maps the uncommitted shards, as descriptors; rows never go through the object store. A shard that
failed as often as its placement allows runs alone and is taken apart (isolation.py), since a process that dies takes
its neighbours' attempts with it. What takes too long is ended or started once more (watch.py).
"""

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from humpback_ray import steps, warm
from humpback_ray.actor import ShardActor, alive_nodes, nodes_lost
from humpback_ray.isolation import NODE_WAIT_S, Isolation, LoneWorker, WorkerFailed, reason
from humpback_ray.ledger import Ledger, Shard, StageFailed, charged, last_words
from humpback_ray.placement import PoolPlacement
from humpback_ray.progress import Progress
from humpback_ray.watch import Pace, Watch

if TYPE_CHECKING:
    import ray.data

logger = logging.getLogger(__name__)

SINGLE_BLOCKS = 1000
"""Shards at the end of a pass that travel alone."""
SHARDS_PER_BLOCK = 8
"""Shards before those that one actor takes together."""


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
    placement: PoolPlacement
    pace: Pace
    idle: int = 0
    """Passes in a row that changed nothing."""
    watch: Watch | None = None
    """Watches the pass that is running."""
    seconds: list[LoneWorker] = field(default_factory=list)
    """Where stragglers of the pass on its way were started once more."""
    known: dict[str, Shard] = field(default_factory=dict)
    """The shards of all passes."""

    def work_on(self, pending: Sequence[Shard]) -> None:
        """Make one pass over the uncommitted shards, or take apart those that are left because they failed too often.

        Raises:
            StageFailed: a shard fails whatever rows it gets, or several passes in a row changed nothing.
        """
        self.known.update({shard.name: shard for shard in pending})
        before = self._state()
        tried, alive = before[1], alive_nodes()
        worn = [shard for shard in pending if self._is_worn(shard.name, tried[shard.name], alive)]
        if fresh := [shard for shard in pending if shard not in worn]:
            if failure := self._pass(fresh):
                if not nodes_lost(alive):
                    raise StageFailed(f"{self.name}: its workers could not run: {failure}; mend it and run again")
                logger.warning(
                    "%s: a node was lost and its pool with it (%s); going on with another", self.name, failure
                )
        else:
            self._isolate(worn)
        self.idle = self.idle + 1 if before == self._state() else 0
        if self.idle >= self.placement.max_attempts:
            raise StageFailed(
                f"{self.name}: {self.idle} passes neither committed nor tried one of {len(pending)} open "
                "shards; the errors are in the log"
            )

    def concern(self) -> str:
        """Return what the progress line should say of shards that take long."""
        return self.watch.concern() if self.watch else ""

    def _is_worn(self, shard: str, tried: int, alive: set[str]) -> bool:
        if tried < self.placement.max_attempts:
            return False
        return len(charged(self.ledger.attempts(shard), self.ledger.submission, alive)) >= self.placement.max_attempts

    def _state(self) -> tuple[set[str], Counter[str]]:
        return self.ledger.committed(), self.ledger.attempts_made()

    def _actor_arguments(self, placement: PoolPlacement) -> tuple[Any, ...]:
        return self.ledger, self.schema, placement, self.worker, self.arguments

    def _pass(self, shards: Sequence[Shard]) -> str:
        """Map shards; returns why that was not possible. An exception would keep this frame, and so actors, alive."""
        import ray.data
        from ray.exceptions import RayError

        placement = self.placement.for_shards(len(shards))
        with ray.data.DataContext.current(_context()):
            items = [{"shards": [shard.json() for shard in group]} for group in groups(shards)]
            blocks = ray.data.from_items(items, override_num_blocks=len(items))
            results = blocks.map_batches(
                ShardActor,
                fn_constructor_args=self._actor_arguments(placement),
                **placement.map_arguments(),
                runtime_env=warm.pool_environment(),
            )
        watch = Watch(
            self.name, self.ledger, shards, self.pace, self._second, lambda: _stop(results),
            news=lambda shard: self.progress.advance(self.rows[shard]),
        )  # fmt: skip
        self.watch = watch
        warm.took(placement.min_replicas)
        try:
            with watch:
                for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                    for row in cast(pa.Table, batch).to_pylist():
                        self._reported(watch, row)
        except RayError as error:
            return reason(error)
        finally:
            self.watch = None
            _stop(results)
            while self.seconds:
                self.seconds.pop().close()
        return ""

    def _reported(self, watch: Watch, row: Mapping[str, Any]) -> None:
        steps.reach(10)
        watch.ended(row["shard"], row["error"], row["seconds"])
        self.progress.advance(0, row["tokens"])

    def _second(self, shard: Shard, away_from: str | None) -> None:
        """Start a shard once more, in an actor of its own on another node; the first commit wins."""
        watch, worker = self.watch, self._lone_worker(away_from)
        self.seconds.append(worker)

        def work() -> None:
            try:
                row = worker.call("work", shard.json(), True, limit_s=self.pace.limit_s(self.pace.weights[shard.name]))
            except (WorkerFailed, StageFailed) as failure:
                if not worker.closed:
                    logger.warning("%s: shard %s, started once more: %s", self.name, shard.name, failure)
            else:
                if watch:
                    self._reported(watch, row)

        threading.Thread(target=work, name=f"second-{shard.name}", daemon=True).start()

    def _lone_worker(self, avoid_node: str | None = None) -> LoneWorker:
        return LoneWorker(self._actor_arguments(self.placement), self.placement, avoid_node)

    def _isolate(self, shards: Sequence[Shard]) -> None:
        """Take shards apart, each in an actor of its own, as many at once as the pool has actors."""
        workers = [self._lone_worker() for _ in shards]
        with ThreadPoolExecutor(self.placement.min_replicas) as threads:
            tasks = [threads.submit(self._take_apart, *pair) for pair in zip(shards, workers, strict=True)]
            try:
                for task in tasks:
                    task.result()
            except BaseException:
                for worker in workers:
                    worker.close()
                raise

    def _good(self) -> Shard | None:
        """Return a shard that this submission has seen committed, if there is one."""
        done = self.ledger.committed() & self.known.keys()
        return self.known[min(done)] if done else None

    def _take_apart(self, shard: Shard, worker: LoneWorker) -> None:
        past = charged(self.ledger.attempts(shard.name), self.ledger.submission, alive_nodes())
        if len([attempt for attempt in past if attempt["alone"]]) >= self.placement.max_attempts:
            raise StageFailed(f"{self.name}: shard {shard.name} failed {len(past)} times, last: {last_words(past)}")
        if worker.closed:
            return
        isolation = Isolation(
            self.name, self.ledger, worker, self.pace, self.placement.max_quarantined_share, self._good
        )
        try:
            isolation.run(shard)
            self.progress.advance(self.rows[shard.name])
        except WorkerFailed as failure:
            logger.warning("%s: shard %s could not be put together: %s", self.name, shard.name, failure)
        finally:
            worker.close()


def groups(shards: Sequence[Shard]) -> Iterator[Sequence[Shard]]:
    """Divide the shards of a pass into what Ray Data carries as one block: one each, or, of very many, first a few.

    A block costs the driver some kilobytes for the whole pass; the last ones are single, so that actors end together.
    """
    first = 0
    while first < len(shards):
        left = len(shards) - first
        size = 1 if left <= SINGLE_BLOCKS else min(SHARDS_PER_BLOCK, left - SINGLE_BLOCKS)
        yield shards[first : first + size]
        first += size


def _stop(results: "ray.data.Dataset") -> None:
    """End a pass whose iterator waits; Ray Data has no public call for that."""
    executor = results._current_executor
    if executor is not None:
        executor.shutdown(force=True)


def _context() -> Any:
    """Return Ray Data's settings for a pass; actors that die while starting are replaced twice."""
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.max_errored_blocks = -1
    context.max_consecutive_actor_init_deaths = 2
    context.execution_no_progress_timeout_s = NODE_WAIT_S
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    return context
