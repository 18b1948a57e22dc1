"""`max_hours` and `max_dollars`: what a run has taken over all its submissions, and an end to it.

    <root>/spent/<submission>.json   hours and dollars of one submission, rewritten every minute and at its end

A submission's clock runs while its driver works on stages; each moment costs what the placement of the stage at work
costs by the prices of `plan`, a pool counted at its largest. So the run is stopped too early rather than too late,
but machines that wait between stages, storage and other jobs on the cluster are not in it. Where a limit is reached
the driver is interrupted as by Ctrl-C: shards and checkpoints that are committed stay, leases are given back.
"""

import _thread
import json
import signal
import threading
import time
from types import TracebackType
from typing import Any

from humpback_ray import storage
from humpback_ray.run import Run, RunConfig

LOOK_EVERY_S = 2.0
WRITE_EVERY_S = 60.0


class LimitReached(RuntimeError):
    """The run has taken as long or cost as much as it may; the message has both numbers and how to go on."""


class Limits:
    """Count in a `with` block, and interrupt it where a limit is reached.

    Args:
        run: whose stages are worked on in the block, on the main thread.
        look_every_s: how often the clock is looked at.

    Raises:
        LimitReached: on entry, where a limit is reached already; on exit, where it was in the block.
    """

    def __init__(self, run: Run, look_every_s: float = LOOK_EVERY_S) -> None:
        self.run, self.config, self.look_every_s = run, run.config, look_every_s
        self.before = spent(run.root)
        self.hours = self.dollars = 0.0
        self._last = time.monotonic()
        self._reached = ""
        self._ignored: Any = None  # what SIGINT did before, if nothing
        self._over = threading.Event()
        self._gate = threading.Lock()

    def __enter__(self) -> "Limits":
        if problem := self.problem():
            raise LimitReached(problem)
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a script's background
            self._ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
        self._thread = threading.Thread(target=self._watch, name="limits", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._gate:
                self._over.set()
            self._thread.join()
        except KeyboardInterrupt:
            if not self._reached:
                raise
        finally:
            if self._ignored is not None:
                signal.signal(signal.SIGINT, self._ignored)
        self._count()
        self._write()
        if self._reached and isinstance(error, KeyboardInterrupt | None):
            raise LimitReached(f"{self._reached}; {self.run.state()}") from None

    def problem(self) -> str:
        """Say which limit is reached; "" if none."""
        hours, dollars = (old + new for old, new in zip(self.before, (self.hours, self.dollars), strict=True))
        for field, taken, limit in (
            ("max_hours", hours, self.config.max_hours), ("max_dollars", dollars, self.config.max_dollars)
        ):  # fmt: skip
            if limit is not None and taken >= limit:
                return (
                    f"{self.run.root}: the run has taken {hours:.3g} hours and ${dollars:,.2f} by the prices of `plan` "
                    f"and {field} is {limit:g}; the same command with a higher {field} goes on from here"
                )
        return ""

    def _watch(self) -> None:
        written = time.monotonic()
        while not self._over.wait(self.look_every_s):
            self._count()
            if time.monotonic() - written > WRITE_EVERY_S:
                self._write()
                written = time.monotonic()
            if problem := self.problem():
                with self._gate:
                    if not self._over.is_set():
                        self._reached = problem
                        self._over.set()
                        _thread.interrupt_main()
                return

    def _count(self) -> None:
        now, place = time.monotonic(), self.run.place
        seconds, self._last = now - self._last, now
        self.hours += seconds / 3600
        if place is not None:
            self.dollars += seconds * dollars_per_s(self.config, place.name)

    def _write(self) -> None:
        uri = storage.join(self.run.root, "spent", f"{self.run.submission}.json")
        storage.write_bytes(uri, json.dumps({"hours": self.hours, "dollars": self.dollars}).encode())


def dollars_per_s(config: RunConfig, stage: str) -> float:
    """Return what a stage's placement costs per second."""
    placement = config.placement_of(stage)
    return config.plan.dollars_per_s(placement.most()) if placement else 0.0


def spent(root: str) -> tuple[float, float]:
    """Return the hours and dollars of all submissions of a run so far."""
    directory = storage.join(root, "spent")
    names = [name for name in storage.list_names(directory) if not storage.is_temporary(name)]
    found = [json.loads(storage.read_bytes(storage.join(directory, name))) for name in names]
    return sum(one["hours"] for one in found), sum(one["dollars"] for one in found)
