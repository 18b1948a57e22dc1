"""How a job ends when it is told to.

SIGTERM comes from `ray job stop`, which kills 3 s later, and from Kubernetes, after 30 s. Left alone, Ray would answer
with a bare exit, and a main thread that waits inside a library not at all. Here SIGTERM is a KeyboardInterrupt in the
main thread, so that everything held by a `with` block is given back, a lease among it; and a thread of its own, woken
by the signal itself, ends the process after LEAVE_S whatever the main thread does. SIGHUP, from a terminal that is
closed, is the same. After Ctrl-C the main thread has INTERRUPT_S for what it gives back, and AGAIN_S after a second
one: a store that hangs holds up nobody. The last line says what was left.

Not here: a driver whose own raylet or GCS died is ended by Ray, with Ray's words and exit code 1, within about 15 s and
60 s; under `ray job submit` its supervisor dies with the raylet, and Ray kills the driver.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT
LEAVE_S = 1.8
"""Seconds from SIGTERM to the end."""
INTERRUPT_S, AGAIN_S = 10.0, 1.0
"""Seconds from the first Ctrl-C to the end, and from a second one."""
SAY_S = 1.5
"""How long storage has to say what is left."""


class Ending:
    """What a job does when it is ended from outside.

    Args:
        say: prints a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.state: Callable[[], str] = lambda: "nothing was begun"
        """Says what is left, from storage; a job sets it when something may be."""
        self.stopping: Callable[[], bool] = lambda: False
        """Tells whether the job stops itself, with an exit code of its own and what time that takes."""
        self._told = 0
        """The signal that ends this process."""
        self._interrupts = 0
        self._clocks: list[threading.Timer] = []
        self._takes_sighup = False
        self._left = "what is committed stays"
        self._known, self._gate = threading.Event(), threading.Lock()

    @contextlib.contextmanager
    def answered(self) -> Iterator[None]:
        """Answer SIGTERM and SIGHUP in the block: it does not return from there."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(reader,), name="ending", daemon=True).start()
        self.take_sigterm()
        self._takes_sighup = signal.getsignal(signal.SIGHUP) is signal.SIG_DFL  # else somebody said nohup
        if self._takes_sighup:
            signal.signal(signal.SIGHUP, self._interrupt)
        try:
            yield
            self._stop_clocks()
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):
                self._stop_clocks()
            by_ray = isinstance(error, SystemExit) and error.code == signal.SIGTERM
            if not self._told and not by_ray:
                raise
            self._known.wait(LEAVE_S)
            self._leave("terminated", 128 + (self._told or signal.SIGTERM))

    def take_sigterm(self) -> None:
        """Take SIGTERM over; again after `ray.init`, which does so too."""
        signal.signal(signal.SIGTERM, self._interrupt)

    def leave_to_ray(self) -> None:
        """Answer SIGTERM no more: the job has said its last word and is about to be stopped."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self._told:
            self._told = number
            raise KeyboardInterrupt  # what `ray.get` passes on as it is

    def _listen(self, reader: int) -> None:
        while True:
            for number in os.read(reader, 64):
                if number == signal.SIGTERM or (number == signal.SIGHUP and self._takes_sighup):
                    self._end_after(LEAVE_S, "terminated", 128 + number)
                elif number == signal.SIGINT and not self.stopping():
                    self._interrupts += 1
                    self._end_after(INTERRUPT_S if self._interrupts == 1 else AGAIN_S, "interrupted", INTERRUPTED)

    def _end_after(self, seconds: float, how: str, code: int) -> None:
        """End this process in some seconds, and ask meanwhile what is left."""
        clock = threading.Timer(seconds, self._leave, (how, code))
        self._clocks.append(clock)
        for thread in (clock, threading.Thread(target=self._ask)):
            thread.daemon = True
            thread.start()

    def _stop_clocks(self) -> None:
        """Let this process live: what interrupted it was the job's own doing, a limit or a lost lease."""
        while self._clocks and not self._told:
            self._clocks.pop().cancel()

    def _ask(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._left = self.state()
        self._known.set()

    def _leave(self, how: str, code: int) -> None:
        with self._gate:  # the first to come ends the process
            self._speak(how)
            os._exit(code)

    def left(self) -> str:
        """Say what is left, as far as storage answers soon."""
        self._known.clear()
        threading.Thread(target=self._ask, daemon=True).start()
        self._known.wait(SAY_S)
        return self._left

    def interrupted(self) -> None:
        """Say what Ctrl-C left."""
        self.left()
        with self._gate:
            self._speak("interrupted")

    def _speak(self, how: str) -> None:
        self.say(f"{how}; {self._left}; the same command goes on from here")
