"""A global step: the whole work of a stage in one Ray task, under the stage's lease.

If the task's process is killed or its node is lost, it is tried again a few times. An error that the task raises ends
the stage.
"""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from humpback_ray import storage
from humpback_ray.placement import TaskPlacement
from humpback_ray.stages import ray_internals
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.drivers import waiting_uri
from humpback_ray.stages.errors import StageFailed
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.progress import Progress
from humpback_ray.stages.provenance import node
from humpback_ray.stages.waiting import Waiting, Workers

if TYPE_CHECKING:
    import ray

logger = logging.getLogger(__name__)

PROGRESS = "progress.txt"
"""File in the stage directory in which a long step reports its progress."""
TRIES = 3
"""Number of tries of a global step whose process is killed or whose node is lost."""
GB = 10**9


class GlobalStep:
    """One execution of `Stage.once`: a Ray task that Ray itself never retries.

    Unless `max_retries` is 0, Ray retries a task that its memory monitor kills without limit.
    """

    def __init__(
        self,
        name: str,
        step: Callable[..., Commit],
        attempt: Attempt,
        arguments: tuple[Any, ...],
        placement: TaskPlacement,
    ) -> None:
        self.name, self.step, self.attempt, self.arguments = name, step, attempt, arguments
        self.placement, self.ledger = placement, attempt.ledger
        self.started: Started | None = None
        self.running: ray.ObjectRefGenerator | None = None
        note = waiting_uri(self.ledger.uri, self.ledger.submission)
        limit = placement.give_up_waiting_minutes
        self.waiting = Waiting(self.name, placement.need(), self._workers, limit, self._cancel, note)

    def run(self) -> Commit:
        """Try until the step succeeds, raises an error, or was killed `TRIES` times.

        Raises:
            StageFailed: the step was killed that often, or could not start in time.
        """
        from ray.exceptions import RayError, RayTaskError

        with Progress(self.name, None, concern=self._concern), self.waiting:
            for number in range(1, TRIES + 1):
                try:
                    return self._try()
                except RayTaskError as error:
                    raise error.cause from None
                except KeyboardInterrupt:
                    self._cancel()
                    raise
                except RayError as error:
                    if self.waiting.gave_up:
                        raise StageFailed(self.waiting.gave_up) from None
                    self._killed(number, error)
        raise AssertionError("the last try returns or raises")

    def _try(self) -> Commit:
        import ray

        self.started = None
        options = {**ray_internals.ONE_AT_A_TIME, **self.placement.remote_arguments()}  # yields its node before working
        task = ray.remote(_in_attempt).options(**options).remote(self.step, self.attempt, self.arguments)
        self.running = running = cast("ray.ObjectRefGenerator", task)
        self.started = cast(Started, ray.get(next(running)))
        return cast(Commit, ray.get(next(running)))

    def _cancel(self) -> None:
        import ray

        if self.running is not None:
            ray.cancel(self.running, force=True)

    def _killed(self, number: int, error: Exception) -> None:
        """Say what killed the task, and raise if that was the last try."""
        where = f" on node {self.started.node}" if self.started else ""
        said = f"{self.name}: the task{where} {_end_of(error, self.started, self.placement)}"
        if number == TRIES:
            raise StageFailed(f"{said}; it was tried {TRIES} times") from None
        logger.warning("%s; trying again", said)

    def _workers(self) -> Workers:
        return Workers(up=int(self.started is not None))

    def _concern(self) -> str:
        """Return the step's report in `progress.txt`, and what it waits for."""
        uri = self.ledger.at(PROGRESS)
        said = f", {storage.read_bytes(uri).decode()}" if storage.exists(uri) else ""
        return said + self.waiting.words()


@dataclass(frozen=True)
class Started:
    """Where a global step runs."""

    node: str
    memory_bytes: int
    """Memory of the node, or of the container that Ray runs in."""


def _in_attempt(
    step: Callable[..., Commit], attempt: Attempt, arguments: tuple[Any, ...]
) -> Iterator[Started | Commit]:
    """Run a global step in a Ray worker, in an attempt that the driver began; yield its node, then the commit."""
    yield Started(node(), ray_internals.memory_bytes())
    yield step(attempt, *arguments)


def _end_of(error: Exception, started: Started | None, placement: TaskPlacement) -> str:
    """Say how a task that raised no error ended, and how much memory it had."""
    from ray.exceptions import OutOfMemoryError

    reserved = f"{placement.memory_bytes / GB:.1f} GB" if placement.memory_bytes else "none"
    has = f"its node has {started.memory_bytes / GB:.1f} GB, of which it" if started else "it"
    room = f"{has} had reserved {reserved} (memory_bytes of its placement)"
    if isinstance(error, OutOfMemoryError):
        used = re.search(r"was ([\d.]+ ?\w+)(?: used)? / ([\d.]+ ?\w+)", str(error))
        own = re.search(r"actual memory used=([\d.]+ ?\w+)", str(error))
        full = f"; {used[1]} of {used[2]} were in use on the node" if used else ""
        full += f", {own[1]} of them by the task" if own and used else ""
        return f"ran out of memory and was killed by Ray's memory monitor{full}; {room}"
    cause = "killed, possibly for lack of memory, or its node was lost"
    return f"died silently ({type(error).__name__}: {cause}); {room}"
