"""How a job ends when it is told to: by SIGTERM, which `ray job stop` and Kubernetes send before they kill.

Left alone, Ray would answer with a bare exit, and a main thread that waits inside a library not at all. Here SIGTERM is
a KeyboardInterrupt in the main thread, so that everything held by a `with` block is given back, a lease among it; and a
thread of its own, woken by the signal itself, ends the process after LEAVE_S whatever the main thread does. Either way
the last line says what was left, and the exit code is 143.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

TERMINATED = 128 + signal.SIGTERM
LEAVE_S = 1.8
"""Seconds from SIGTERM to the end: `ray job stop` kills after 3."""


class Ending:
    """What a job says when it is ended from outside.

    Args:
        say: prints a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.state: Callable[[], str] = lambda: "nothing was begun"
        """Says what is left, from storage; a job sets it when something may be."""
        self._told = self._spoken = False
        self._left = "what is committed stays"
        self._known, self._gate = threading.Event(), threading.Lock()

    @contextlib.contextmanager
    def on_sigterm(self) -> Iterator[None]:
        """Answer SIGTERM in the block.

        Raises:
            SystemExit: the block was ended by SIGTERM.
        """
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), name="ending", daemon=True).start()
        self.listen()
        try:
            yield
        except BaseException as error:
            raised_by_ray = isinstance(error, SystemExit) and error.code == signal.SIGTERM
            if not self._told and not raised_by_ray:
                raise
            self._known.wait(LEAVE_S)
            self._speak("terminated")
            raise SystemExit(TERMINATED) from None

    def listen(self) -> None:
        """Take SIGTERM; again after `ray.init`, which takes it too."""
        signal.signal(signal.SIGTERM, self._interrupt)

    def interrupted(self) -> None:
        """Say what an interrupt (Ctrl-C) left."""
        self._ask()
        self._speak("interrupted")

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self._told:
            self._told = True
            raise KeyboardInterrupt  # what `ray.get` passes on as it is

    def _watch(self, reader: int) -> None:
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

    def _speak(self, how: str) -> None:
        with self._gate:
            if not self._spoken:
                self.say(f"{how}; {self._left}; the same command goes on from here")
            self._spoken = True

    def _leave(self) -> None:
        self._speak("terminated")
        os._exit(TERMINATED)
