"""Checkpoints in the background: copied to host memory at once, stored while the next steps run.

One at a time: each waits for the previous one, so host memory holds a single copy. If storage fails, that checkpoint is
lost, but the run continues and tries the next one.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from humpback_ray import storage
from humpback_ray.train.checkpoint import store
from humpback_ray.train.checkpoint.fragments import Fragment

logger = logging.getLogger(__name__)


class Saver:
    """One worker's checkpoints of one attempt.

    Args:
        uri: directory of the attempt.
        rank: rank of the worker; rank 0 writes the state and deletes old checkpoints.
        keep: least number of complete checkpoints that are kept.
    """

    def __init__(self, uri: str, rank: int, keep: int) -> None:
        self.uri, self.rank, self.keep = uri, rank, keep
        self.background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.pending: Future[None] | None = None

    def save(self, name: str, fragments: Sequence[Fragment], state: Mapping[str, object]) -> None:
        """Begin a checkpoint; the fragments may change once this returns."""
        self.wait()
        copies = [fragment.on_host() for fragment in fragments]
        self.pending = self.background.submit(self._store, storage.join(self.uri, name), copies, state)

    def wait(self) -> None:
        """Wait until the last checkpoint is stored or has failed."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def prune(self) -> None:
        """Delete old checkpoints; a newer one that other workers are still writing does not count."""
        if self.rank == 0:
            store.prune(self.uri, self.keep)

    def _store(self, uri: str, copies: Sequence[Fragment], state: Mapping[str, object]) -> None:
        try:
            store.write(copies, self.rank, uri, state)
            self.prune()
        except OSError as error:
            logger.error("could not store checkpoint %s; training continues and will try the next one: %s", uri, error)
