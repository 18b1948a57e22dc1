"""Words from outside that a checkpoint is wanted now: SIGTERM to a worker, a node that Ray drains, a run about to grow.

A worker hears them in other threads than the one that trains; `Notices` tells the loop at its next step. After a
checkpoint for SIGTERM or a drained node the worker trains on until it is taken away: that costs nothing.
"""

import contextlib
import signal
import threading
import time
from typing import Any

from humpback_ray.train import checkpoints

_ASKED = threading.Event()
"""Set in a worker that was asked for a checkpoint and has not told the loop."""

STORED_WITHIN_S = 300.0
"""How long growing waits for the checkpoint that it asks for; then it goes by an older one."""


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


def catch_termination() -> None:
    """Let the first SIGTERM to this process ask for a checkpoint, and restore what a SIGTERM does."""
    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, before)
        ask()

    signal.signal(signal.SIGTERM, note)


def callbacks(uri: str) -> list[Any]:
    """Return what Ray Train calls so that these words arrive; `uri` is where checkpoints of the run are.

    Signals are taken over in a process's main thread alone, and training runs in another: Ray 2.60 calls workers'
    callbacks in the main one.
    """
    import ray.exceptions
    from ray.train.v2._internal.execution.callback import WorkerCallback, WorkerGroupCallback

    class Terminations(WorkerCallback):
        def after_init_train_context(self) -> None:
            catch_termination()

    class Resizes(WorkerGroupCallback):
        def before_worker_group_shutdown(self, worker_group: Any) -> None:
            """Have healthy workers that are ended in the middle of a run, to start more of them, save first."""
            status = worker_group.get_latest_poll_status()
            if status is None or status.errors or status.finished or status.get_preemption_info():
                return
            with contextlib.suppress(ray.exceptions.RayError):
                before, deadline = next(checkpoints.complete(uri), None), time.monotonic() + STORED_WITHIN_S
                worker_group.execute(ask)
                while next(checkpoints.complete(uri), None) == before and time.monotonic() < deadline:
                    time.sleep(1)

    return [Terminations(), Resizes()]
