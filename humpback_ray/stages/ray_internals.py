"""What the package uses of Ray that Ray does not promise to keep: private names, and its gRPC interfaces.

Written against Ray 2.60. Nothing else outside of train/ reaches into Ray, and tests/stages/test_ray_internals.py says
which name has moved, before a run finds out. Each function tells why Ray's public interface was not enough.
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
"""Environment variable that names the function which a worker process calls before its actor comes.

The public setup hook is that of a whole job. It stands here as Ray has it, since the driver's imports know no Ray.
"""

ONE_AT_A_TIME = {"num_returns": "streaming", "_generator_backpressure_num_objects": 1}
"""Options of a task that yields, and goes on when what it yielded has been taken."""


def stoppable(results: "ray.data.Dataset") -> "ray.data.Dataset":
    """Let a data set know its executor from the start; Ray Data sets it when the first block is there, if ever."""
    create = results._create_executor

    def created() -> Any:
        results._current_executor = create()
        return results._current_executor

    results._create_executor = created
    return results


def stop(results: "ray.data.Dataset") -> None:
    """End a data set whose iterator waits; Ray Data has no public call for that."""
    executor = results._current_executor
    if executor is not None:
        executor.shutdown(force=True)


class Address(TypedDict):
    """Where an actor is."""

    NodeID: str


class ActorRow(TypedDict):
    """What the table of actors says of one, of which more is there."""

    ActorID: str
    ActorClassName: str
    State: str
    Address: Address
    Pid: int
    StartTime: int
    """0 while it never was up."""
    NumRestarts: int


def actors_in(state: str) -> list[ActorRow]:
    """Return this job's actors in a state; the public list comes from the dashboard, which may not run."""
    import ray
    from ray._private.state import actors

    job = ray.JobID(bytes.fromhex(ray.get_runtime_context().get_job_id()))
    return cast(list[ActorRow], list(actors(job_id=job, actor_state_name=state).values()))


def free_resources() -> dict[str, dict[str, float]]:
    """Return what is free on each node, by its id; `ray.available_resources` has the sum alone."""
    from ray._private.state import available_resources_per_node

    return available_resources_per_node()


def memory_bytes() -> int:
    """Return the memory of this machine, or of the container that Ray runs in, as Ray counts it."""
    from ray._common.utils import get_system_memory

    return get_system_memory()


def channel_to(address: str) -> "grpc.Channel":
    """Return a gRPC channel to a process of Ray's at HOST:PORT, with the cluster's token if it has one."""
    from ray._private.grpc_utils import init_grpc_channel

    return cast("grpc.Channel", init_grpc_channel(address, asynchronous=False))


class Raylet:
    """A node's raylet, asked for worker processes ahead of their actors; Ray has no public call for that."""

    def __init__(self, address: str) -> None:
        from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub

        self._stub = NodeManagerServiceStub(channel_to(address))

    def prestart(self, job_id: bytes, environment: str, keep_s: int) -> None:
        """Ask for one idle process.

        Args:
            job_id: whose it is.
            environment: its runtime environment as JSON, byte for byte as Ray will write that of the actor.
            keep_s: how long it is kept if nobody takes it.
        """
        from ray.core.generated import common_pb2, node_manager_pb2

        request = node_manager_pb2.PrestartWorkersRequest(  # pyright: ignore[reportAttributeAccessIssue]
            language=common_pb2.PYTHON,  # pyright: ignore[reportAttributeAccessIssue]
            job_id=job_id,
            num_workers=1,  # of several it starts one per CPU
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
    """Return HOST:PORT of the cluster that runs on this machine, where RAY_ADDRESS is `auto`.

    Raises:
        ConnectionError, ValueError: there is none, or there are several.
    """
    from ray._private.services import canonicalize_bootstrap_address_or_die

    return canonicalize_bootstrap_address_or_die("auto")


def check_gcs_alive(channel: "grpc.Channel", timeout_s: float) -> tuple[str, bool]:
    """Ask a GCS for its version, and whether it knows a living node on this machine; `ray.init` would hang or abort.

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
    """Return the HTTP headers that the dashboard wants of us."""
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    return get_auth_headers_if_auth_enabled({})


def upload_limit_bytes() -> int:
    """Return the size of the largest working directory that a dashboard takes."""
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE

    return DASHBOARD_CLIENT_MAX_SIZE


def walk_upload(
    root: Path, visit: Callable[[Path], None], environment: Mapping[str, str], logger: logging.Logger
) -> None:
    """Visit what Ray would upload of a working directory: what its ignore files leave.

    Args:
        root: the directory, absolute.
        visit: told about every file and directory.
        environment: variables of this process, one of which decides whether .gitignore counts.
        logger: for what Ray wants to say meanwhile.
    """
    from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE, get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    gitignore = environment.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    excludes = [_get_excludes(root, get_runtime_env_default_excludes())]
    _dir_travel(root, excludes, visit, include_gitignore=gitignore, logger=logger)
