"""Checkpoints in the background: copied to host memory at once, stored while the next steps run.

One at a time: each waits for the previous one, so host memory holds a single copy. If a checkpoint cannot be copied for
lack of memory, or cannot be stored for whatever reason, it is lost, but the run continues and tries the next one: a
full or missing temporary directory, storage that is full, slow or forbids it. Only an error of the device while it
copies ends the run, since the next step would meet it too.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from humpback_ray import storage
from humpback_ray.train.checkpoint import store
from humpback_ray.train.checkpoint.fragments import Fragment

logger = logging.getLogger(__name__)

_NO_MEMORY = "can't allocate memory"
"""Words of the RuntimeError that torch raises instead of a MemoryError."""


class Saver:
    """One worker's checkpoints of one attempt.

    Args:
        uri: directory of the attempt.
        rank: rank of the worker; rank 0 writes the state and deletes old checkpoints.
        keep: least number of complete checkpoints that are kept.
    """

    def __init__(self, uri: str, rank: int, keep: int) -> None:
        self.uri, self.rank, self.keep = uri, rank, keep
        self.damaged: dict[str, str] = {}
        """Checkpoints that were found to have wrong bytes, and the problem; they do not count as complete."""
        self.background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.pending: Future[None] | None = None

    def save(self, name: str, fragments: Sequence[Fragment], state: Mapping[str, object]) -> None:
        """Begin a checkpoint; the fragments may change once this returns."""
        self.wait()
        uri = storage.join(self.uri, name)
        try:
            copies = [fragment.on_host() for fragment in fragments]
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and _NO_MEMORY not in str(error):
                raise
            needed = sum(fragment.bytes for fragment in fragments)
            _lost(uri, f"there is no memory for a copy of {needed:,} bytes")
            return
        self.pending = self.background.submit(self._store, uri, copies, state)

    def wait(self) -> None:
        """Wait until the last checkpoint is stored or has failed."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def prune(self) -> None:
        """Delete old checkpoints; a newer one that other workers are still writing does not count."""
        if self.rank == 0:
            try:
                store.prune(self.uri, self.keep, self.damaged)
            except Exception as error:  # noqa: BLE001 no error of storage may end the training
                logger.error("could not delete old checkpoints under %s; training continues: %s", self.uri, error)

    def _store(self, uri: str, copies: Sequence[Fragment], state: Mapping[str, object]) -> None:
        try:
            store.write(copies, self.rank, uri, state)
        except Exception as error:  # noqa: BLE001 no error of storage may end the training
            _lost(uri, str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}")
        else:
            self.prune()


def _lost(uri: str, reason: str) -> None:
    logger.error("could not store checkpoint %s; training continues and will try the next one: %s", uri, reason)
