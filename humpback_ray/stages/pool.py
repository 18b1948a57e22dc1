"""Shards over a pool of Ray Data actors: what a pass is, and what becomes of shards that fail.

A pass maps the uncommitted shards, as descriptors; rows never go through the object store. A shard that
failed as often as its placement allows runs alone and is taken apart (isolation.py), since a process that dies takes
its neighbours' attempts with it. What takes too long is ended or started once more (watch.py).

Where another driver is at work on the stage, each takes the shards in an order of its own and leaves alone those that
the other holds (drivers.py). When there are no others left, it waits for their commits, or for the other's death.
"""

import contextlib
import functools
import hashlib
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pyarrow as pa

from humpback_ray import storage
from humpback_ray.placement import PoolPlacement
from humpback_ray.stages import warm
from humpback_ray.stages.actor import ShardActor, alive_nodes, nodes_lost
from humpback_ray.stages.background import Complaints
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.drivers import STALE_S, Others, waiting_uri
from humpback_ray.stages.errors import StageFailed
from humpback_ray.stages.isolation import Isolation, LoneWorker, WorkerFailed, reason
from humpback_ray.stages.ledger import Ledger, charged, last_words
from humpback_ray.stages.progress import Progress
from humpback_ray.stages.shards import Shard
from humpback_ray.stages.waiting import Actors, Waiting
from humpback_ray.stages.watch import Pace, Watch
from humpback_ray.storage import steps

if TYPE_CHECKING:
    import ray.data

logger = logging.getLogger(__name__)

T = TypeVar("T")

SINGLE_BLOCKS = 1000
"""Shards at the end of a pass that travel alone."""
SHARDS_PER_BLOCK = 8
"""Shards before those that one actor takes together."""
HELD_EVERY_S = 2.0
"""How often a driver looks whether shards that others hold are committed or free."""


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
    left: int = 0
    """Shards that the pass left to other drivers."""
    waits_for: str = ""
    """What other drivers have to end before this one can go on; "" if nothing."""
    watch: Watch | None = None
    """Watches the pass that is running."""
    waiting: Waiting | None = None
    """Looks whether its actors are up."""
    seconds: list[LoneWorker] = field(default_factory=list)
    """Where stragglers of the pass on its way were started once more."""
    known: dict[str, Shard] = field(default_factory=dict)
    """The shards of all passes."""

    def __post_init__(self) -> None:
        self.others = Others(self.ledger.uri, self.ledger.submission)
        """Drivers that are at work on the same stage."""

    def work_on(self, pending: Sequence[Shard]) -> None:
        """Make one pass over the uncommitted shards, or take apart those that are left because they failed too often.

        Raises:
            StageFailed: a shard fails whatever rows it gets, or several passes in a row changed nothing.
        """
        self.known.update({shard.name: shard for shard in pending})
        before, self.left = self._state(), 0
        tried, alive = before[1], alive_nodes()
        there = self.others.there()
        held = self._held([shard for shard in pending if tried[shard.name]]) if there else {}
        ours = [shard for shard in pending if shard.name not in held]
        if not ours:
            self._wait(held, pending)
            return
        worn = [shard for shard in ours if self._is_worn(shard.name, tried[shard.name], alive)]
        names = {shard.name for shard in worn}
        if fresh := [shard for shard in ours if shard.name not in names]:
            if failure := self._pass(in_order(fresh, self.ledger.submission) if there else fresh):
                if not nodes_lost(alive):
                    raise StageFailed(f"{self.name}: its workers could not run: {failure}; mend it and run again")
                logger.warning(
                    "%s: a node was lost and its pool with it (%s); going on with another", self.name, failure
                )
        else:
            self._isolate(worn)
        self.idle = self.idle + 1 if before == self._state() and not self.left else 0
        if self.idle >= self.placement.max_attempts:
            raise StageFailed(
                f"{self.name}: {self.idle} passes neither committed nor tried one of {len(pending)} open "
                "shards; the errors are in the log"
            )

    def concern(self) -> str:
        """Return what the progress line should say of shards that take long, and of actors that are not up."""
        stuck = self.watch.concern() if self.watch else ""
        absent = self.waiting.words() if self.waiting else ""
        return stuck + absent + (f"; {self.waits_for}" if self.waits_for else "")

    def _held(self, shards: Sequence[Shard]) -> dict[str, str]:
        """Return by whom shards are held that other drivers are at work on."""
        found = {}
        lives = functools.cache(self.others.lives)
        for shard in shards:
            if by := self.others.holder(self.ledger.attempts(shard.name), lives):
                found[shard.name] = by
        return found

    def _wait(self, held: Mapping[str, str], pending: Sequence[Shard]) -> None:
        """Wait until one of some shards that others hold is committed, or free."""
        by = ", ".join(sorted(set(held.values())))
        self.waits_for = f"{len(held)} shards, which are all that is left, are with submission {by}"
        logger.info("%s: %s; waiting for it", self.name, self.waits_for)
        looked = time.monotonic()
        while self._are_held(held):
            time.sleep(HELD_EVERY_S)
            if time.monotonic() - looked >= STALE_S:
                looked = time.monotonic()
                if len(self._held([shard for shard in pending if shard.name in held])) < len(held):
                    break  # an attempt has failed
        self.waits_for = ""

    def _are_held(self, held: Mapping[str, str]) -> bool:
        """Tell whether no such shard is committed and all who hold them live."""
        if not all(map(self.others.lives, set(held.values()))):
            return False
        return not any(self.ledger.commit_of(name) for name in held)

    def _is_worn(self, shard: str, tried: int, alive: set[str]) -> bool:
        if tried < self.placement.max_attempts:
            return False
        return len(charged(self.ledger.attempts(shard), self.ledger.submission, alive)) >= self.placement.max_attempts

    def _state(self) -> tuple[set[str], Counter[str]]:
        return self.ledger.committed(), self.ledger.attempts_made()

    def _actor_arguments(self, placement: PoolPlacement) -> tuple[Any, ...]:
        return self.ledger, self.schema, placement, self.worker, self.arguments, self.others.dead()

    def _pass(self, shards: Sequence[Shard]) -> str:
        """Map shards; returns why that was not possible. An exception would keep this frame, and so actors, alive."""
        import ray.data
        from ray.exceptions import RayError

        placement = self.placement.for_shards(len(shards))
        with ray.data.DataContext.current(_context()):
            items = [{"shards": [shard.json() for shard in group]} for group in groups(shards)]
            blocks = ray.data.from_items(items, override_num_blocks=len(items))
            results = _stoppable(
                blocks.map_batches(
                    ShardActor,
                    fn_constructor_args=self._actor_arguments(placement),
                    **placement.map_arguments(),
                    runtime_env=warm.pool_environment(),
                )
            )
        watch = Watch(
            self.name, self.ledger, shards, self.pace, self._second, lambda: _stop(results),
            news=lambda shard: self.progress.advance(self.rows[shard]),
        )  # fmt: skip
        self.watch = watch
        warm.took(placement.min_replicas)
        try:
            with self._waiting("ShardActor", lambda: _stop(results)), watch:
                for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                    for row in cast(pa.Table, batch).to_pylist():
                        self._reported(watch, row)
        except RayError as error:
            failure = reason(error)
        else:
            failure = ""
        finally:
            self.watch = None
            _stop(results)
            while self.seconds:
                self.seconds.pop().close()
        self._refuse_to_wait()
        return failure

    @contextlib.contextmanager
    def _waiting(self, kind: str, give_up: Callable[[], object]) -> Iterator[None]:
        """Look after actors of a class in the block; `give_up` ends it where they took too long to be up."""
        placement, note = self.placement, waiting_uri(self.ledger.uri, self.ledger.submission)
        limit = placement.give_up_waiting_minutes
        self.waiting = Waiting(self.name, placement.need(), Actors(kind), limit, give_up, note)
        with self.waiting:
            yield

    def _refuse_to_wait(self) -> None:
        """Raise if the wait for actors was given up."""
        if self.waiting and self.waiting.gave_up:
            raise StageFailed(self.waiting.gave_up)

    def _reported(self, watch: Watch, row: Mapping[str, Any]) -> None:
        if row["error"]:
            storage.check_room(self.ledger.uri)
        if row["held_by"]:
            self.left += 1
            watch.left_to(row["shard"], row["held_by"])
            return
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
            except Exception as error:  # noqa: BLE001 the first start is still on its way, and is enough
                Complaints(f"{self.name}: starting shard {shard.name} once more").note(error)
            else:
                if watch:
                    self._reported(watch, row)

        threading.Thread(target=work, name=f"second-{shard.name}", daemon=True).start()

    def _lone_worker(self, avoid_node: str | None = None) -> LoneWorker:
        return LoneWorker(self._actor_arguments(self.placement), self.placement, avoid_node)

    def retry(self, shards: Sequence[tuple[Shard, Commit]]) -> None:
        """Try the quarantined rows of commits again.

        Raises:
            StageFailed: rows that had worked fail too, or a shard could not be put together.
        """

        def again(item: tuple[Shard, Commit], worker: LoneWorker) -> None:
            shard, commit = item
            try:
                self._isolation(worker).retry(shard, commit)
            except WorkerFailed as failure:
                raise StageFailed(f"{self.name}: shard {shard.name} could not be put together: {failure}") from failure
            self.progress.advance(self.rows[shard.name])

        self._alone(shards, again)

    def _isolate(self, shards: Sequence[Shard]) -> None:
        """Take shards apart."""
        self._alone(shards, self._take_apart)

    def _alone(self, items: Sequence[T], work: Callable[[T, LoneWorker], None]) -> None:
        """Do work on each of some items with an actor of its own, as many at once as the pool has actors."""
        workers = [self._lone_worker() for _ in items]

        def one(item: T, worker: LoneWorker) -> None:
            try:
                work(item, worker)
            finally:
                worker.close()

        with ThreadPoolExecutor(self.placement.min_replicas) as threads:
            tasks = [threads.submit(one, *pair) for pair in zip(items, workers, strict=True)]

            def close() -> None:
                for worker in workers:
                    worker.close()

            try:
                with self._waiting("LoneActor", close):
                    for task in tasks:
                        task.result()
            except BaseException as error:
                close()
                if isinstance(error, StageFailed):
                    self._refuse_to_wait()  # it says more than that a worker was called off
                raise
            self._refuse_to_wait()

    def _good(self) -> tuple[Shard, int] | None:
        """Return a shard that was committed, of those this submission knows, and a row of it that worked."""
        for name in sorted(self.ledger.committed() & self.known.keys()):
            commit = self.ledger.commit_of(name)
            if commit and not commit.quarantine and commit.rows:
                return self.known[name], 0
        return None

    def _isolation(self, worker: LoneWorker) -> Isolation:
        share = self.placement.max_quarantined_share
        return Isolation(self.name, self.ledger, worker, self.pace, share, self._good)

    def _take_apart(self, shard: Shard, worker: LoneWorker) -> None:
        past = charged(self.ledger.attempts(shard.name), self.ledger.submission, alive_nodes())
        if len([attempt for attempt in past if attempt["alone"]]) >= self.placement.max_attempts:
            raise StageFailed(f"{self.name}: shard {shard.name} failed {len(past)} times, last: {last_words(past)}")
        if worker.closed:
            return
        try:
            self._isolation(worker).run(shard)
            self.progress.advance(self.rows[shard.name])
        except WorkerFailed as failure:
            storage.check_room(self.ledger.uri)
            logger.warning("%s: shard %s could not be put together: %s", self.name, shard.name, failure)


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


def in_order(shards: Sequence[Shard], submission: str) -> list[Shard]:
    """Return shards in the order in which a submission takes them where there are other drivers: its own."""
    mixed = list(shards)
    random.Random(hashlib.sha256(submission.encode()).digest()).shuffle(mixed)
    return mixed


def _stoppable(results: "ray.data.Dataset") -> "ray.data.Dataset":
    """Let a data set know its executor from the start; Ray Data sets it when the first block is there, if ever."""
    create = results._create_executor

    def created() -> Any:
        results._current_executor = create()
        return results._current_executor

    results._create_executor = created
    return results


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
    context.execution_no_progress_timeout_s = -1  # what stands still is named (waiting.py) or ended (watch.py)
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    return context
