"""Check that a cluster can be reached; a failure takes seconds and one line.

On its own, `ray.init` tries a wrong address for minutes and ends in a hundred lines. So one request with a deadline
goes first: to the GCS, which a driver joins (`check_gcs`), or to the Jobs API, which takes submissions (`ask_api`).
Both send the token that Ray itself would send.
"""

import contextlib
import http.client
import json
import os
import socket
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from humpback_ray.config import ConfigError
from humpback_ray.stages import ray_internals

DEADLINE_S = 10.0
"""Time limit for a cluster's answer to a request of a few bytes."""

STOP_S = 30.0
"""Time that Ray gets to stop a job that asked for it."""

TOKEN = (
    "export RAY_AUTH_MODE=token, and put the cluster's token in ~/.ray/auth_token, RAY_AUTH_TOKEN_PATH or "
    "RAY_AUTH_TOKEN"
)


def gcs_of(address: str) -> str:
    """Return HOST:PORT of the GCS that RAY_ADDRESS names; `auto` is the Ray that runs on this machine.

    Raises:
        ConfigError: it is not such an address, or Ray does not run here.
    """
    scheme = address.partition("://")[0] if "://" in address else ""
    if scheme in ("http", "https"):
        raise ConfigError(
            f"RAY_ADDRESS is {address}, a dashboard, but a driver joins HOST:6379; to submit to that dashboard: "
            f"python -m jobs.submit --address {address} CONFIG ..."
        )
    if scheme:
        raise ConfigError(
            f"RAY_ADDRESS is {address}, but a driver joins HOST:6379 from a node of the cluster; from elsewhere submit "
            "it: python -m jobs.submit --address http://HOST:8265 CONFIG ..."
        )
    if address == "auto":
        with _quiet():
            try:
                return ray_internals.address_of_running()
            except (ConnectionError, ValueError) as error:
                raise ConfigError(f"RAY_ADDRESS is auto: {one_line(error)}") from error
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"RAY_ADDRESS is {address}, which is not HOST:PORT, such as 10.0.0.1:6379")
    try:
        socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"RAY_ADDRESS is {address}, and {host} cannot be looked up: {one_line(error)}") from error
    return address


def check_gcs(address: str) -> None:
    """Check that the GCS answers, takes our token, runs our version of Ray, and has a node on this machine.

    Args:
        address: value of RAY_ADDRESS.

    Raises:
        ConfigError: a check failed; one line says what is wrong and what to do.
    """
    gcs = gcs_of(address)
    import grpc

    _check_token(ray_internals.load_token)
    channel = ray_internals.channel_to(gcs)
    deadline = time.monotonic() + DEADLINE_S
    try:
        while True:
            version, has_node = ray_internals.check_gcs_alive(channel, DEADLINE_S)
            if has_node or time.monotonic() > deadline:
                break
            time.sleep(0.5)  # a node that has just started is not known yet
    except grpc.RpcError as error:
        code = error.code()  # pyright: ignore[reportAttributeAccessIssue]
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            raise ConfigError(f"Ray at {gcs} (RAY_ADDRESS) refuses our token, or none was sent; {TOKEN}") from error
        said = error.details() or str(code)  # pyright: ignore[reportAttributeAccessIssue]
        why = one_line(said.rpartition("last error: ")[2])
        raise ConfigError(f"no Ray answers at {gcs} (RAY_ADDRESS): {why}") from error
    finally:
        channel.close()
    check_version(version, f"Ray at {gcs} (RAY_ADDRESS)")
    if not has_node:
        raise ConfigError(
            f"Ray at {gcs} (RAY_ADDRESS) has no node on this machine, but a driver needs one; submit the job instead: "
            "python -m jobs.submit --address http://HOST:8265 CONFIG ..."
        )


def check_version(theirs: str, who: str) -> None:
    """Refuse a cluster with another version of Ray: the format between drivers and nodes changes with it.

    Raises:
        ConfigError: the minor version differs.
    """
    import ray

    ours = ray.__version__
    if theirs and theirs.split(".")[:2] != ours.split(".")[:2]:
        raise ConfigError(f"{who} is version {theirs}, but {ours} is installed here; both must be the same")


def api_of(address: str | None) -> str:
    """Return the URL of the Jobs API: the argument, RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or Ray's default.

    Raises:
        ConfigError: it is not an http:// or https:// URL.
    """
    given = {
        "--address": address,
        "RAY_API_SERVER_ADDRESS": os.environ.get("RAY_API_SERVER_ADDRESS"),
        "RAY_ADDRESS": os.environ.get("RAY_ADDRESS"),
        "no --address is given, so": "http://127.0.0.1:8265",
    }
    name, found = next((name, value) for name, value in given.items() if value)
    with contextlib.suppress(ValueError):
        parts = urlsplit(found)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return found.rstrip("/")
    raise ConfigError(f"{name} is {found}, but jobs are submitted to a dashboard: http://HOST:8265")


def ask_api(api: str, path: str = "/api/version", method: str = "GET") -> Any:
    """Send a request to the Jobs API and return its JSON.

    Raises:
        ConfigError: the request failed; one line says what is wrong and what to do.
    """
    headers: dict[str, str] = {}
    _check_token(lambda: headers.update(ray_internals.token_headers()))
    request = urllib.request.Request(f"{api}{path}", headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as reply:
            return json.loads(reply.read())
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            why = "refuses our token" if error.code == 403 else "asks for a token, but none was sent"
            raise ConfigError(f"the cluster at {api} {why}; {TOKEN}") from error
        raise ConfigError(f"{api} answers {path} with {error.code} {error.reason}; is it Ray's dashboard?") from error
    except (ValueError, http.client.HTTPException) as error:
        raise ConfigError(f"{api} answers, but not like Ray's dashboard ({path} is not JSON)") from error
    except OSError as error:
        why = one_line(getattr(error, "reason", error))
        raise ConfigError(
            f"no Ray answers at {api}: {why}; is the tunnel open (`ray dashboard cluster/aws.yaml`, `kubectl "
            "port-forward`), and is this the dashboard's port?"
        ) from error


def stop_own_job(submission: str) -> None:
    """Ask Ray to stop this job, so that it counts as stopped, not as failed; wait for the end.

    KubeRay retries a failed job on a new cluster and leaves a stopped one alone, so this prevents retries that cannot
    help. If Ray does not stop the job, it ends with its exit code.
    """
    from ray.job_submission import JobSubmissionClient

    with contextlib.suppress(Exception), _quiet():
        JobSubmissionClient(os.environ.get("RAY_ADDRESS")).stop_job(submission)
        time.sleep(STOP_S)


def _check_token(load: Any) -> None:
    """Load the token as Ray does.

    Raises:
        ConfigError: it is missing or cannot be read.
    """
    from ray.exceptions import RayError

    try:
        with _quiet():
            load()
    except (RayError, RuntimeError, OSError, ValueError) as error:
        said = one_line(error).partition(". ")[0]
        raise ConfigError(f"RAY_AUTH_MODE is token, but no token was found: {said}; {TOKEN}") from error


@contextlib.contextmanager
def _quiet() -> Any:
    """Silence Ray's own loggers; the error repeats what they say."""
    import logging

    logger = logging.getLogger("ray")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def one_line(said: object) -> str:
    """Return a text on one line, cut to 300 characters."""
    text = " ".join(str(said).split())
    return text if len(text) <= 300 else f"{text[:297]}..."
