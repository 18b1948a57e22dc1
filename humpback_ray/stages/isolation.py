"""Take a shard apart to find the rows that no worker survives.

The shard runs alone in its own actor, whole at first. If that raises, hangs or ends its process, its halves run, then
their halves, down to single rows; parts that work are kept. A row that fails alone is a suspect. When all others are
done, each suspect is tried again in another process. If it fails again, a row that is known to be good must work right
after it. Only then is the suspect quarantined, with its error and the last words of the process; all other rows are
committed with it. If the good row fails too, the machine is to blame.

Faults of the machine are never blamed on a row: a lost node, or errors of the operating system, the network or storage.
The same part runs again, elsewhere or after a pause, for `PATIENCE_S`. If a node is out of memory, only the good row
tells whose fault that is.

    one deadly row of r: about 2 log2(r) + 1 parts, log2(r) + 3 processes

Limits: if part after part fails, or more rows than `max_quarantined_share`, the rows are not to blame: the stage fails.

`retry` tries a commit's quarantined rows again in the same way.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from humpback_ray import storage
from humpback_ray.stages.actor import LostRow
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.errors import StageFailed
from humpback_ray.stages.ledger import Attempt, Ledger
from humpback_ray.stages.lone import LoneWorker, WorkerFailed
from humpback_ray.stages.nodes import node_id
from humpback_ray.stages.pace import Pace
from humpback_ray.stages.shards import Shard, retried

logger = logging.getLogger(__name__)

FEW_ROWS = 3
"""Number of rows of a shard that may always be quarantined."""
PATIENCE_S = 600.0
"""Seconds that a fault of the machine may last: a full disk is emptied, a network comes back."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 15.0
"""Bounds of the pauses between tries during such a fault."""


class Isolation:
    """Takes one shard apart.

    Args:
        name: of the stage.
        ledger: of the stage.
        worker: runs the parts.
        pace: sets the time limits of parts.
        share: largest share of the rows that may be quarantined.
        good: returns a committed shard and the index of one of its rows that works, or None.
    """

    def __init__(
        self, name: str, ledger: Ledger, worker: LoneWorker, pace: Pace, share: float,
        good: Callable[[], tuple[Shard, int] | None] = lambda: None,
    ) -> None:  # fmt: skip
        self.name, self.ledger, self.worker, self.pace, self.share = name, ledger, worker, pace, share
        self.good = good
        self.parts: dict[int, Any] = {}
        self.lost: list[LostRow] = []

    def run(self, shard: Shard) -> None:
        """Take the shard apart and commit it.

        Raises:
            StageFailed: the rows are not to blame.
            WorkerFailed: the parts were made but could not be put together; a retry may work.
        """
        with self.ledger.begin(shard.name, node_id=node_id(), alone=True) as attempt:
            rows = self._count(shard)
            self._take_apart(shard, rows, [(0, rows)], most_failures=2 * math.log2(max(rows, 2)) + 6)
            self._finish(shard, attempt)

    def retry(self, shard: Shard, before: Commit) -> None:
        """Try the quarantined rows of a commit again, and commit the shard under its next name.

        Raises:
            StageFailed: a row that worked before fails too.
            WorkerFailed: as `run`.
        """
        with self.ledger.begin(retried(before.shard), node_id=node_id(), alone=True) as attempt:
            rows, lost = self._count(shard), self.ledger.quarantined(before)
            worked = next((index for index in range(rows) if index not in lost), None)
            if worked is not None:
                self.good = lambda: (shard, worked)
            todo = [(index, index + 1) for index in sorted(lost, reverse=True)]
            self._take_apart(shard, rows, todo, most_failures=len(todo))
            self._finish(shard, attempt, before)

    def _count(self, shard: Shard) -> int:
        """Return the number of rows or records of a shard."""
        rows = self._patiently(
            shard, lambda: self.worker.call("count", shard.json(), limit_s=self.pace.placement.limit_unmeasured_s)
        )
        if isinstance(rows, WorkerFailed):
            raise self._refusal(shard, "could not be read", rows) from rows
        return rows

    def _finish(self, shard: Shard, attempt: Attempt, before: Commit | None = None) -> None:
        parts = [self.parts[first] for first in sorted(self.parts)]
        self.worker.call("finish", shard.json(), attempt, parts, self.lost, before, limit_s=None)

    def _take_apart(self, shard: Shard, rows: int, todo: list[tuple[int, int]], most_failures: float) -> None:
        """Run parts of a shard, halve those that fail, and judge the single rows that are left.

        Args:
            shard: to take apart.
            rows: its number of rows.
            todo: first row and last row + 1 of each part; the last part comes first.
            most_failures: number of parts that may fail in a row.
        """
        weight = self.pace.weights[shard.name] / max(rows, 1)
        most = max(FEW_ROWS, self.share * rows)
        failed, suspects = 0, list[int]()
        while todo:
            first, last = todo.pop()
            failure = self._part(shard, first, last, weight)
            if failure is None:
                failed = 0
                continue
            failed += 1
            if failed > most_failures:
                words = f"failed with whatever rows it got, {failed} times in a row"
                raise self._refusal(shard, words, failure) from failure
            if last - first > 1:
                middle = (first + last) // 2
                todo += [(middle, last), (first, middle)]
                continue
            suspects.append(first)
            if len(suspects) > most:
                words = (
                    f"lost {len(suspects)} of its {rows} rows, more than max_quarantined_share = {self.share:g} allows"
                )
                raise self._refusal(shard, words, failure) from failure
        for row in suspects:
            self._judge(shard, row, weight)

    def _judge(self, shard: Shard, row: int, weight: float) -> None:
        """Try a suspect again in another process; it is lost if it fails and a good row works right after it."""
        failure = None
        for _ in self._pauses():
            self.worker.replace()
            failure = self._part(shard, row, row + 1, weight)
            if failure is None:
                return
            if self._works(shard, weight):
                self.lost.append(LostRow(row, str(failure), failure.last_words, failure.node))
                return
            logger.warning(
                "%s: shard %s: a row that is known to be good fails too, so row %d is tried again", self.name,
                shard.name, row,
            )  # fmt: skip
        assert failure is not None
        raise self._refusal(shard, f"failed with row {row} and with one that worked before", failure) from failure

    def _works(self, shard: Shard, weight: float) -> bool:
        """Tell whether a known good row works; True if none is known."""
        known = (shard, min(self.parts)) if self.parts else self.good()
        return known is None or self._part(known[0], known[1], known[1] + 1, weight, keep=False) is None

    def _part(self, shard: Shard, first: int, last: int, weight: float, keep: bool = True) -> WorkerFailed | None:
        """Run a part; return its failure, or None."""
        limit_s = self.pace.lone_limit_s(weight * (last - first))
        made = self._patiently(
            shard, lambda: self.worker.call("part", shard.json(), first, last, limit_s=limit_s, returns=2)
        )
        if isinstance(made, WorkerFailed):
            logger.warning("%s: shard %s, rows %d to %d: %s", self.name, shard.name, first, last - 1, made)
            return made
        if keep:
            seconds, self.parts[first] = made
            self.pace.ended(weight * (last - first), seconds)
        return None

    def _patiently(self, shard: Shard, call: Callable[[], Any]) -> Any:
        """Return the result of a call, or its failure; repeat the call while the machine is to blame.

        Raises:
            StageFailed: the fault of the machine persists.
        """
        failure = None
        for pause_s in self._pauses():
            try:
                return call()
            except WorkerFailed as error:
                failure = error
            if not failure.by_machine:
                return failure
            storage.check_room(self.ledger.uri)
            if failure.lasts:
                break
            logger.warning(
                "%s: shard %s: %s; that is a fault of the machine, not of a row; trying again in %.0f s", self.name,
                shard.name, failure, pause_s,
            )  # fmt: skip
        assert failure is not None
        raise self._refusal(shard, "cannot be processed because of a fault of the machine", failure) from failure

    def _pauses(self) -> Iterator[float]:
        """Yield the length of each pause in seconds, for `PATIENCE_S`; sleep that long in between."""
        began, pause_s = time.monotonic(), FIRST_PAUSE_S
        while not self.worker.closed:
            yield pause_s
            if time.monotonic() - began > PATIENCE_S:
                return
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise WorkerFailed("the worker was stopped")

    def _refusal(self, shard: Shard, words: str, failure: WorkerFailed) -> StageFailed:
        done = len(self.ledger.committed())
        return StageFailed(
            f"{self.name}: {done} shards are committed, but shard {shard.name} {words}; last: {failure}. "
            "Fix the cause and run again"
        )
