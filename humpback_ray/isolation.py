"""A shard taken apart: which of its rows does no worker survive?

The shard runs alone in an actor of its own, whole at first. Where that raises, hangs or ends its process, its halves
run, and theirs, down to single rows; parts that work are kept. A row that fails alone twice, the second time in another
process, is quarantined with its error and the last words of the process; all others are committed with it. A lost node
is nobody's fault: the same part runs again on another.

    one deadly row of r: about 2 log2(r) parts, log2(r) + 2 processes

Given up: when part after part fails, or more rows than `max_quarantined_share`, it is not the rows: the stage fails.
"""

import contextlib
import logging
import math
from collections.abc import Sequence
from typing import Any, cast

from humpback_ray import processes
from humpback_ray.actor import LoneActor, LostRow, Process, node_id
from humpback_ray.ledger import Attempt, Ledger, Shard, StageFailed
from humpback_ray.placement import PoolPlacement
from humpback_ray.watch import Pace

logger = logging.getLogger(__name__)

NODE_WAIT_S = 4 * 3600
"""How long an actor may take to start: GPU nodes can take hours to come."""
MOST_NODES = 20
"""Nodes lost under one shard after which it fails."""
FEW_ROWS = 3
"""So many rows of a shard may always be quarantined."""


class WorkerFailed(Exception):
    """A call raised, hung or ended its process; with the last words of the process, and its node."""

    def __init__(self, error: str, last_words: str = "", node: str = "") -> None:
        super().__init__(error)
        self.last_words, self.node = last_words, node


class LoneWorker:
    """A `LoneActor` that is replaced when it died. Used by one thread; `close` by any.

    Args:
        arguments: of the actor.
        placement: what it is given.
        avoid_node: Ray's id of a node to stay away from where there is another.
    """

    def __init__(self, arguments: tuple[Any, ...], placement: PoolPlacement, avoid_node: str | None = None) -> None:
        self.arguments, self.placement, self.avoid_node = arguments, placement, avoid_node
        self.closed = False
        self._actor: Any = None
        self._process = Process("", "", 0, "")

    def call(self, method: str, *arguments: Any, limit_s: float | None, returns: int = 1) -> Any:
        """Return the result of a method; of several, references to those after the first.

        Raises:
            WorkerFailed: it raised, or hung, or its process ended; not if its node was lost.
            StageFailed: no actor could be started.
        """
        for _ in range(MOST_NODES):
            try:
                return self._call(method, *arguments, limit_s=limit_s, returns=returns)
            except processes.NodeLost as lost:
                logger.warning("%s; the same again elsewhere", lost)
                self.replace()
        raise WorkerFailed(f"{MOST_NODES} nodes were lost under it")

    def _call(self, method: str, *arguments: Any, limit_s: float | None, returns: int) -> Any:
        import ray
        from ray.exceptions import GetTimeoutError, RayError, RayTaskError

        references = getattr(self._started(), method).options(num_returns=returns).remote(*arguments)
        first, *others = references if returns > 1 else [references]
        try:
            value = ray.get(first, timeout=limit_s)
        except GetTimeoutError:
            processes.end(self._process.node_id, self._process.pid, math.inf)
            raise self._failed(f"no end within the limit of {limit_s:.0f} s") from None
        except RayTaskError as error:
            _look_at(others)
            raise WorkerFailed(reason(error), node=self._process.node) from error
        except RayError as error:
            _look_at(others)
            raise self._failed(reason(error)) from error
        return (value, *others) if others else value

    def _started(self) -> Any:
        """Return the actor, started and ready."""
        import ray
        from ray.exceptions import RayError

        for last_try in (False, False, True):
            if self.closed:
                raise WorkerFailed("it was called off")
            if self._actor is not None:
                break
            options = self.placement.actor_arguments(self.avoid_node)
            self._actor = ray.remote(LoneActor).options(**options).remote(*self.arguments)
            try:
                self._process = cast(Process, ray.get(self._actor.ready.remote(), timeout=NODE_WAIT_S))
            except RayError as error:
                self.replace()
                if last_try:
                    raise StageFailed(f"a worker could not be started: {reason(error)}") from error
        return self._actor

    def _failed(self, error: str) -> WorkerFailed:
        """Return the failure of the process that has just ended, with its last words."""
        process = self._process
        words = processes.words(process.node_id, process.stderr)
        self.replace()
        return WorkerFailed(error, words, process.node)

    def replace(self) -> None:
        """End the actor; the next call gets a new one."""
        import ray

        if self._actor is not None:
            ray.kill(self._actor)
        self._actor = None

    def close(self) -> None:
        """End the actor for good."""
        self.closed = True
        self.replace()


class Isolation:
    """Takes one shard apart.

    Args:
        name: of the stage.
        ledger: of the stage.
        worker: where the parts run.
        pace: what parts should take.
        share: of the rows that may be quarantined.
    """

    def __init__(self, name: str, ledger: Ledger, worker: LoneWorker, pace: Pace, share: float) -> None:
        self.name, self.ledger, self.worker, self.pace, self.share = name, ledger, worker, pace, share
        self.parts: dict[int, Any] = {}
        self.lost: list[LostRow] = []

    def run(self, shard: Shard) -> None:
        """Bring the shard to its commit.

        Raises:
            StageFailed: it is not the rows.
            WorkerFailed: the parts were made, and could not be put together; it may be tried again.
        """
        with self.ledger.begin(shard.name, node_id=node_id(), alone=True) as attempt:
            self._take_apart(shard)
            self._finish(shard, attempt)

    def _finish(self, shard: Shard, attempt: Attempt) -> None:
        parts = [self.parts[first] for first in sorted(self.parts)]
        self.worker.call("finish", shard.json(), attempt, parts, self.lost, limit_s=None)

    def _take_apart(self, shard: Shard) -> None:
        try:
            rows = self.worker.call("count", shard.json(), limit_s=self.pace.placement.limit_unmeasured_s)
        except WorkerFailed as failure:
            raise self._refusal(shard, "could not be read", failure) from failure
        weight = self.pace.weights[shard.name] / max(rows, 1)
        todo, failed, confirming = [(0, rows)], 0, False
        while todo:
            first, last = todo.pop()
            limit_s = self.pace.lone_limit_s(weight * (last - first))
            try:
                seconds, part = self.worker.call("part", shard.json(), first, last, limit_s=limit_s, returns=2)
            except WorkerFailed as failure:
                failed += 1
                logger.warning("%s: shard %s, rows %d to %d: %s", self.name, shard.name, first, last - 1, failure)
                if failed > 2 * math.log2(max(rows, 2)) + 6:
                    raise self._refusal(
                        shard, f"failed with whatever rows, {failed} times in a row", failure
                    ) from failure
                if last - first > 1:
                    middle = (first + last) // 2
                    todo += [(middle, last), (first, middle)]
                elif confirming:
                    confirming = False
                    self._lose(shard, LostRow(first, str(failure), failure.last_words, failure.node), rows, failure)
                else:
                    confirming = True
                    self.worker.replace()
                    todo.append((first, last))
            else:
                failed, confirming = 0, False
                self.parts[first] = part
                self.pace.ended(weight * (last - first), seconds)

    def _lose(self, shard: Shard, row: LostRow, rows: int, failure: WorkerFailed) -> None:
        self.lost.append(row)
        most = max(FEW_ROWS, self.share * rows)
        if len(self.lost) > most:
            words = f"lost {len(self.lost)} of its {rows} rows, more than max_quarantined_share = {self.share:g} allows"
            raise self._refusal(shard, words, failure)

    def _refusal(self, shard: Shard, words: str, failure: WorkerFailed) -> StageFailed:
        done = len(self.ledger.committed())
        return StageFailed(
            f"{self.name}: {done} shards are committed, but shard {shard.name} {words}; last: {failure}. "
            "Mend the cause and run again"
        )


def _look_at(references: Sequence[Any]) -> None:
    """Take note of errors that are known already; Ray would print each of them as unhandled."""
    import ray
    from ray.exceptions import RayError

    for reference in references:
        with contextlib.suppress(RayError):
            ray.get(reference, timeout=10)


def reason(error: BaseException) -> str:
    """Return the error inside Ray's wrapping as one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("File ", "ray::", "If you continue", "^"))]
    inner = [line for line in said if "Error" in line.split(":")[0].split(".")[-1]]
    return (inner or said or [type(error).__name__])[-1][:500]
