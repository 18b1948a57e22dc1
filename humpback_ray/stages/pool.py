"""Map shards over a pool of Ray Data actors, pass after pass, and deal with shards that fail.

A pass (passes.py) maps the uncommitted shards. A shard that failed as often as its placement allows runs alone and is
taken apart (isolation.py): alone, because a dying process also ends the attempts at other shards in it.

If another driver works on the same stage, each takes the shards in its own order and skips those that the other holds
(drivers.py). When only held shards are left, a driver waits until they are committed or their holder dies.
"""

import contextlib
import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from humpback_ray import storage
from humpback_ray.stages import warm
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.drivers import STALE_S, waiting_uri
from humpback_ray.stages.errors import StageFailed
from humpback_ray.stages.isolation import Isolation
from humpback_ray.stages.ledger import charged, last_words
from humpback_ray.stages.lone import LoneWorker, WorkerFailed, reason
from humpback_ray.stages.nodes import alive_nodes, nodes_lost
from humpback_ray.stages.passes import Pass, Work, in_order, mapped
from humpback_ray.stages.shards import Shard
from humpback_ray.stages.waiting import Actors, Waiting

logger = logging.getLogger(__name__)

T = TypeVar("T")

HELD_EVERY_S = 2.0
"""Seconds between checks whether shards held by other drivers are committed or free."""


class Pool:
    """The work of one stage on its shards, within one submission. One thread uses it; any may call `concern`.

    Args:
        work: what to do with each shard.
    """

    def __init__(self, work: Work) -> None:
        self.work, self.name, self.ledger, self.placement = work, work.name, work.ledger, work.placement
        self._idle = 0
        """Consecutive passes that changed nothing."""
        self._known: dict[str, Shard] = {}
        """The shards of all passes."""
        self._pass: Pass | None = None
        """The running pass."""
        self._waiting: Waiting | None = None
        """Watches whether actors are up."""
        self._waits_for = ""
        """What this driver waits for other drivers to finish; "" if nothing."""

    def work_on(self, pending: Sequence[Shard]) -> None:
        """Make one pass over the uncommitted shards; once only shards that failed too often are left, take them apart.

        Raises:
            StageFailed: a shard fails whatever rows it gets, or several passes in a row changed nothing.
        """
        self._known.update({shard.name: shard for shard in pending})
        before = self._state()
        tried, alive = before[1], alive_nodes()
        there = self.work.others.there()
        held = self._held([shard for shard in pending if tried[shard.name]]) if there else {}
        ours = [shard for shard in pending if shard.name not in held]
        if not ours:
            self._wait(held, pending)
            return
        worn = [shard for shard in ours if self._is_worn(shard.name, tried[shard.name], alive)]
        names = {shard.name for shard in worn}
        left = 0
        if fresh := [shard for shard in ours if shard.name not in names]:
            left = self._map(in_order(fresh, self.ledger.submission) if there else fresh, alive)
        else:
            self._alone(worn, self._take_apart)
        self._idle = self._idle + 1 if before == self._state() and not left else 0
        if self._idle >= self.placement.max_attempts:
            raise StageFailed(
                f"{self.name}: {self._idle} passes neither committed nor tried any of the {len(pending)} open "
                "shards; the errors are in the log"
            )

    def concern(self) -> str:
        """Return what the progress line should say about slow shards and about actors that are not up."""
        running, waiting, waits_for = self._pass, self._waiting, self._waits_for
        stuck = running.watch.concern() if running else ""
        absent = waiting.words() if waiting else ""
        return stuck + absent + (f"; {waits_for}" if waits_for else "")

    def _held(self, shards: Sequence[Shard]) -> dict[str, str]:
        """Return the shards that other drivers hold, each with its holder's submission."""
        found = {}
        lives = functools.cache(self.work.others.lives)
        for shard in shards:
            if by := self.work.others.holder(self.ledger.attempts(shard.name), lives):
                found[shard.name] = by
        return found

    def _wait(self, held: Mapping[str, str], pending: Sequence[Shard]) -> None:
        """Wait until one of the held shards is committed or free."""
        by = ", ".join(sorted(set(held.values())))
        self._waits_for = f"the last {len(held)} shards are held by submission {by}"
        logger.info("%s: %s; waiting for it", self.name, self._waits_for)
        looked = time.monotonic()
        while self._are_held(held):
            time.sleep(HELD_EVERY_S)
            if time.monotonic() - looked >= STALE_S:
                looked = time.monotonic()
                if len(self._held([shard for shard in pending if shard.name in held])) < len(held):
                    break  # an attempt has failed
        self._waits_for = ""

    def _are_held(self, held: Mapping[str, str]) -> bool:
        """Tell whether all the shards are still uncommitted and all their holders alive."""
        if not all(map(self.work.others.lives, set(held.values()))):
            return False
        return not any(self.ledger.commit_of(name) for name in held)

    def _is_worn(self, shard: str, tried: int, alive: set[str]) -> bool:
        if tried < self.placement.max_attempts:
            return False
        return len(charged(self.ledger.attempts(shard), self.ledger.submission, alive)) >= self.placement.max_attempts

    def _state(self) -> tuple[set[str], Counter[str]]:
        return self.ledger.committed(), self.ledger.attempts_made()

    def _map(self, shards: Sequence[Shard], alive: set[str]) -> int:
        """Make a pass over shards and return how many of them it left to other drivers.

        Args:
            shards: in the order in which to take them.
            alive: nodes that were alive before the pass.

        Raises:
            StageFailed: the pool could not run, and no lost node explains it.
        """
        failure, left = self._tried(shards)
        self._refuse_to_wait()
        if failure:
            if not nodes_lost(alive):
                raise StageFailed(f"{self.name}: its workers could not run: {failure}; fix that and run again")
            logger.warning("%s: its pool was lost with a node (%s); continuing with another pool", self.name, failure)
        return left

    def _tried(self, shards: Sequence[Shard]) -> tuple[str, int]:
        """Make a pass; return why it failed ("" if it did not) and how many shards it left to other drivers.

        It returns the failure because an exception would keep this frame, and with it the actors, alive.
        """
        from ray.exceptions import RayError

        running = Pass(self.work, shards, mapped(self.work, shards))
        warm.took(self.placement.for_shards(len(shards)).min_replicas)
        self._pass, failure = running, ""
        try:
            with running, self._wait_for("ShardActor", running.stop):
                running.take_reports()
        except RayError as error:
            failure = reason(error)
        finally:
            self._pass = None
        return failure, running.left_to_others

    @contextlib.contextmanager
    def _wait_for(self, kind: str, give_up: Callable[[], object]) -> Iterator[None]:
        """Watch whether actors of a class come up during the block; call `give_up` if that takes too long."""
        note = waiting_uri(self.ledger.uri, self.ledger.submission)
        limit = self.placement.give_up_waiting_minutes
        self._waiting = Waiting(self.name, self.placement.need(), Actors(kind), limit, give_up, note)
        with self._waiting:
            yield

    def _refuse_to_wait(self) -> None:
        """Raise if the wait for actors took too long."""
        if self._waiting and self._waiting.gave_up:
            raise StageFailed(self._waiting.gave_up)

    def retry(self, shards: Sequence[tuple[Shard, Commit]]) -> None:
        """Try the quarantined rows of commits again.

        Raises:
            StageFailed: rows that worked before fail too, or a shard could not be put together.
        """

        def again(item: tuple[Shard, Commit], worker: LoneWorker) -> None:
            shard, commit = item
            try:
                self._isolation(worker).retry(shard, commit)
            except WorkerFailed as failure:
                raise StageFailed(f"{self.name}: shard {shard.name} could not be put together: {failure}") from failure
            self.work.done_with(shard.name)

        self._alone(shards, again)

    def _alone(self, items: Sequence[T], do: Callable[[T, LoneWorker], None]) -> None:
        """Call `do` for each item with its own actor, as many at once as the pool has actors."""
        workers = [self.work.lone_worker() for _ in items]

        def one(item: T, worker: LoneWorker) -> None:
            try:
                do(item, worker)
            finally:
                worker.close()

        def close() -> None:
            for worker in workers:
                worker.close()

        with ThreadPoolExecutor(self.placement.min_replicas) as threads:
            tasks = [threads.submit(one, *pair) for pair in zip(items, workers, strict=True)]
            try:
                with self._wait_for("LoneActor", close):
                    for task in tasks:
                        task.result()
            except BaseException as error:
                close()
                if isinstance(error, StageFailed):
                    self._refuse_to_wait()  # its message says more than "the worker was stopped"
                raise
            self._refuse_to_wait()

    def _good(self) -> tuple[Shard, int] | None:
        """Return a committed shard that this submission knows, and the index of one of its rows that worked."""
        for name in sorted(self.ledger.committed() & self._known.keys()):
            commit = self.ledger.commit_of(name)
            if commit and not commit.quarantine and commit.rows:
                return self._known[name], 0
        return None

    def _isolation(self, worker: LoneWorker) -> Isolation:
        share = self.placement.max_quarantined_share
        return Isolation(self.name, self.ledger, worker, self.work.pace, share, self._good)

    def _take_apart(self, shard: Shard, worker: LoneWorker) -> None:
        past = charged(self.ledger.attempts(shard.name), self.ledger.submission, alive_nodes())
        if len([attempt for attempt in past if attempt["alone"]]) >= self.placement.max_attempts:
            raise StageFailed(f"{self.name}: shard {shard.name} failed {len(past)} times; last: {last_words(past)}")
        if worker.closed:
            return
        try:
            self._isolation(worker).run(shard)
            self.work.done_with(shard.name)
        except WorkerFailed as failure:
            storage.check_room(self.ledger.uri)
            logger.warning("%s: shard %s could not be put together: %s", self.name, shard.name, failure)
