"""Parts of Ray that the package uses although Ray does not promise to keep them: private names and gRPC interfaces.

Written against Ray 2.60. Nothing else outside train/ uses Ray's internals, and tests/stages/test_ray_internals.py says
which name has moved before a run finds out. Each function says why Ray's public interface is not enough.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

if TYPE_CHECKING:
    import grpc
    import ray.data

WRITTEN_AGAINST = "2.60.0"

HOOK = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
"""Environment variable that names the function that a worker process calls before its actor starts.

The public setup hook applies to a whole job. The name is copied here because the driver must not import Ray for it.
"""

ONE_AT_A_TIME = {"num_returns": "streaming", "_generator_backpressure_num_objects": 1}
"""Options of a task that yields, and continues once the yielded value was taken."""


def stoppable(results: "ray.data.Dataset") -> "ray.data.Dataset":
    """Make a data set know its executor from the start; Ray Data sets it only once the first block arrives."""
    create = results._create_executor

    def created() -> Any:
        results._current_executor = create()
        return results._current_executor

    results._create_executor = created
    return results


def stop(results: "ray.data.Dataset") -> None:
    """End a data set while its iterator waits; Ray Data has no public call for that."""
    executor = results._current_executor
    if executor is not None:
        executor.shutdown(force=True)


class Address(TypedDict):
    """Node of an actor."""

    NodeID: str


class ActorRow(TypedDict):
    """An actor's entry in Ray's table of actors; only the fields used here."""

    ActorID: str
    ActorClassName: str
    State: str
    Address: Address
    Pid: int
    StartTime: int
    """0 until it is up for the first time."""
    NumRestarts: int


def actors_in(state: str) -> list[ActorRow]:
    """Return this job's actors in a state; the public list needs the dashboard, which may not be running."""
    import ray
    from ray._private.state import actors

    job = ray.JobID(bytes.fromhex(ray.get_runtime_context().get_job_id()))
    return cast(list[ActorRow], list(actors(job_id=job, actor_state_name=state).values()))


def free_resources() -> dict[str, dict[str, float]]:
    """Return each node's free resources, by its id; `ray.available_resources` has only the sum."""
    from ray._private.state import available_resources_per_node

    return available_resources_per_node()


def memory_bytes() -> int:
    """Return the memory, as Ray counts it, of this machine or of the container that Ray runs in."""
    from ray._common.utils import get_system_memory

    return get_system_memory()


def channel_to(address: str) -> "grpc.Channel":
    """Return a gRPC channel to a Ray process at HOST:PORT, with the cluster's token if it has one."""
    from ray._private.grpc_utils import init_grpc_channel

    return cast("grpc.Channel", init_grpc_channel(address, asynchronous=False))


class Raylet:
    """A node's raylet, which can start worker processes ahead of their actors; Ray has no public call for that."""

    def __init__(self, address: str) -> None:
        from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub

        self._stub = NodeManagerServiceStub(channel_to(address))

    def prestart(self, job_id: bytes, environment: str, keep_s: int) -> None:
        """Ask for one idle process.

        Args:
            job_id: the job that it belongs to.
            environment: its runtime environment as JSON, byte for byte as Ray will write the actor's.
            keep_s: seconds to keep it while no actor takes it.
        """
        from ray.core.generated import common_pb2, node_manager_pb2

        request = node_manager_pb2.PrestartWorkersRequest(  # pyright: ignore[reportAttributeAccessIssue]
            language=common_pb2.PYTHON,  # pyright: ignore[reportAttributeAccessIssue]
            job_id=job_id,
            num_workers=1,  # for more, it starts only one per CPU
            keep_alive_duration_secs=keep_s,
        )
        request.runtime_env_info.serialized_runtime_env = environment
        self._stub.PrestartWorkers(request, timeout=10)


def training_variables() -> dict[str, str]:
    """Return the environment variables that Ray Train gives its controller, and the controller to its workers."""
    from ray.train.v2._internal.constants import (
        DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE,
        get_env_vars_to_propagate,
    )

    default = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE}
    return default | get_env_vars_to_propagate()


def address_of_running() -> str:
    """Return HOST:PORT of the cluster that runs on this machine, for RAY_ADDRESS=auto.

    Raises:
        ConnectionError, ValueError: no cluster runs here, or several do.
    """
    from ray._private.services import canonicalize_bootstrap_address_or_die

    return canonicalize_bootstrap_address_or_die("auto")


def check_gcs_alive(channel: "grpc.Channel", timeout_s: float) -> tuple[str, bool]:
    """Ask a GCS for its version and whether a node on this machine is alive; `ray.init` would hang or abort.

    Raises:
        grpc.RpcError: it does not answer, or refuses our token.
    """
    from ray._private.services import find_node_ids
    from ray.core.generated.gcs_service_pb2 import CheckAliveRequest  # pyright: ignore[reportAttributeAccessIssue]
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    here = [bytes.fromhex(node) for node in find_node_ids()]
    reply = NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(node_ids=here), timeout=timeout_s)
    return reply.ray_version, any(reply.raylet_alive)


def load_token() -> None:
    """Load the cluster's token as a driver does, without making one."""
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled

    ensure_token_if_auth_enabled(None, create_token_if_missing=False)


def token_headers() -> dict[str, str]:
    """Return the HTTP headers that the dashboard requires."""
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    return get_auth_headers_if_auth_enabled({})


def upload_limit_bytes() -> int:
    """Return the size of the largest working directory that a dashboard accepts."""
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE

    return DASHBOARD_CLIENT_MAX_SIZE


def walk_upload(
    root: Path, visit: Callable[[Path], None], environment: Mapping[str, str], logger: logging.Logger
) -> None:
    """Visit the files of a working directory that Ray would upload: those that no ignore file excludes.

    Args:
        root: the directory, absolute.
        visit: called with every file and directory.
        environment: this process's environment variables; one of them decides whether .gitignore counts.
        logger: for Ray's messages.
    """
    from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE, get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    gitignore = environment.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    excludes = [_get_excludes(root, get_runtime_env_default_excludes())]
    _dir_travel(root, excludes, visit, include_gitignore=gitignore, logger=logger)
