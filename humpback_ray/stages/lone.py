"""An actor that works for one thread alone: for a straggler's second try, or for a shard that is taken apart.

It is replaced when it dies and started elsewhere when its node is lost. A call that fails says why, with the last words
of its process.
"""

import builtins
import contextlib
import logging
from collections.abc import Sequence
from typing import Any, cast

from humpback_ray.placement import PoolPlacement
from humpback_ray.stages import processes
from humpback_ray.stages.actor import LoneActor
from humpback_ray.stages.errors import StageFailed
from humpback_ray.stages.processes import Process

logger = logging.getLogger(__name__)

NODE_WAIT_S = 4 * 3600
"""Seconds that an actor may take to start: GPU nodes can take hours to come up."""
MOST_NODES = 20
"""A call fails after it lost this many nodes."""

_MACHINE = {
    "NodeDiedError", "RaySystemError", "RpcError", "ObjectLostError", "OwnerDiedError", "StorageError",
    "ClientConnectorError", "ClientOSError", "ServerDisconnectedError", "EndpointConnectionError", "HTTPClientError",
    "ConnectionClosedError", "ConnectTimeoutError", "ReadTimeoutError",
}  # fmt: skip
"""Names of errors that are the machine's, besides OSError and its subclasses."""
_LASTING = {
    "FileNotFoundError",
    "PermissionError",
    "NotADirectoryError",
    "IsADirectoryError",
    "Damaged",
    "InputChanged",
}
"""Names of those that do not go away by themselves."""


class WorkerFailed(Exception):
    """A call raised, hung or ended its process; holds the process's last words and its node."""

    def __init__(self, error: str, last_words: str = "", node: str = "") -> None:
        super().__init__(error)
        self.last_words, self.node = last_words, node

    @property
    def kind(self) -> str:
        """Name of the error's class, if the message begins with it."""
        return str(self).partition(":")[0].rpartition(".")[2]

    @property
    def by_machine(self) -> bool:
        """True if the machine is to blame, not a row."""
        found = getattr(builtins, self.kind, None)
        return self.kind in _MACHINE | _LASTING or (isinstance(found, type) and issubclass(found, OSError))

    @property
    def lasts(self) -> bool:
        """True for a fault of the machine that does not go away by itself."""
        return self.kind in _LASTING


class LoneWorker:
    """A `LoneActor` that is replaced when it dies. One thread uses it; any may call `close`.

    Args:
        arguments: of the actor.
        placement: its resources.
        avoid_node: Ray's id of a node to avoid if there is another.
    """

    def __init__(self, arguments: tuple[Any, ...], placement: PoolPlacement, avoid_node: str | None = None) -> None:
        self.arguments, self.placement, self.avoid_node = arguments, placement, avoid_node
        self.closed = False
        self._actor: Any = None
        self._process = Process("", "", 0, "")

    def call(self, method: str, *arguments: Any, limit_s: float | None, returns: int = 1) -> Any:
        """Return the result of a method; if it returns several, the first result and references to the others.

        Raises:
            WorkerFailed: it raised or hung, or its process ended, but not because its node was lost.
            StageFailed: no actor could be started.
        """
        for _ in range(MOST_NODES):
            try:
                return self._call(method, *arguments, limit_s=limit_s, returns=returns)
            except processes.NodeLost as lost:
                logger.warning("%s; trying again elsewhere", lost)
                self.replace()
        raise WorkerFailed(f"{MOST_NODES} nodes were lost while they worked on it")

    def _call(self, method: str, *arguments: Any, limit_s: float | None, returns: int) -> Any:
        import ray
        from ray.exceptions import GetTimeoutError, RayError, RayTaskError

        references = getattr(self._started(), method).options(num_returns=returns).remote(*arguments)
        first, *others = references if returns > 1 else [references]
        try:
            value = ray.get(first, timeout=limit_s)
        except GetTimeoutError:
            processes.end(self._process.node_id, self._process.pid)
            raise self._failed(f"did not end within the limit of {limit_s:.0f} s") from None
        except RayTaskError as error:
            _look_at(others)
            raise WorkerFailed(reason(error), node=self._process.node) from error
        except RayError as error:
            _look_at(others)
            raise self._failed(reason(error)) from error
        return (value, *others) if others else value

    def _started(self) -> Any:
        """Return the actor, started and ready."""
        import ray
        from ray.exceptions import RayError

        for last_try in (False, False, True):
            if self.closed:
                raise WorkerFailed("the worker was stopped")
            if self._actor is not None:
                break
            options = self.placement.actor_arguments(self.avoid_node)
            actor: Any = ray.remote(LoneActor).options(**options).remote(*self.arguments)
            self._actor = actor
            try:
                self._process = cast(Process, ray.get(actor.ready.remote(), timeout=NODE_WAIT_S))
            except RayError as error:
                self.replace()
                if last_try:
                    raise StageFailed(f"a worker could not be started: {reason(error)}") from error
        return self._actor

    def _failed(self, error: str) -> WorkerFailed:
        """Return the failure of the process that just ended, with its last words."""
        process = self._process
        words = processes.words(process.node_id, process.stderr)
        self.replace()
        return WorkerFailed(error, words, process.node)

    def replace(self) -> None:
        """End the actor; the next call gets a new one."""
        import ray

        if self._actor is not None:
            ray.kill(self._actor)
        self._actor = None

    def close(self) -> None:
        """End the actor for good."""
        self.closed = True
        self.replace()


def _look_at(references: Sequence[Any]) -> None:
    """Retrieve errors that are already known; otherwise Ray prints each of them as unhandled."""
    import ray
    from ray.exceptions import RayError

    for reference in references:
        with contextlib.suppress(RayError):
            ray.get(reference, timeout=10)


def reason(error: BaseException) -> str:
    """Return the error inside Ray's wrapping as one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("File ", "ray::", "If you continue", "^"))]
    inner = [line for line in said if "Error" in line.split(":")[0].split(".")[-1]]
    return (inner or said or [type(error).__name__])[-1][:500]
