"""How a job ends on a signal.

SIGTERM comes from `ray job stop`, which kills the job 3 s later, and from Kubernetes, which waits 30 s. By default Ray
would exit at once, and a main thread that waits inside a library would not react at all. Here SIGTERM raises
KeyboardInterrupt in the main thread, so every `with` block releases what it holds, such as a lease. A second thread,
woken by the signal itself, ends the process after LEAVE_S whatever the main thread does. SIGHUP, from a closed
terminal, works the same way. After Ctrl-C the main thread has INTERRUPT_S to release things, and AGAIN_S after a second
Ctrl-C, so a store that hangs cannot delay the end. The last line says how far the work is.

Not handled here: if a driver's own raylet or GCS dies, Ray ends the driver with its own message and exit code 1, within
about 15 s (raylet) or 60 s (GCS). Under `ray job submit`, the supervisor dies with the raylet and Ray kills the driver.
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
"""Seconds that storage has to say how far the work is."""


class Ending:
    """Handles a job's end from outside.

    Args:
        say: prints a line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.state: Callable[[], str] = lambda: "nothing was started"
        """Says, from storage, how far the work is; a job sets it before it starts to work."""
        self.stopping: Callable[[], bool] = lambda: False
        """Tells whether the job is stopping by itself; it then uses its own exit code and takes the time it needs."""
        self._told = 0
        """The signal that ends this process."""
        self._interrupts = 0
        self._clocks: list[threading.Timer] = []
        self._takes_sighup = False
        self._left = "committed work stays"
        self._known, self._gate = threading.Event(), threading.Lock()

    @contextlib.contextmanager
    def answered(self) -> Iterator[None]:
        """Handle SIGTERM and SIGHUP during the block; they end the process."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(reader,), name="ending", daemon=True).start()
        self.take_sigterm()
        self._takes_sighup = signal.getsignal(signal.SIGHUP) is signal.SIG_DFL  # else the job runs under nohup
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
        """Install our SIGTERM handler; call it again after `ray.init`, which installs its own."""
        signal.signal(signal.SIGTERM, self._interrupt)

    def leave_to_ray(self) -> None:
        """Stop handling SIGTERM: the job has printed its last line and is about to be stopped."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self._told:
            self._told = number
            raise KeyboardInterrupt  # `ray.get` does not wrap it

    def _listen(self, reader: int) -> None:
        while True:
            for number in os.read(reader, 64):
                if number == signal.SIGTERM or (number == signal.SIGHUP and self._takes_sighup):
                    self._end_after(LEAVE_S, "terminated", 128 + number)
                elif number == signal.SIGINT and not self.stopping():
                    self._interrupts += 1
                    self._end_after(INTERRUPT_S if self._interrupts == 1 else AGAIN_S, "interrupted", INTERRUPTED)

    def _end_after(self, seconds: float, how: str, code: int) -> None:
        """End this process after `seconds`; meanwhile, ask storage how far the work is."""
        clock = threading.Timer(seconds, self._leave, (how, code))
        self._clocks.append(clock)
        for thread in (clock, threading.Thread(target=self._ask)):
            thread.daemon = True
            thread.start()

    def _stop_clocks(self) -> None:
        """Keep this process alive: the job interrupted itself, because of a limit or a lost lease."""
        while self._clocks and not self._told:
            self._clocks.pop().cancel()

    def _ask(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._left = self.state()
        self._known.set()

    def _leave(self, how: str, code: int) -> None:
        with self._gate:  # the first caller ends the process
            self._speak(how)
            os._exit(code)

    def left(self) -> str:
        """Say how far the work is, if storage answers within SAY_S."""
        self._known.clear()
        threading.Thread(target=self._ask, daemon=True).start()
        self._known.wait(SAY_S)
        return self._left

    def interrupted(self) -> None:
        """Print how far the work is after Ctrl-C."""
        self.left()
        with self._gate:
            self._speak("interrupted")

    def _speak(self, how: str) -> None:
        self.say(f"{how}; {self._left}; the same command resumes from here")
