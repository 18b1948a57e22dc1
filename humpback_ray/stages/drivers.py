"""Several drivers on one stage over shards: each shows that it is alive, so others leave its shards alone.

    drivers/<submission>.beat      a counter, host and process, rewritten every few seconds; deleted when it ends
    drivers/<submission>.waiting   what the driver waits for (waiting.py); deleted when it no longer waits

An attempt that has not ended is *held* while its driver is alive: others skip that shard. No clocks are compared. A
driver is dead if its beat does not change for `STALE_S`, as seen from here, or if its process ran on this machine and
is gone. A wrong guess only costs time: the shard is done twice and the first commit wins.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from humpback_ray import storage
from humpback_ray.stages.background import repeat

logger = logging.getLogger(__name__)

BEAT_S = 3.0
"""Seconds between beats."""
STALE_S = 15.0
"""A beat unchanged for this long belongs to a dead driver."""
FOLDER = "drivers"
BEAT, WAITING = ".beat", ".waiting"


def beat_uri(stage: str, submission: str) -> str:
    """Return the URI of the beat of a submission's driver."""
    return storage.join(stage, FOLDER, f"{submission}{BEAT}")


def waiting_uri(stage: str, submission: str) -> str:
    """Return the URI of the file in which a submission's driver says what it waits for."""
    return storage.join(stage, FOLDER, f"{submission}{WAITING}")


class Presence:
    """Beat for a submission in a `with` block.

    Args:
        stage: URI of the stage directory.
        submission: the driver's own.
        beat_s: seconds between beats.
    """

    def __init__(self, stage: str, submission: str, beat_s: float = BEAT_S) -> None:
        self.uri, self.beat_s = beat_uri(stage, submission), beat_s
        self.what = f"the beat of {stage}"
        self._beats = 0

    def __enter__(self) -> "Presence":
        self._beat()
        self._loop = repeat(self.what, self._beat, lambda: self.beat_s)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        try:
            storage.delete(self.uri)
        except OSError as refused:  # others notice when the beat goes stale
            logger.warning("%s could not be deleted: %s", self.uri, refused)

    def stop(self) -> None:
        """Stop beating and leave the last beat in place, as a killed driver does."""
        self._loop.stop(self.beat_s)  # do not wait for a request that hangs

    def _beat(self) -> None:
        self._beats += 1
        who = {"beats": self._beats, "host": socket.gethostname(), "boot": _boot(), "pid": os.getpid()}
        storage.write_bytes(self.uri, json.dumps(who).encode())


class Others:
    """The drivers of other submissions, as one process sees them.

    Args:
        stage: URI of the stage directory.
        submission: our own.
        dead: submissions that are known to be dead.
        stale_s: how long a beat may stay unchanged.
    """

    def __init__(self, stage: str, submission: str, dead: Sequence[str] = (), stale_s: float | None = None) -> None:
        self.stage, self.submission = stage, submission
        self.stale_s = STALE_S if stale_s is None else stale_s
        self._dead = set(dead)
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()

    def lives(self, submission: str) -> bool:
        """Tell whether a submission's driver may be alive: it beat, or was first seen, within `stale_s`."""
        with self._lock:
            if submission in self._dead:
                return False
            try:
                beat = storage.read_bytes(beat_uri(self.stage, submission))
            except FileNotFoundError:
                self._seen.pop(submission, None)
                return False
            now = time.monotonic()
            last, since = self._seen.get(submission, (b"", now))
            if beat != last:
                since = now
            self._seen[submission] = beat, since
            return now - since < self.stale_s and not _is_gone(beat)

    def there(self) -> list[str]:
        """Return the other submissions whose drivers may be alive."""
        names = storage.list_names(storage.join(self.stage, FOLDER))
        found = [name.removesuffix(BEAT) for name in names if name.endswith(BEAT) and "/" not in name]
        return [name for name in found if name != self.submission and self.lives(name)]

    def dead(self) -> list[str]:
        """Return the submissions that were checked and are dead although they left a beat."""
        with self._lock:
            known = list(self._seen)
        return [name for name in known if not self.lives(name)]

    def holder(self, attempts: Sequence[Mapping[str, Any]], lives: Callable[[str], bool] | None = None) -> str:
        """Return the submission that holds a shard by its latest attempt; "" if none does.

        Only the latest attempt counts: if two drivers each have an attempt that has not ended, one of them may proceed.

        Args:
            attempts: at the shard, oldest first, as `Ledger.attempts` returns them.
            lives: replaces `self.lives`.
        """
        if not attempts:
            return ""
        last = attempts[-1]
        other = last["submission"] != self.submission and "error" not in last
        return last["submission"] if other and (lives or self.lives)(last["submission"]) else ""


def _boot() -> str:
    """Return the boot id of this machine; "" if there is none."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def _is_gone(beat: bytes) -> bool:
    """Tell whether a beat belongs to a process that ran on this machine and is gone."""
    import psutil

    try:
        who = json.loads(beat)
        if not who["boot"] or (who["host"], who["boot"]) != (socket.gethostname(), _boot()):
            return False
        return psutil.Process(who["pid"]).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, ValueError, KeyError, TypeError):
        return False
