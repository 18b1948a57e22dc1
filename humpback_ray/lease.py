"""A lease: at most one driver trains a model or runs a global step of a stage at a time.

Each holder owns an epoch: `<stage>/lease/<epoch>.json`, created if absent, so that of two drivers that reach for the
same epoch one loses. The holder rewrites `<epoch>.beat` every few seconds. An epoch whose beat stood still for
`stale_s` *by the watcher's own clock* is dead, and the next epoch may be taken: no clocks are compared. A holder that
was overtaken finds a higher epoch when it asks `check()` and must not publish; the conditional create of the manifest
guards what happens between its check and its write.
"""

import json
import logging
import os
import socket
import threading
import time
from types import TracebackType

from humpback_ray import storage

logger = logging.getLogger(__name__)


class LeaseHeld(RuntimeError):
    """Another live driver works on this stage; the message says who."""


class LeaseLost(RuntimeError):
    """This driver stood still for too long and another one took over; it must not publish."""


class Lease:
    """Hold a stage's lease in a `with` block.

    Args:
        uri: the stage directory.
        submission: who asks; written down for other drivers to read.
        beat_s: seconds between heartbeats.
        stale_s: a beat unchanged for this long belongs to a dead driver.

    Raises:
        LeaseHeld: on entry, when another driver's beat is seen to change.
    """

    def __init__(self, uri: str, submission: str, beat_s: float = 3.0, stale_s: float = 15.0) -> None:
        self.directory = storage.join(uri, "lease")
        self.beat_s, self.stale_s = beat_s, stale_s
        self.holder = {"submission": submission, "host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        self.epoch = 0
        self._dead = 0
        self._end = threading.Event()
        self._beats = 0

    def __enter__(self) -> "Lease":
        while not self._take():
            self._wait_for_death()
        self._beat()
        self._thread = threading.Thread(target=self._keep_beating, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        storage.write_bytes(self._name("beat"), b"released")

    def check(self) -> None:
        """Raise LeaseLost if a higher epoch exists; call it right before publishing."""
        latest = self._latest()
        if latest != self.epoch:
            raise LeaseLost(
                f"{self.directory}: epoch {self.epoch} was overtaken by epoch {latest}; nothing is published"
            )

    def _take(self) -> bool:
        epoch = self._latest() + 1
        if epoch > 1 and self._read_beat(epoch - 1) != b"released" and self._dead != epoch - 1:
            return False
        if not storage.create(storage.join(self.directory, f"{epoch:06d}.json"), json.dumps(self.holder).encode()):
            return False
        self.epoch = epoch
        return True

    def _wait_for_death(self) -> None:
        """Watch the current holder's beat until it stood still for `stale_s`; raise LeaseHeld if it moves."""
        epoch = self._latest()
        seen, since = self._read_beat(epoch), time.monotonic()
        holder = json.loads(storage.read_bytes(storage.join(self.directory, f"{epoch:06d}.json")))
        who = f"{holder['host']} (process {holder['pid']}, submission {holder['submission']})"
        logger.info("the lease of %s belongs to %s; waiting to see whether it lives", self.directory, who)
        while time.monotonic() - since < self.stale_s:
            time.sleep(min(0.5, self.beat_s / 2))
            beat = self._read_beat(epoch)
            if beat == b"released" or self._latest() != epoch:
                return
            if beat != seen:
                raise LeaseHeld(
                    f"{self.directory}: {who} is at work on this stage; wait for it, or stop it and run again"
                )
        logger.warning("%s stood still for %.0f s; taking over", who, self.stale_s)
        self._dead = epoch

    def _latest(self) -> int:
        names = [name for name in storage.list_names(self.directory) if name.endswith(".json")]
        return max((int(name.removesuffix(".json")) for name in names), default=0)

    def _name(self, kind: str) -> str:
        return storage.join(self.directory, f"{self.epoch:06d}.{kind}")

    def _read_beat(self, epoch: int) -> bytes:
        try:
            return storage.read_bytes(storage.join(self.directory, f"{epoch:06d}.beat"))
        except FileNotFoundError:
            return b""

    def _beat(self) -> None:
        self._beats += 1
        storage.write_bytes(self._name("beat"), str(self._beats).encode())

    def _keep_beating(self) -> None:
        while not self._end.wait(self.beat_s):
            try:
                self._beat()
            except OSError as error:
                logger.warning("heartbeat of %s failed, trying again: %s", self.directory, error)
