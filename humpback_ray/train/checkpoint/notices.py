"""Requests from outside for a checkpoint now: SIGTERM to a worker, a node that Ray drains, a run about to grow.

A worker receives them in threads other than the one that trains; `Notices` tells the loop at its next step. After the
checkpoint the worker continues to train until it is taken away, which costs nothing.
"""

import signal
import threading
from types import FrameType

from humpback_ray.train import ray_internals

_ASKED = threading.Event()
"""Set in a worker that was asked for a checkpoint and has not told the loop yet."""


class Notices:
    """Reports each request that this worker received, once."""

    def __init__(self) -> None:
        self.preemption = ray_internals.preemption()
        self.known: object | None = None

    def __call__(self) -> bool:
        """Tell whether there is a new request."""
        told = self.preemption()
        drained, self.known = told is not None and told != self.known, told
        asked = _ASKED.is_set()
        _ASKED.clear()
        return drained or asked


def ask() -> None:
    """Ask this worker for a checkpoint."""
    _ASKED.set()


def catch_termination() -> None:
    """Let the first SIGTERM to this process ask for a checkpoint, and then restore the previous handler."""
    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)
        ask()

    signal.signal(signal.SIGTERM, note)
