"""All uses of private parts of Ray Train and Ray Data; no other module of `train` touches them.

These are hooks that Ray Train calls at its turning points, and what its workers know of themselves. They follow the
source of the version below; `tests/train/test_ray_internals.py` names what has moved in another version. Classes are
made inside functions: they extend Ray's, and `train` must import without Ray. The controller's process gets them by
value.
"""

import contextlib
from collections.abc import Callable
from typing import Any

WRITTEN_AGAINST = "2.60.0"

COUNTED_WITHIN_S = 5.0
"""How long a controller waits for a new count of the nodes."""

WITHOUT_WORKERS = {"InitializingState", "SchedulingState", "ReschedulingState", "RestartingState"}
"""States of Ray Train's controller in which no workers are up."""

RETRYING = "RestartingState"
"""State of the controller between a failure of workers and their next start."""

InWorkers = Callable[[Callable[[], Any]], list[Any]]
"""Calls a function in every worker and returns their results."""


def at_worker_start(call: Callable[[], object]) -> object:
    """Return a hook that calls a function in the main thread of each worker, before another thread trains in it."""
    from ray.train.v2._internal.execution.callback import WorkerCallback

    class Starts(WorkerCallback):
        """Calls it."""

        def after_init_train_context(self) -> None:
            call()

    return Starts()


def before_resize(call: Callable[[InWorkers], object]) -> object:
    """Return a hook that calls a function before healthy workers are ended in the middle of a run.

    There is no call for workers that failed, finished or are preempted. Errors of Ray in the call are ignored: the
    workers are about to end anyway.
    """
    from ray.exceptions import RayError
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback

    class Resizes(WorkerGroupCallback):
        """Calls it."""

        def before_worker_group_shutdown(self, worker_group: Any) -> None:
            status = worker_group.get_latest_poll_status()
            if status is None or status.errors or status.finished or status.get_preemption_info():
                return
            with contextlib.suppress(RayError):
                call(worker_group.execute)

    return Resizes()


def recounting_nodes() -> object:
    """Return a hook that counts the nodes again after a failure: else Ray plans with a lost one for up to 20 s."""
    import ray
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )
    from ray.exceptions import RayError
    from ray.train.v2._internal.execution.callback import ControllerCallback

    class Losses(ControllerCallback):
        """Counts them."""

        def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
            with contextlib.suppress(RayError):
                coordinator: Any = get_or_create_autoscaling_coordinator()
                count = coordinator.get_reserved_resources.remote("", recompute=True)
                ray.get(count, timeout=COUNTED_WITHIN_S)

    return Losses()


def at_every_state(call: Callable[[bool], object]) -> object:
    """Return a hook that tells a function, at each change of the controller's state, whether workers are up.

    Every try to start workers is such a change and takes at most RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S. An exception
    in the function ends the run.
    """
    from ray.train.v2._internal.execution.callback import ControllerCallback

    class States(ControllerCallback):
        """Calls it."""

        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
            call(type(current_state).__name__ not in WITHOUT_WORKERS)

    return States()


def before_retry(call: Callable[[dict[int, Exception]], object]) -> object:
    """Return a hook that gives a function the errors of failed workers, by rank, before they are started again.

    An exception in the function ends the run, and Ray Train kills the workers that have not failed.
    """
    from ray.train.v2._internal.execution.callback import ControllerCallback

    class Failures(ControllerCallback):
        """Gives them."""

        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
            if type(current_state).__name__ == RETRYING:
                call(getattr(current_state.training_failed_error, "worker_failures", {}))

    return Failures()


def preemption() -> Callable[[], object | None]:
    """Return a function that gives, in a worker, the preemption that Ray Train has announced, or None.

    `ray.train.get_preemption_info` would ask all workers through an actor at every step. The loop has a cheaper way to
    agree, so each worker reads the value where Ray Train stores it.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    context = get_train_context().preemption_context
    return lambda: context.preemption_info


def is_training() -> bool:
    """Tell, in a worker, whether it is still training."""
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().execution_context.training_thread_runner.is_running()
