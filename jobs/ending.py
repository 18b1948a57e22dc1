"""How a job ends when it is told to.

SIGTERM comes from `ray job stop`, which kills 3 s later, and from Kubernetes, after 30 s. Left alone, Ray would answer
with a bare exit, and a main thread that waits inside a library not at all. Here SIGTERM is a KeyboardInterrupt in the
main thread, so that everything held by a `with` block is given back, a lease among it; and a thread of its own, woken
by the signal itself, ends the process after LEAVE_S whatever the main thread does. The last line says what was left.

Not here: a driver whose own raylet or GCS died is ended by Ray, with Ray's words and exit code 1, within about 15 s and
60 s; under `ray job submit` its supervisor dies with the raylet, and Ray kills the driver.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

TERMINATED = 128 + signal.SIGTERM
LEAVE_S = 1.8
"""Seconds from SIGTERM to the end."""


class Ending:
    """What a job does when it is ended from outside.

    Args:
        say: prints a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.state: Callable[[], str] = lambda: "nothing was begun"
        """Says what is left, from storage; a job sets it when something may be."""
        self._told = False
        self._left = "what is committed stays"
        self._known, self._gate = threading.Event(), threading.Lock()

    @contextlib.contextmanager
    def answered(self) -> Iterator[None]:
        """Answer SIGTERM in the block: it does not return from there."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(reader,), name="ending", daemon=True).start()
        self.take_sigterm()
        try:
            yield
        except BaseException as error:
            by_ray = isinstance(error, SystemExit) and error.code == signal.SIGTERM
            if not self._told and not by_ray:
                raise
            self._known.wait(LEAVE_S)
            self._leave()

    def take_sigterm(self) -> None:
        """Take SIGTERM over; again after `ray.init`, which does so too."""
        signal.signal(signal.SIGTERM, self._interrupt)

    def leave_to_ray(self) -> None:
        """Answer SIGTERM no more: the job has said its last word and is about to be stopped."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self._told:
            self._told = True
            raise KeyboardInterrupt  # what `ray.get` passes on as it is

    def _listen(self, reader: int) -> None:
        while signal.SIGTERM not in os.read(reader, 64):
            pass
        clock = threading.Timer(LEAVE_S, self._leave)
        clock.daemon = True
        clock.start()
        self._ask()

    def _ask(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._left = self.state()
        self._known.set()

    def _leave(self) -> None:
        with self._gate:  # the first to come ends the process
            self._speak("terminated")
            os._exit(TERMINATED)

    def interrupted(self) -> None:
        """Say what Ctrl-C left."""
        self._ask()
        self._speak("interrupted")

    def _speak(self, how: str) -> None:
        self.say(f"{how}; {self._left}; the same command goes on from here")
