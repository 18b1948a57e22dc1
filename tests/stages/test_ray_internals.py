"""Every private name of Ray that the package uses exists, with the shape that the package relies on."""

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray

from humpback_ray.stages import ray_internals
from humpback_ray.stages.ray_internals import WRITTEN_AGAINST, ActorRow

REPOSITORY = Path(__file__).parents[2]
MODULE = "humpback_ray/stages/ray_internals.py"


def takes(*parameters: str) -> Callable[[Any], object]:
    """A function that can be called with these parameters and no others."""
    return lambda found: inspect.signature(found).bind(**dict.fromkeys(parameters))


def is_a(kind: type) -> Callable[[Any], object]:
    def check(found: Any) -> None:
        if not isinstance(found, kind):
            raise TypeError(f"it is {found!r}, no {kind.__name__}")

    return check


def has_fields(*names: str) -> Callable[[Any], object]:
    """A message with some fields."""
    return lambda found: [found.DESCRIPTOR.fields_by_name[name] for name in names]


def is_stub_with(*methods: str) -> Callable[[Any], object]:
    """A gRPC stub with some methods."""

    def check(found: Any) -> None:
        import grpc

        stub = found(grpc.insecure_channel("127.0.0.1:1"))  # connects to nothing until it is called
        for method in methods:
            getattr(stub, method)

    return check


def says(text: str) -> Callable[[Any], object]:
    """Python code that contains a text."""

    def check(found: Any) -> None:
        if text not in inspect.getsource(found):
            raise TypeError(f"{text} does not stand in it any more")

    return check


def describes_actors(found: Any) -> None:
    from ray.core.generated.gcs_pb2 import ActorTableData  # pyright: ignore[reportAttributeAccessIssue]

    row = found(None, ActorTableData())
    if missing := ActorRow.__annotations__.keys() - row.keys():
        raise TypeError(f"an actor's row has no {', '.join(sorted(missing))}")
    row["Address"]["NodeID"]


STATE, CONSTANTS, TRAIN = "ray._private.state", "ray._private.ray_constants", "ray.train.v2._internal.constants"
PROTOCOL, TOKEN = "ray.core.generated", "ray._private.authentication"
SHAPES: Mapping[str, Callable[[Any], object]] = {
    f"{STATE}.actors": takes("job_id", "actor_state_name"),
    f"{STATE}.GlobalState._gen_actor_info": describes_actors,
    f"{STATE}.available_resources_per_node": takes(),
    "ray._common.utils.get_system_memory": takes(),
    "ray._common.ray_option_utils.task_options": lambda found: [found[name] for name in ray_internals.ONE_AT_A_TIME],
    "ray._private.grpc_utils.init_grpc_channel": takes("address", "asynchronous"),
    f"{PROTOCOL}.node_manager_pb2_grpc.NodeManagerServiceStub": is_stub_with("PrestartWorkers"),
    f"{PROTOCOL}.node_manager_pb2": lambda found: has_fields(
        "language", "job_id", "num_workers", "keep_alive_duration_secs", "runtime_env_info"
    )(found.PrestartWorkersRequest),
    f"{PROTOCOL}.common_pb2": lambda found: is_a(int)(found.PYTHON),
    f"{PROTOCOL}.gcs_service_pb2.CheckAliveRequest": has_fields("node_ids"),
    f"{PROTOCOL}.gcs_service_pb2.CheckAliveReply": has_fields("ray_version", "raylet_alive"),
    f"{PROTOCOL}.gcs_service_pb2_grpc.NodeInfoGcsServiceStub": is_stub_with("CheckAlive"),
    f"{TRAIN}.DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE": is_a(str),
    f"{TRAIN}.get_env_vars_to_propagate": takes(),
    "ray._private.services.canonicalize_bootstrap_address_or_die": takes("addr"),
    "ray._private.services.find_node_ids": takes(),
    f"{TOKEN}.authentication_token_setup.ensure_token_if_auth_enabled": takes(
        "system_config", "create_token_if_missing"
    ),
    f"{TOKEN}.http_token_authentication.get_auth_headers_if_auth_enabled": takes("user_headers"),
    f"{CONSTANTS}.DASHBOARD_CLIENT_MAX_SIZE": is_a(int),
    f"{CONSTANTS}.RAY_RUNTIME_ENV_IGNORE_GITIGNORE": is_a(str),
    f"{CONSTANTS}.get_runtime_env_default_excludes": takes(),
    f"{CONSTANTS}.WORKER_PROCESS_SETUP_HOOK_ENV_VAR": lambda found: {ray_internals.HOOK: 0}[found],
    "ray._private.runtime_env.packaging._dir_travel": takes(
        "path", "excludes", "handler", "include_gitignore", "logger"
    ),
    "ray._private.runtime_env.packaging._get_excludes": takes("path", "excludes"),
    "ray.data.Dataset.__init__": says("self._current_executor"),
    "ray.data.Dataset._create_executor": takes("self"),
    "ray.data.Dataset": says("executor = self._create_executor()"),
    "ray.data._internal.execution.streaming_executor.StreamingExecutor.shutdown": takes("self", "force"),
}
"""The required shape of each name."""


def found(name: str) -> Any:
    """Import the longest part of a dotted name that is a module, and take the rest from it."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            value = getattr(value, part)
        return value
    raise ImportError(f"no module {parts[0]}")


def moved(name: str, shape: Callable[[Any], object]) -> str:
    """Say how a name has changed; "" if it has not."""
    try:
        shape(found(name))
    except Exception as error:  # noqa: BLE001 any error means that the name has changed
        return (
            f"{name} has moved or changed ({type(error).__name__}: {error}): Ray {ray.__version__} is installed, and "
            f"{MODULE} was written against {WRITTEN_AGAINST}"
        )
    return ""


@pytest.mark.parametrize("name", SHAPES)
def test_a_private_name_has_not_changed(name: str) -> None:
    assert not moved(name, SHAPES[name]), moved(name, SHAPES[name])


@pytest.mark.parametrize(
    ("name", "shape", "why"),
    [
        (f"{STATE}.gone", takes(), "AttributeError"),
        ("ray._gone.state", takes(), "AttributeError"),
        (f"{STATE}.actors", takes("job_id", "state"), "unexpected keyword argument 'state'"),
        ("ray._private.grpc_utils.init_grpc_channel", takes(), "missing a required argument: 'address'"),
        (f"{PROTOCOL}.gcs_service_pb2.CheckAliveReply", has_fields("version"), "KeyError: 'version'"),
        (f"{PROTOCOL}.gcs_service_pb2_grpc.NodeInfoGcsServiceStub", is_stub_with("Gone"), "no attribute 'Gone'"),
        ("ray.data.Dataset.__init__", says("self._gone"), "self._gone does not stand in it"),
        (f"{CONSTANTS}.DASHBOARD_CLIENT_MAX_SIZE", is_a(str), "no str"),
    ],
)
def test_a_moved_name_is_reported_with_both_versions(name: str, shape: Callable[[Any], object], why: str) -> None:
    said = moved(name, shape)
    assert said.startswith(f"{name} has moved or changed (")
    assert why in said
    assert f"Ray {ray.__version__} is installed" in said
    assert said.endswith(f"ray_internals.py was written against {WRITTEN_AGAINST}")


def private_imports(path: Path) -> Iterator[str]:
    """The private names of Ray that a module imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            inner = name.split(".")[1:]
            if name.startswith("ray.") and any(part.startswith("_") or part == "generated" for part in inner):
                yield name


def test_every_private_name_that_is_imported_is_checked() -> None:
    imported = set(private_imports(REPOSITORY / MODULE))
    assert len(imported) > 15
    assert imported <= SHAPES.keys(), imported - SHAPES.keys()


def test_only_modules_meant_for_it_use_rays_internals() -> None:
    paths = [path for room in ("humpback_ray", "jobs") for path in (REPOSITORY / room).rglob("*.py")]
    offenders = [
        f"{path.relative_to(REPOSITORY)} imports {name}"
        for path in paths
        if path.name != "ray_internals.py"
        for name in private_imports(path)
    ]
    assert not offenders, "\n".join(offenders)
