"""Progress as log records: the package logs, and a job decides how they look.

A `Progress` emits one record a second (DEBUG, for a live display), one every 30 s (INFO, for a log), and one at the
end. Each carries its figures in `record.progress`; the message says the same in words.
"""

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from humpback_ray.stages.background import Complaints, repeat

logger = logging.getLogger(__name__)

LINE_EVERY_S = 30.0
ASK_EVERY_S = 5.0


def duration(seconds: float) -> str:
    """Write seconds as people read them: 42 s, 3 min 05 s, 2 h 10 min."""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


class Progress:
    """Count what a stage has done, in a `with` block.

    Args:
        stage: its name.
        total: number of units to do; None if unknown.
        done: number of units that earlier submissions did.
        unit: name of the unit.
        concern: called once per line, and every 5 s if there is no total. Its result ("" for nothing) is added to the
            line: which shard is stuck, how far a long step is.
    """

    def __init__(
        self, stage: str, total: int | None, done: int = 0, unit: str = "rows", concern: Callable[[], str] | None = None
    ) -> None:
        self.stage, self.total, self.unit, self.concern = stage, total, unit, concern
        self.done = self.start = done
        self.tokens = 0
        self._said, self._asked_s = "", 0.0
        self._since = time.monotonic()
        self._last = time.monotonic()
        self._complaints = Complaints(f"{stage}: looking for slow work")
        self._lock = threading.Lock()

    def __enter__(self) -> "Progress":
        self._last = time.monotonic()
        self._loop = repeat(f"{self.stage}: reporting progress", self._tick, lambda: 1.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.stop()
        self._emit(logging.INFO, ended=True)

    def begin(self, total: int, done: int = 0) -> None:
        """Restart the clock and set the total, so the rate does not count the start of workers."""
        self.total, self.done, self.start, self.tokens = total, done, done, 0
        self._since = time.monotonic()

    def advance(self, count: int, tokens: int = 0) -> None:
        """Add finished rows, and tokens if there are any. Any thread may call it."""
        with self._lock:
            self.done += count
            self.tokens += tokens

    def _tick(self) -> None:
        line = time.monotonic() - self._last >= LINE_EVERY_S
        if line:
            self._last = time.monotonic()
        self._emit(logging.INFO if line else logging.DEBUG)

    def _concern(self) -> str:
        try:
            return self.concern() if self.concern else ""
        except Exception as error:  # noqa: BLE001 the line comes every 30 s, even if something cannot be added to it
            self._complaints.note(error)
            return f"; (could not look for stuck shards: {type(error).__name__}: {error})"

    def _emit(self, level: int, ended: bool = False) -> None:
        if not logger.isEnabledFor(level):
            return
        seconds = max(time.monotonic() - self._since, 1e-9)
        rate = (self.done - self.start) / seconds
        left = (self.total - self.done) / rate if self.total is not None and rate else None
        if level == logging.INFO or (self.total is None and seconds - self._asked_s >= ASK_EVERY_S):
            self._said, self._asked_s = self._concern(), seconds
        figures: dict[str, Any] = {
            "stage": self.stage, "done": self.done, "total": self.total, "unit": self.unit, "seconds": seconds,
            "rate": rate, "tokens_per_s": self.tokens / seconds, "eta_s": left, "ended": ended,
        }  # fmt: skip
        logger.log(level, "%s", _words(figures) + ("" if ended else self._said), extra={"progress": figures})


def _words(figures: dict[str, Any]) -> str:
    total = figures["total"]
    share = f"{figures['done']:,} of {total:,} {figures['unit']}" if total is not None else "at work"
    if total:
        share += f" ({figures['done'] / total:.0%})"
    words = [f"{figures['stage']}: {share}", f"{duration(figures['seconds'])}"]
    if total is not None:
        words.append(f"{figures['rate']:.1f} {figures['unit']}/s")
    if figures["tokens_per_s"]:
        words.append(f"{figures['tokens_per_s']:.0f} tokens/s")
    if figures["eta_s"] is not None and not figures["ended"]:
        words.append(f"{duration(figures['eta_s'])} left")
    return ", ".join(words)
