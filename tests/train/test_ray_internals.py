"""The private parts of Ray Train and Ray Data that we use exist in the installed version, and the hooks work."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from humpback_ray.placement import TrainPlacement
from humpback_ray.train import ray_internals
from humpback_ray.train.checkpoint import callbacks
from humpback_ray.train.checkpoint.callbacks import GaveUp, Patience, end_if_hopeless, save_first
from humpback_ray.train.job import OutOfMemory
from tests.train.checkpoint.test_store import written
from tests.train.internals import moved, privates


def lacking(owner: Any, wanted: dict[str, Any]) -> list[str]:
    return list(moved("ray", ray_internals.WRITTEN_AGAINST, owner, wanted))


def test_the_hooks_exist_with_the_parameters_that_we_use() -> None:
    from ray.train.v2._internal.execution import callback

    hooks = {
        "WorkerCallback": {"after_init_train_context": ()},
        "WorkerGroupCallback": {"before_worker_group_shutdown": ("worker_group",)},
        "ControllerCallback": {
            "before_controller_execute_failure_decision": ("failure_decision",),
            "after_controller_state_update": ("previous_state", "current_state"),
        },
    }
    assert lacking(callback, dict.fromkeys(hooks)) == []
    assert [said for name, wanted in hooks.items() for said in lacking(getattr(callback, name), wanted)] == []


def test_worker_groups_states_and_node_counts_are_as_we_use_them() -> None:
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator
    from ray.train.v2._internal.execution import context
    from ray.train.v2._internal.execution.controller import state
    from ray.train.v2._internal.execution.preemption import PreemptionContext
    from ray.train.v2._internal.execution.worker_group import WorkerGroup, WorkerGroupPollStatus
    from ray.train.v2._internal.execution.worker_group.thread_runner import ThreadRunner

    fields = SimpleNamespace(**context.TrainContext.__dataclass_fields__)
    execution = SimpleNamespace(**context.ExecutionContext.__dataclass_fields__)
    assert lacking(fields, dict.fromkeys(("preemption_context", "execution_context"))) == []
    assert lacking(execution, {"training_thread_runner": None}) == []
    assert lacking(context, {"get_train_context": ()}) == []
    assert lacking(PreemptionContext(), {"preemption_info": None}) == []
    assert lacking(ThreadRunner, {"is_running": ()}) == []
    assert lacking(WorkerGroup, {"get_latest_poll_status": (), "execute": ("fn",)}) == []
    status = {"errors": None, "finished": None, "get_preemption_info": ()}
    assert lacking(WorkerGroupPollStatus, status) == []
    assert lacking(state, dict.fromkeys(ray_internals.WITHOUT_WORKERS)) == []
    assert lacking(coordinator, {"get_or_create_autoscaling_coordinator": ()}) == []
    assert lacking(coordinator, {"_AutoscalingCoordinatorActor": None}) == []
    actor = coordinator._AutoscalingCoordinatorActor
    assert lacking(actor, {"get_reserved_resources": ("requester_id", "recompute")}) == []


def test_every_private_part_that_is_used_is_checked() -> None:
    assert privates(Path(ray_internals.__file__)) == {"_internal"}


class Group:
    """A worker group with the members that the hook uses."""

    def __init__(self, error: Exception | None = None, **status: Any) -> None:
        preempted = status.pop("preempted", None)
        known = {"errors": {}, "finished": False, "get_preemption_info": lambda: preempted}
        self.status: Any = SimpleNamespace(**known | status)
        self.error = error

    def get_latest_poll_status(self) -> Any:
        return self.status

    def execute(self, function: Any) -> list[Any]:
        if self.error:
            raise self.error
        return [function()]


def test_only_healthy_workers_are_asked_before_they_end_and_a_lost_one_raises_no_error() -> None:
    from ray.exceptions import RayActorError

    asked: list[str] = []
    hook: Any = ray_internals.before_resize(lambda in_workers: in_workers(lambda: asked.append("asked")))
    for group in (Group(errors={0: ValueError()}), Group(finished=True), Group(preempted=object())):
        hook.before_worker_group_shutdown(group)
    unknown = Group()
    unknown.status = None
    hook.before_worker_group_shutdown(unknown)
    hook.before_worker_group_shutdown(Group(RayActorError()))
    assert asked == []
    hook.before_worker_group_shutdown(Group())
    assert asked == ["asked"]
    with pytest.raises(ValueError, match="ours"):
        hook.before_worker_group_shutdown(Group(ValueError("ours")))


def test_the_hooks_are_called_at_a_start_and_at_every_state() -> None:
    from ray.train.v2._internal.execution.controller import state

    told: list[Any] = []
    start: Any = ray_internals.at_worker_start(lambda: told.append("start"))
    start.after_init_train_context()
    states: Any = ray_internals.at_every_state(told.append)
    for name in ("SchedulingState", "RunningState", "RestartingState"):
        states.after_controller_state_update(None, object.__new__(getattr(state, name)))
    assert told == ["start", False, True, False]


def test_errors_are_given_before_failed_workers_start_again_and_lack_of_memory_ends_the_run() -> None:
    from ray.train.v2._internal.execution.controller import state
    from ray.train.v2.api.exceptions import PreemptionError, WorkerGroupError
    from ray.train.v2.api.preemption import PreemptionInfo

    given: list[Any] = []
    hook: Any = ray_internals.before_retry(given.append)
    lost: dict[int, Exception] = {0: ValueError("lost")}
    starved: dict[int, Exception] = {0: RuntimeError("[gloo] closed"), 1: OutOfMemory("m0: rank 1 ...")}
    for error in (
        WorkerGroupError("x", lost),
        PreemptionError(PreemptionInfo(None, {})),
        WorkerGroupError("x", starved),
    ):
        hook.after_controller_state_update(None, state.RestartingState(training_failed_error=error))
    hook.after_controller_state_update(None, state.RunningState())
    assert given == [lost, {}, starved]
    for failures in given[:2]:
        end_if_hopeless(failures)
    with pytest.raises(OutOfMemory, match="rank 1"):
        end_if_hopeless(starved)


def test_a_resize_waits_until_the_checkpoint_is_stored_or_a_worker_has_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, "0001", 10)
    damaged, looks, asks = written(tmp_path, "0001", 20), iter(range(3)), []
    (damaged / "state.json").write_text("")
    monkeypatch.setattr(callbacks, "LOOK_EVERY_S", 0.0)

    def working(function: Any) -> list[bool]:
        asks.append(function)
        if function is ray_internals.is_training and next(looks) == 1:
            written(tmp_path, "0001", 12)
        return [True, True]

    save_first(str(tmp_path / "checkpoints"), working)
    assert asks == [callbacks.ask, ray_internals.is_training, ray_internals.is_training]
    asks.clear()

    def stopped(function: Any) -> list[bool]:
        asks.append(function)
        return [True, False]

    save_first(str(tmp_path / "checkpoints"), stopped)
    assert len(asks) == 2, "one look, for a worker had stopped"


def test_patience_ends_a_run_that_has_no_workers_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(callbacks, "place_words", lambda need: "no cluster to look at")
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    patience = Patience("m0", TrainPlacement(give_up_waiting_minutes=1))
    for seconds, workers in ((50, False), (5, True), (100, False), (59, False)):
        now[0] += seconds
        patience(workers)
    now[0] += 1
    with pytest.raises(GaveUp, match="training m0"):
        patience(False)
    endless = Patience("m0", TrainPlacement(give_up_waiting_minutes=None))
    now[0] += 1e9
    endless(False)
