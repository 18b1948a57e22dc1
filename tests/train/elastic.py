"""A fine-tune on its own cluster, in its own process, while nodes come and go and workers are killed."""

import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from humpback_ray.placement import TrainPlacement
from humpback_ray.train.checkpoint import store
from humpback_ray.train.fit import PROGRESS, launch
from humpback_ray.train.job import TrainJob, TrainResult
from tests.train.drivers import training_workers, wait_for

ATTEMPT = "0001"


@dataclass(frozen=True)
class Event:
    """An interruption of a worker or a node, once a given number of workers has reached a step."""

    kind: Literal["kill", "warn", "lose", "join", "drain"]
    step: int
    workers: int = 1


@dataclass(frozen=True)
class Scenario:
    """A job, the number of one-CPU nodes that it begins with, and the events."""

    job: TrainJob
    placement: TrainPlacement
    storage: Path
    nodes: int
    events: Sequence[Event] = ()


def play(scenario: Scenario) -> dict[str, Any]:
    """Run a scenario in its own process; return its result.

    The result also has `gaps_s`, the longest time without a new step after each event, to a second; `workers`, their
    number over time; and `checkpoints`, the steps of those that are left.
    """
    spawn = multiprocessing.get_context("spawn")
    told = spawn.Queue()
    process = spawn.Process(target=_play, args=(scenario, told))
    process.start()
    try:
        while process.is_alive():
            with contextlib.suppress(queue.Empty):
                return told.get(timeout=1)
        raise AssertionError("the run failed; what it printed says why")
    finally:
        process.join(30)
        process.kill()


def _play(scenario: Scenario, told: Any) -> None:
    import psutil
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "10"  # as jobs set it
    os.environ["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "1"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(scenario.nodes)]
    happen: dict[str, Callable[[], Any]] = {
        "lose": lambda: cluster.remove_node(nodes.pop(), allow_graceful=False),
        "join": lambda: nodes.append(cluster.add_node(num_cpus=1)),
        "drain": lambda: drain(cluster, nodes.pop()),
        "kill": lambda: os.kill(training_workers(psutil.Process())[-1].pid, signal.SIGKILL),
        "warn": lambda: os.kill(training_workers(psutil.Process())[-1].pid, signal.SIGTERM),
    }
    results: list[TrainResult] = []
    thread = threading.Thread(
        target=lambda: results.append(launch(scenario.job, scenario.placement, ATTEMPT, str(scenario.storage)))
    )
    try:
        # Ray Train asks the first cluster that it finds whether its controller is alive; that may be another cluster.
        here = {"env_vars": {"RAY_ADDRESS": cluster.address}}
        ray.init(address=cluster.address, log_to_driver=False, runtime_env=here)
        thread.start()
        reached = _followed(scenario.storage / ATTEMPT / PROGRESS, thread.is_alive)
        at = []
        for event in scenario.events:
            wait_for(functools.partial(_due, event, reached), thread.is_alive)
            if event.kind != "warn":
                wait_for(lambda: next(store.complete(str(scenario.storage)), None), thread.is_alive)
            at.append(time.monotonic())
            happen[event.kind]()
        thread.join()
        gaps = [_gap_s(reached, since, until) for since, until in itertools.pairwise([*at, time.monotonic()])]
        steps = sorted(int(path.parent.name.split("-")[1]) for path in scenario.storage.glob("*/step-*/state.json"))
        workers = [workers for workers, _ in itertools.groupby(seen.workers for seen in reached[1:])]
        told.put(asdict(results[0]) | {"gaps_s": gaps, "workers": workers, "checkpoints": steps})
    finally:
        ray.shutdown()
        cluster.shutdown()


def drain(cluster: Any, node: Any) -> None:
    """Act like an autoscaler and a cloud: announce that a node will be taken away in five seconds, and take it away."""
    import ray
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # pyright: ignore[reportAttributeAccessIssue]

    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    deadline_ms = int((time.time() + 5) * 1000)
    client.drain_node(node.node_id, DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, "a test", deadline_ms)
    threading.Timer(6, lambda: cluster.remove_node(node, allow_graceful=False)).start()


class Seen(NamedTuple):
    """A step that was made for the first time."""

    step: int
    workers: int
    when: float


def _due(event: Event, reached: Sequence[Seen]) -> bool:
    return reached[-1].step >= event.step and reached[-1].workers >= event.workers


def _followed(progress: Path, alive: Callable[[], bool]) -> list[Seen]:
    """Return a list that grows while the run makes steps."""
    reached = [Seen(0, 0, time.monotonic())]

    def follow() -> None:
        while alive():
            with contextlib.suppress(OSError, ValueError):
                figures = json.loads(progress.read_text())
                if figures["step"] > reached[-1].step:
                    reached.append(Seen(figures["step"], figures["workers"], time.monotonic()))
            time.sleep(0.05)

    threading.Thread(target=follow, daemon=True).start()
    return reached


def _gap_s(reached: Sequence[Seen], since: float, until: float) -> float:
    """Return the longest time without a new step that ended between two moments."""
    pairs = itertools.pairwise(seen.when for seen in reached)
    return max((later - earlier for earlier, later in pairs if since <= later <= until), default=0.0)
