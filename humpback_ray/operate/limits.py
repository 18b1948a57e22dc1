"""`max_hours` and `max_dollars`: count what a run has taken over all its submissions, and stop it at a limit.

    <root>/spent/<submission>.json   hours and dollars of one submission, rewritten every minute (more often at first: a
                                     driver that is killed has recorded at least four fifths of its time) and at its end

A submission's clock runs while its driver works on stages. Time costs what the placement of the current stage costs by
the prices of `plan`, with a pool counted at its maximum size, so a run stops too early rather than too late. Machines
that wait between stages, storage, and other jobs on the cluster are not counted. What other submissions have taken is
read again every minute, so drivers that run at the same time share one limit.

At a limit, the driver is interrupted as by Ctrl-C: committed shards and checkpoints stay, and leases are released. It
is a real signal, which also interrupts waiting for a lock. A main thread that does not end is interrupted again, and
after `END_WITHIN_S` the process gets SIGTERM.
"""

import json
import logging
import os
import signal
import threading
import time
from types import TracebackType

from humpback_ray import storage
from humpback_ray.config import ConfigError
from humpback_ray.graph import Graph
from humpback_ray.run import Run
from humpback_ray.stages.background import Complaints, MainThread, repeat

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
WRITE_EVERY_S = 60.0
FRESH_SHARE = 0.2
"""Largest share of a submission's time that is not yet recorded in its first minutes."""
TELL_EVERY_S = 10.0
"""Interval between interrupts of a main thread that does not leave the block."""
END_WITHIN_S = 120.0
"""Time that it has to leave the block before the process gets SIGTERM."""
LEAVE_WITHIN_S = 10.0
"""How long the end of the block waits for a pending request to storage."""


class LimitReached(RuntimeError):
    """The run has reached a limit; the message has both numbers and says how to resume."""


class Limits:
    """Count in a `with` block, and interrupt it when a limit is reached.

    Args:
        run: the run whose stages the block works on, on the main thread.
        look_every_s: interval between looks at the clock.

    Raises:
        LimitReached: on entry, if a limit is reached already; on exit, if it was reached in the block.
    """

    def __init__(self, run: Run, look_every_s: float = LOOK_EVERY_S) -> None:
        self.run, self.config, self.look_every_s = run, run.config, look_every_s
        self.uri = storage.join(run.root, "spent", f"{run.submission}.json")
        self.before = spent(run.root, run.submission)
        """Hours and dollars of the other submissions, as last read."""
        self.hours = self.dollars = 0.0
        self._last = self._written = time.monotonic()
        self._reached, self._told = "", 0.0
        self._first_told: float | None = None
        self._main = MainThread()
        self._over = threading.Event()
        self._gate = threading.Lock()

    def __enter__(self) -> "Limits":
        if problem := self.problem():
            raise LimitReached(problem)
        if self._is_limited():
            self._main.listen()
        self._thread = repeat("counting hours and dollars", self._look, lambda: self.look_every_s, self._over)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._gate:
                self._over.set()
            self._thread.join(LEAVE_WITHIN_S)
        except KeyboardInterrupt:
            if not self._reached:
                raise
        finally:
            self._over.set()
            self._main.restore()
        self._count()
        try:
            self._write()
        except OSError as refused:  # hides neither what the block raised nor that it succeeded
            Complaints(f"writing {self.uri}").note(refused)
        if self._reached and isinstance(error, KeyboardInterrupt | None):
            raise LimitReached(f"{self._reached}; {self._state()}") from None

    def _state(self) -> str:
        try:
            return self.run.state()
        except (OSError, ValueError) as error:
            return f"progress could not be read ({error})"

    def _is_limited(self) -> bool:
        return self.config.max_hours is not None or self.config.max_dollars is not None

    def problem(self) -> str:
        """Say which limit is reached; "" for none."""
        hours, dollars = (old + new for old, new in zip(self.before, (self.hours, self.dollars), strict=True))
        for field, taken, limit in (
            ("max_hours", hours, self.config.max_hours), ("max_dollars", dollars, self.config.max_dollars)
        ):  # fmt: skip
            if limit is not None and taken >= limit:
                return (
                    f"{self.run.root}: the run has taken {hours:.3g} hours and ${dollars:,.2f} by the prices of "
                    f"`plan`, and {field} is {limit:g}; the same command with a higher {field} resumes from here"
                )
        return ""

    def _look(self) -> None:
        """Count, and end the block when a limit is reached; errors of storage prevent neither."""
        now = self._count()
        try:
            self._share(now)
        finally:
            self._reached = self._reached or self.problem()
            if self._reached:
                self._tell(now)

    def _share(self, now: float) -> None:
        """Record the count and read those of other submissions, if it is time."""
        if now - self._written >= min(WRITE_EVERY_S, FRESH_SHARE * 3600 * self.hours):
            self._written = now
            self._write()
            self.before = spent(self.run.root, self.run.submission)

    def _tell(self, now: float) -> None:
        """Interrupt the main thread, again until it leaves the block; in the end, terminate the process."""
        if self._first_told is None:
            self._first_told = now
        elif now - self._told < TELL_EVERY_S:
            return
        self._told = now
        with self._gate:
            if self._over.is_set():
                return
            if now - self._first_told < END_WITHIN_S:
                self._main.interrupt()
            else:
                logger.error("%s; the driver did not stop within %.0f s", self._reached, END_WITHIN_S)
                os.kill(os.getpid(), signal.SIGTERM)

    def _count(self) -> float:
        """Add the time since the last count; return the clock."""
        now, place = time.monotonic(), self.run.place
        seconds, self._last = now - self._last, now
        self.hours += seconds / 3600
        if place is not None:
            self.dollars += seconds * dollars_per_s(self.run.graph, place.name)
        return now

    def _write(self) -> None:
        storage.write_bytes(self.uri, json.dumps({"hours": self.hours, "dollars": self.dollars}).encode())


def dollars_per_s(graph: Graph, stage: str) -> float:
    """Return what a stage's placement costs per second."""
    placement = graph.placement(stage)
    return graph.config.plan.dollars_per_s(placement.most()) if placement else 0.0


def spent(root: str, but: str = "") -> tuple[float, float]:
    """Return the hours and dollars of a run's submissions so far, except those of the submission `but`.

    Raises:
        ConfigError: a file is damaged; the message names it.
    """
    directory, hours, dollars = storage.join(root, "spent"), 0.0, 0.0
    for name in storage.list_names(directory):
        if name.startswith(".") or not name.endswith(".json") or name == f"{but}.json":
            continue
        uri = storage.join(directory, name)
        try:
            found = json.loads(storage.read_bytes(uri))
            hours, dollars = hours + found["hours"], dollars + found["dollars"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"{uri} is damaged ({type(error).__name__}: {error}); write what that submission took "
                '({"hours": 0, "dollars": 0} if unknown) or delete the file'
            ) from error
    return hours, dollars
