"""One pass of a stage's shards through a pool of Ray Data actors, from the first block until every actor is done.

Ray Data carries descriptors of shards; rows never go through the object store. While the pass runs, a loop watches its
attempts (watch.py). It ends the process of an attempt that takes too long, without charging the attempts at other
shards in that process, and starts stragglers a second time. Once all shards are committed, the pass ends and abandons
the attempts that are still running.
"""

import functools
import hashlib
import logging
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from humpback_ray import storage
from humpback_ray.placement import PoolPlacement
from humpback_ray.stages import processes, ray_internals, warm
from humpback_ray.stages.actor import Report, ShardActor, Worker
from humpback_ray.stages.background import Complaints, repeat
from humpback_ray.stages.drivers import Others
from humpback_ray.stages.errors import StageFailed
from humpback_ray.stages.ledger import Ledger
from humpback_ray.stages.lone import LoneWorker, WorkerFailed
from humpback_ray.stages.pace import Pace
from humpback_ray.stages.progress import Progress
from humpback_ray.stages.shards import Shard
from humpback_ray.stages.watch import Overdue, Straggler, Watch
from humpback_ray.storage import steps

if TYPE_CHECKING:
    import ray.data

logger = logging.getLogger(__name__)

SINGLE_BLOCKS = 1000
"""Shards at the end of a pass that get a block each."""
SHARDS_PER_BLOCK = 8
"""Shards per block before those."""


@dataclass(frozen=True)
class Work:
    """The work of a stage within one submission; all its passes share it."""

    name: str
    """Name of the stage."""
    ledger: Ledger
    schema: pa.Schema
    worker: Callable[..., Worker]
    arguments: tuple[Any, ...]
    """Arguments of the worker, before its resources."""
    placement: PoolPlacement
    progress: Progress
    rows: Mapping[str, int]
    """Rows (or files) that each shard adds to the progress, by shard."""
    pace: Pace

    @functools.cached_property
    def others(self) -> Others:
        """Other drivers that work on the same stage."""
        return Others(self.ledger.uri, self.ledger.submission)

    def actor_arguments(self, placement: PoolPlacement) -> tuple[Any, ...]:
        """Return the arguments of an actor's constructor."""
        return self.ledger, self.schema, placement, self.worker, self.arguments, self.others.dead()

    def lone_worker(self, avoid_node: str | None = None) -> LoneWorker:
        """Return an actor outside the pool, if possible not on `avoid_node`."""
        return LoneWorker(self.actor_arguments(self.placement), self.placement, avoid_node)

    def done_with(self, shard: str) -> None:
        """Count a shard as done in the progress."""
        self.progress.advance(self.rows[shard])


class Pass:
    """A running pass, as a `with` block: watches the attempts, and on exit ends everything it started.

    Args:
        work: what to do with each shard.
        shards: of the pass.
        results: yields the actors' reports, as tables (`mapped`).
    """

    def __init__(self, work: Work, shards: Sequence[Shard], results: "ray.data.Dataset") -> None:
        self.work, self.results = work, results
        self.watch = Watch(work.name, work.ledger, shards, work.pace)
        self.left_to_others = 0
        """Shards that other drivers hold."""
        self._lock = threading.Lock()
        self._second_tries: list[LoneWorker] | None = []
        """Actors that run stragglers a second time; None once the pass is over."""

    def __enter__(self) -> "Pass":
        what = f"{self.work.name}: watching the attempts"
        self._loop = repeat(what, self.look, self.watch.pause_s)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.stop(None if kind is None else 0)
        self.stop()
        with self._lock:
            tries, self._second_tries = self._second_tries or [], None
        for worker in tries:
            worker.close()

    def take_reports(self) -> None:
        """Take the actors' reports until all are done or `stop` is called.

        Raises:
            RayError: the pool cannot work.
        """
        for batch in self.results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in cast(pa.Table, batch).to_pylist():
                self._take(cast(Report, row))

    def stop(self) -> None:
        """End the pass at once, whatever is still running. Safe on any thread."""
        ray_internals.stop(self.results)

    def look(self) -> None:
        """Look at commits and attempts once, and act on those that take too long."""
        for shard in self.watch.look():
            self.work.done_with(shard)
        for overdue in self.watch.overdue():
            self._end(overdue)
        for straggler in self.watch.stragglers():
            self._start_again(straggler)
        self._stop_if_over()

    def _take(self, report: Report) -> None:
        """Record the result of a shard."""
        shard = report["shard"]
        if report["error"]:
            storage.check_room(self.work.ledger.uri)
        if report["held_by"]:
            self.left_to_others += 1
            self.watch.left_to(shard, report["held_by"])
        else:
            steps.reach(10)
            if report["error"]:
                self.watch.failed(shard, report["error"])
            elif self.watch.committed(shard, report["seconds"]):
                self.work.done_with(shard)
            self.work.progress.advance(0, report["tokens"])
        self._stop_if_over()

    def _end(self, overdue: Overdue) -> None:
        """Fail an attempt and end its process, without charging the other attempts in that process."""
        name, record = self.work.name, overdue.record
        logger.warning(
            "%s: shard %s: %s; ending its process on %s", name, record["shard"], overdue.why, record["node"]
        )  # fmt: skip
        self.work.ledger.fail(record["shard"], record["attempt"], overdue.why)
        for other in self.watch.beside(record):
            why = f"its process was ended because of shard {record['shard']}"
            self.work.ledger.fail(other["shard"], other["attempt"], why, charged=False)
        try:
            processes.end(record["node_id"], record["pid"], record["born"])
        except processes.NodeLost as lost:
            logger.warning("%s: %s", name, lost)

    def _start_again(self, straggler: Straggler) -> None:
        """Start a shard again in a separate actor on another node; the first commit wins."""
        worker, shard = self.work.lone_worker(straggler.away_from), straggler.shard
        with self._lock:
            if self._second_tries is None:
                return
            self._second_tries.append(worker)
        threading.Thread(target=self._try_again, args=(shard, worker), name=f"second-{shard.name}", daemon=True).start()

    def _try_again(self, shard: Shard, worker: LoneWorker) -> None:
        name, pace = self.work.name, self.work.pace
        try:
            report = worker.call("work", shard.json(), True, limit_s=pace.limit_s(pace.weights[shard.name]))
        except (WorkerFailed, StageFailed) as failure:
            if not worker.closed:
                logger.warning("%s: shard %s, started again: %s", name, shard.name, failure)
        except Exception as error:  # noqa: BLE001 the first try is still running, and that is enough
            Complaints(f"{name}: starting shard {shard.name} again").note(error)
        else:
            self._take(report)

    def _stop_if_over(self) -> None:
        """End the pass if it waits only for the slower attempts at shards that were started twice."""
        if self.watch.flights.is_over():
            self.stop()


def mapped(work: Work, shards: Sequence[Shard]) -> "ray.data.Dataset":
    """Return the reports of a pool of actors on shards, as a lazy data set: it runs when it is read."""
    import ray.data

    placement = work.placement.for_shards(len(shards))
    with ray.data.DataContext.current(_context()):
        items = [{"shards": [shard.json() for shard in group]} for group in groups(shards)]
        blocks = ray.data.from_items(items, override_num_blocks=len(items))
        return ray_internals.stoppable(
            blocks.map_batches(
                ShardActor,
                fn_constructor_args=work.actor_arguments(placement),
                **placement.map_arguments(),
                runtime_env=warm.pool_environment(),
            )
        )


def groups(shards: Sequence[Shard]) -> Iterator[Sequence[Shard]]:
    """Divide the shards of a pass into blocks for Ray Data: up to SHARDS_PER_BLOCK each, the last SINGLE_BLOCKS alone.

    Each block costs the driver a few kilobytes for the whole pass. Single shards at the end let actors end together.
    """
    first = 0
    while first < len(shards):
        left = len(shards) - first
        size = 1 if left <= SINGLE_BLOCKS else min(SHARDS_PER_BLOCK, left - SINGLE_BLOCKS)
        yield shards[first : first + size]
        first += size


def in_order(shards: Sequence[Shard], submission: str) -> list[Shard]:
    """Return shards in a submission's own order, which it uses when other drivers work on the stage too."""
    mixed = list(shards)
    random.Random(hashlib.sha256(submission.encode()).digest()).shuffle(mixed)
    return mixed


def _context() -> "ray.data.DataContext":
    """Return Ray Data's settings for a pass; actors that die while starting are replaced twice."""
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.max_errored_blocks = -1
    context.max_consecutive_actor_init_deaths = 2
    context.execution_no_progress_timeout_s = -1  # waiting.py names work that makes no progress; watch.py ends it
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    return context
