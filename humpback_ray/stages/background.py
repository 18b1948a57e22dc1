"""Loops in the background that outlive their errors.

A thread that watches, counts or reports progress must not die of one bad reply: nobody would notice, and its promise (a
line every 30 s, a stop at `max_dollars`) would be broken. So `repeat` catches every error of a step, logs it with its
traceback, at most once a minute, and continues. Such a loop can interrupt the main thread: `MainThread`.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

COMPLAIN_EVERY_S = 60.0
"""After a logged error, further errors of the same loop within this time are counted but not logged."""


class Complaints:
    """Logs the errors of one loop, at most one a minute.

    Args:
        what: the failed activity, for the log: "candidates: watching the attempts".
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._last: float | None = None
        self._unsaid = 0

    def note(self, error: Exception) -> None:
        """Log an error, or count it if another one was logged within the last minute.

        An OSError is logged without its traceback, since it says what failed and where.
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
    """Calls a step repeatedly, from `repeat` until it is stopped."""

    def __init__(
        self, what: str, step: Callable[[], object], pause_s: Callable[[], float], end: threading.Event
    ) -> None:
        super().__init__(name=what, daemon=True, target=self._go_round, args=(Complaints(what), step, pause_s))
        self._over = end

    def _go_round(self, complaints: Complaints, step: Callable[[], object], pause_s: Callable[[], float]) -> None:
        while not self._over.wait(pause_s()):
            try:
                step()
            except Exception as error:  # noqa: BLE001 the loop must survive; every error is logged
                complaints.note(error)

    def stop(self, wait_s: float | None = None) -> None:
        """End the loop: at once during a pause, else wait this long for the running step (None: until it ends)."""
        self._over.set()
        self.join(wait_s)


def repeat(
    what: str, step: Callable[[], object], pause_s: Callable[[], float], end: threading.Event | None = None
) -> Loop:
    """Call a step repeatedly in a daemon thread, first after a pause; return the started loop.

    Args:
        what: the activity; names the thread, and the failure in the log.
        step: its errors are logged, and the loop continues.
        pause_s: seconds before the next call.
        end: setting it ends the loop, like `Loop.stop`.
    """
    loop = Loop(what, step, pause_s, end or threading.Event())
    loop.start()
    return loop


class MainThread:
    """Lets other threads interrupt the main one as Ctrl-C does, even if SIGINT is ignored or blocked.

    It sends a real signal, which also interrupts a wait for a lock; `_thread.interrupt_main` does not.
    """

    def __init__(self) -> None:
        self._ignored: Any = None  # SIG_IGN if SIGINT was ignored before, else None
        self._blocked = False

    def listen(self) -> None:
        """Accept SIGINT, which background jobs of a script ignore and `ray job submit` blocks. Main thread only."""
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            self._ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
        self._blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def restore(self) -> None:
        """Restore SIGINT as it was before `listen`. Main thread only."""
        if self._blocked:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        if self._ignored is not None:
            signal.signal(signal.SIGINT, self._ignored)
        self._blocked, self._ignored = False, None

    @staticmethod
    def interrupt() -> None:
        """Raise KeyboardInterrupt in the main thread, whatever it waits for. Any thread may call it."""
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)
