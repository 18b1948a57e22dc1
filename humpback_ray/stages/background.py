"""Loops in the background that outlive their errors.

A thread that watches, counts or says how far a stage is must not die of one bad answer: nobody would notice, and with
it would go what it promises (a line every 30 s, an end at `max_dollars`). So `repeat` catches whatever a step raises,
logs it with its traceback, at most once a minute, and goes on. What such a loop finds can end the work of the main
thread: `MainThread`.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

COMPLAIN_EVERY_S = 60.0
"""Errors of one loop within this time of a logged one are counted, not logged."""


class Complaints:
    """Logs the errors of one loop, one a minute.

    Args:
        what: could not be done, for the log: "candidates: looking after the attempts".
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._last: float | None = None
        self._unsaid = 0

    def note(self, error: Exception) -> None:
        """Log an error, or count it if another one was logged within the last minute.

        With its traceback, unless it is the operating system's or storage's, which says what and where.
        """
        now = time.monotonic()
        if self._last is not None and now - self._last < COMPLAIN_EVERY_S:
            self._unsaid += 1
            return
        more = f" ({self._unsaid} more since the last time)" if self._unsaid else ""
        logger.warning("%s failed and will be tried again: %s%s", self.what, error or type(error).__name__, more,
                       exc_info=None if isinstance(error, OSError) else error)  # fmt: skip
        self._last, self._unsaid = now, 0


class Loop(threading.Thread):
    """Calls a step again and again, from `repeat` until it is stopped."""

    def __init__(
        self, what: str, step: Callable[[], object], pause_s: Callable[[], float], end: threading.Event
    ) -> None:
        super().__init__(name=what, daemon=True, target=self._go_round, args=(Complaints(what), step, pause_s))
        self._over = end

    def _go_round(self, complaints: Complaints, step: Callable[[], object], pause_s: Callable[[], float]) -> None:
        while not self._over.wait(pause_s()):
            try:
                step()
            except Exception as error:  # noqa: BLE001 the loop is the promise; whatever it is, it is logged
                complaints.note(error)

    def stop(self, wait_s: float | None = None) -> None:
        """End the loop, during a pause at once; a step on its way is waited for this long (None: until its end)."""
        self._over.set()
        self.join(wait_s)


def repeat(
    what: str, step: Callable[[], object], pause_s: Callable[[], float], end: threading.Event | None = None
) -> Loop:
    """Call a step again and again in a daemon thread, first after a pause; returns the loop, started.

    Args:
        what: names the thread, and what failed in the log.
        step: whatever it raises is logged, and the loop goes on.
        pause_s: seconds before the next call.
        end: ends the loop as `Loop.stop` does, for those who set it themselves.
    """
    loop = Loop(what, step, pause_s, end or threading.Event())
    loop.start()
    return loop


class MainThread:
    """Lets other threads interrupt the main one as Ctrl-C does, also where SIGINT is ignored or blocked.

    It is a real signal, which ends the wait for a lock, too; `_thread.interrupt_main` would wait for the wait's end.
    """

    def __init__(self) -> None:
        self._ignored: Any = None  # what SIGINT did before, if nothing
        self._blocked = False

    def listen(self) -> None:
        """Take SIGINT, which a script's background ignores and `ray job submit` blocks. On the main thread."""
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            self._ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
        self._blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def restore(self) -> None:
        """Leave SIGINT as it was before `listen`. On the main thread."""
        if self._blocked:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        if self._ignored is not None:
            signal.signal(signal.SIGINT, self._ignored)
        self._blocked, self._ignored = False, None

    @staticmethod
    def interrupt() -> None:
        """Raise KeyboardInterrupt in the main thread, whatever it waits for. On any thread."""
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)
