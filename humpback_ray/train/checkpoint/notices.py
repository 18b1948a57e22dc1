"""Words from outside that a checkpoint is wanted now: SIGTERM to a worker, a node that Ray drains, a run about to grow.

A worker hears them in other threads than the one that trains; `Notices` tells the loop at its next step. After the
checkpoint the worker trains on until it is taken away: that costs nothing.
"""

import signal
import threading
from typing import Any

_ASKED = threading.Event()
"""Set in a worker that was asked for a checkpoint and has not told the loop."""


class Notices:
    """Tells once for each word heard in this worker.

    `ray.train.get_preemption_info` would ask all workers, through an actor, at every step; the loop has a cheaper way
    to agree, so each looks where Ray Train has put what that function returns.
    """

    def __init__(self) -> None:
        from ray.train.v2._internal.execution.context import get_train_context

        self.context = get_train_context().preemption_context
        self.known: Any = None

    def __call__(self) -> bool:
        """Tell whether there is a new one."""
        told = self.context.preemption_info
        drained, self.known = told is not None and told != self.known, told
        asked = _ASKED.is_set()
        _ASKED.clear()
        return drained or asked


def ask() -> None:
    """Ask this worker for a checkpoint."""
    _ASKED.set()


def at_work() -> bool:
    """Tell whether this worker still trains."""
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().execution_context.training_thread_runner.is_running()


def catch_termination() -> None:
    """Let the first SIGTERM to this process ask for a checkpoint, and restore what a SIGTERM does."""
    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, before)
        ask()

    signal.signal(signal.SIGTERM, note)
