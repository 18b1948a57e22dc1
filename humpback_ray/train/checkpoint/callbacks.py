"""What Ray Train calls at its turning points, so that interruptions cost little; the hooks are those of Ray 2.60."""

import contextlib
import time
from typing import Any

from humpback_ray.placement import TrainPlacement
from humpback_ray.stages.waiting import given_up, place_words
from humpback_ray.train.checkpoint import store
from humpback_ray.train.checkpoint.notices import ask, at_work, catch_termination

STORED_WITHIN_S = 300.0
"""How long growing waits for the checkpoint that it asks for; then it goes by an older one."""

COUNTED_WITHIN_S = 5.0

_WITHOUT_WORKERS = {"InitializingState", "SchedulingState", "ReschedulingState", "RestartingState"}
"""Of Ray Train's controller."""


class GaveUp(RuntimeError):
    """No workers were up for as long as the placement allows; the message says what was waited for."""


def callbacks(uri: str, name: str, placement: TrainPlacement) -> list[Any]:
    """Return them.

    Args:
        uri: where the run's checkpoints are.
        name: of the model, for messages.
        placement: of the run.
    """
    import ray
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )
    from ray.exceptions import RayError
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerCallback, WorkerGroupCallback

    class Terminations(WorkerCallback):
        """Signals are taken over in a process's main thread alone, and training runs in another."""

        def after_init_train_context(self) -> None:
            catch_termination()

    class Resizes(WorkerGroupCallback):
        """Healthy workers that are ended in the middle of a run, to start more of them, save first."""

        def before_worker_group_shutdown(self, worker_group: Any) -> None:
            status = worker_group.get_latest_poll_status()
            if status is None or status.errors or status.finished or status.get_preemption_info():
                return
            with contextlib.suppress(RayError):
                before, deadline = next(store.complete(uri), None), time.monotonic() + STORED_WITHIN_S
                worker_group.execute(ask)
                while next(store.complete(uri), None) == before and time.monotonic() < deadline:
                    if not all(worker_group.execute(at_work)):
                        return
                    time.sleep(0.5)

    class Losses(ControllerCallback):
        """Nodes are counted anew after a failure: else workers are planned on a lost one for up to 20 s."""

        def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
            with contextlib.suppress(RayError):
                count = get_or_create_autoscaling_coordinator().get_reserved_resources.remote("", recompute=True)
                ray.get(count, timeout=COUNTED_WITHIN_S)

    class Patience(ControllerCallback):
        """A controller without workers tries again and again; this ends it after the placement's time.

        It is told of every try, which takes as long as RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S at most.
        """

        def __init__(self) -> None:
            self.since: float | None = time.monotonic()

        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
            if type(current_state).__name__ not in _WITHOUT_WORKERS:
                self.since = None
                return
            self.since, limit = self.since or time.monotonic(), placement.give_up_waiting_minutes
            if limit is not None and time.monotonic() - self.since >= 60 * limit:
                raise GaveUp(given_up(f"training {name}", limit, place_words(placement.need())))

    return [Terminations(), Resizes(), Losses(), Patience()]
