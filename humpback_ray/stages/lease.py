"""A lease: at most one driver trains a model or runs a global step of a stage at a time, and only one can publish.

    lease/<epoch>.json   who holds it                             created if absent, once <epoch - 1>.end exists
    lease/<epoch>.beat   a counter, rewritten every few seconds   by the holder
    lease/<epoch>.end    how the epoch ended                      created if absent: the first writer decides

An epoch ends in one of three ways. The holder writes `commit`, with the commit to publish. A holder whose work failed
writes `released`. A driver that saw the beat unchanged for `stale_s` *by its own clock* (no clocks are compared) writes
`overtaken_by`. So the store itself is the fence: a holder that slept while it was overtaken cannot publish, whatever it
does next. A driver that finds an epoch ended with a commit publishes that commit and does no work. Every file carries a
nonce, by which a writer whose reply was lost recognizes its own file. While storage does not answer, the work
continues; when it answers again, the holder learns whether another driver took over.

Limits: a heartbeat request that hangs delays the moment when the holder notices its loss, but not the fence.
"""

import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from types import TracebackType
from typing import Any

from humpback_ray import storage
from humpback_ray.stages.background import MainThread

logger = logging.getLogger(__name__)


_EPOCH_FILE = re.compile(r"(\d{6,})\.json")


class LeaseHeld(RuntimeError):
    """Another live driver works on this stage; the message says who."""


class LeaseLost(RuntimeError):
    """Another driver ended this one's epoch; nothing was published."""


class Lease:
    """Hold a stage's lease in a `with` block, or find the commit that an earlier holder left to publish.

    Args:
        uri: the stage directory.
        submission: our own; recorded for other drivers to read.
        beat_s: seconds between heartbeats.
        stale_s: a beat unchanged for this long belongs to a dead driver.

    Raises:
        LeaseHeld: on entry, if another driver's beat changes.
        LeaseLost: on exit, whatever the block raised. If the lease is lost while the block runs on the main thread, the
            block is interrupted as by Ctrl-C, even if that is ignored or blocked; Ray Train then stops its workers. On
            other threads only `end` notices.
    """

    def __init__(self, uri: str, submission: str, beat_s: float = 3.0, stale_s: float = 15.0) -> None:
        self.directory = storage.join(uri, "lease")
        self.beat_s, self.stale_s = beat_s, stale_s
        self.holder = {"submission": submission, "host": socket.gethostname(), "pid": os.getpid()}
        self.epoch = 0
        self.outcome: Any = None
        """The commit of an ended epoch, this or an earlier one; publish it if it is not None."""
        self._lost = ""
        self._main = MainThread()
        self._over = threading.Event()
        self._gate = threading.Lock()

    def __enter__(self) -> "Lease":
        while not self.epoch and self.outcome is None:
            self._advance()
        if self.epoch:
            inside = threading.current_thread() is threading.main_thread()
            if inside:
                self._main.listen()
            threading.Thread(target=self._keep_beating, args=(inside,), name="lease", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._leave(error)
        finally:
            self._main.restore()

    def _leave(self, error: BaseException | None) -> None:
        if not self.epoch or self.outcome is not None or isinstance(error, LeaseLost):
            return
        try:
            self._stop_beating()
        except KeyboardInterrupt:
            if not self._lost:
                raise
        if self._lost:
            raise self._refusal() from error
        self._release(error)

    def end(self, commit: Any) -> None:
        """End the epoch with a commit (JSON values); from now on, every driver can publish only this one.

        Raises:
            LeaseLost: another driver has the lease.
        """
        self._stop_beating()
        if not self._lost and not self._create(self.epoch, "end", {"commit": commit}):
            self._lost = self._closed()
        if self._lost:
            raise self._refusal()
        self.outcome = commit

    def _release(self, error: BaseException | None) -> None:
        """Let the next driver in at once; if this fails, that driver waits until the beat is stale."""
        try:
            self._create(self.epoch, "end", {"released": type(error).__name__ if error else "nothing to publish"})
        except OSError as refused:
            logger.warning("the lease of %s could not be released: %s", self.directory, refused)

    def _refusal(self) -> LeaseLost:
        return LeaseLost(f"{self.directory}: {self._lost}; nothing was published")

    def _advance(self) -> None:
        """Take one step toward our own epoch: read how the latest ended, end it if it is dead, take the next."""
        latest = self._latest()
        end = self._read(latest, "end") if latest else {}
        if end is None:
            if self._is_dead(latest):
                self._create(latest, "end", {"overtaken_by": self.holder})
        elif "commit" in end:
            self.outcome = end["commit"]
        elif self._create(latest + 1, "json", {**self.holder, "since": time.time()}):
            self.epoch = latest + 1

    def _is_dead(self, epoch: int) -> bool:
        """Watch an epoch's beat; return True once it is unchanged for `stale_s`, False if the epoch ends meanwhile.

        Raises:
            LeaseHeld: the beat changes.
        """
        seen, since = self._beat(epoch), time.monotonic()
        holder = self._read(epoch, "json")
        who = f"{holder['host']} (process {holder['pid']}, submission {holder['submission']})"
        logger.info("the lease of %s belongs to %s; waiting to see whether it is alive", self.directory, who)
        while time.monotonic() - since < self.stale_s:
            time.sleep(min(0.5, self.beat_s / 2))
            if self._read(epoch, "end") is not None:
                return False
            if self._beat(epoch) != seen:
                raise LeaseHeld(
                    f"{self.directory}: {who} is working on this stage; wait for it, or stop it and run again"
                )
        logger.warning("%s sent no heartbeat for %.0f s; taking over", who, self.stale_s)
        return True

    def _latest(self) -> int:
        found = map(_EPOCH_FILE.fullmatch, storage.list_names(self.directory))
        return max((int(name[1]) for name in found if name), default=0)

    def _name(self, epoch: int, kind: str) -> str:
        return storage.join(self.directory, f"{epoch:06d}.{kind}")

    def _read(self, epoch: int, kind: str) -> Any:
        try:
            return storage.read_json(self._name(epoch, kind))
        except FileNotFoundError:
            return None

    def _beat(self, epoch: int) -> bytes:
        """Return the counter of an epoch as written; b"" before the first beat."""
        try:
            return storage.read_bytes(self._name(epoch, "beat"))
        except FileNotFoundError:
            return b""

    def _create(self, epoch: int, kind: str, value: dict[str, Any]) -> bool:
        """Create a file if absent; return whether it is ours, even if the reply to the request was lost."""
        name, data = self._name(epoch, kind), json.dumps({**value, "nonce": secrets.token_hex(8)}).encode()
        return storage.create(name, data) or storage.read_bytes(name) == data

    def _keep_beating(self, inside_main: bool) -> None:
        """Beat until the block is over or the lease is lost; then interrupt the main thread if the block runs there."""
        good, beats = time.monotonic(), 0
        while not self._over.is_set():
            beats += 1
            try:
                storage.write_bytes(self._name(self.epoch, "beat"), str(beats).encode())
                good = time.monotonic()
                if lost := self._closed():
                    self._give_up(lost, inside_main)
            except OSError as error:  # when storage answers again, we learn whether we were overtaken
                silent_s = time.monotonic() - good
                logger.warning("no heartbeat of %s for %.0f s, trying again: %s", self.directory, silent_s, error)
            self._over.wait(self.beat_s)

    def _give_up(self, lost: str, inside_main: bool) -> None:
        with self._gate:
            if not self._over.is_set():
                self._lost = lost
                self._over.set()
                if inside_main:
                    self._main.interrupt()

    def _closed(self) -> str:
        """Return a sentence about who ended this epoch; "" while it lasts."""
        end = self._read(self.epoch, "end")
        if end is None:
            return ""
        by = end.get("overtaken_by", {})
        return f"epoch {self.epoch} was overtaken by {by.get('host')} (submission {by.get('submission')})"

    def _stop_beating(self) -> None:
        """Mark the block as over; after this it is not interrupted."""
        with self._gate:
            self._over.set()
