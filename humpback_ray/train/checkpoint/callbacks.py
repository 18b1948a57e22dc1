"""Callbacks at Ray Train's turning points that make interruptions cheap."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from humpback_ray import storage
from humpback_ray.placement import TrainPlacement
from humpback_ray.stages.waiting import given_up, place_words
from humpback_ray.train import ray_internals
from humpback_ray.train.causes import first_cause
from humpback_ray.train.checkpoint import store
from humpback_ray.train.checkpoint.notices import ask, catch_termination
from humpback_ray.train.job import OutOfMemory

STORED_WITHIN_S = 300.0
"""How long a resize waits for the checkpoint that it asks for; after that, workers resume from an older one."""

LOOK_EVERY_S = 0.5


class GaveUp(RuntimeError):
    """No workers were up for as long as the placement allows; the message says what the run waited for."""


def callbacks(uri: str, name: str, placement: TrainPlacement) -> list[Any]:
    """Return Ray Train's callbacks of one model.

    Signals are caught in a worker's main thread; training runs in another thread.

    Args:
        uri: directory of the run's checkpoints.
        name: name of the model, for messages.
        placement: placement of the run.
    """
    return [
        ray_internals.at_worker_start(catch_termination),
        ray_internals.before_resize(partial(save_first, uri)),
        ray_internals.recounting_nodes(),
        ray_internals.before_retry(end_if_hopeless),
        ray_internals.at_every_state(Patience(name, placement)),
    ]


def save_first(uri: str, in_workers: ray_internals.InWorkers) -> None:
    """Ask workers that are about to be ended for a checkpoint; wait until it is stored or a worker has stopped."""
    before = [storage.join(uri, name) for name in store.listed(uri)]
    deadline = time.monotonic() + STORED_WITHIN_S
    in_workers(ask)
    while next(store.complete(uri, besides=before), None) is None and time.monotonic() < deadline:
        if not all(in_workers(ray_internals.is_training)):
            return
        time.sleep(LOOK_EVERY_S)


def end_if_hopeless(failures: Mapping[int, Exception]) -> None:
    """End the run if the memory of a worker ran out: the same batch would not fit the next time either.

    Raises:
        OutOfMemory: the worker's verdict.
    """
    _, cause = first_cause(failures) or (0, None)
    if isinstance(cause, OutOfMemory):
        raise cause


class Patience:
    """Ends a run that has had no workers for as long as the placement allows; its controller would try forever."""

    def __init__(self, name: str, placement: TrainPlacement) -> None:
        self.name, self.placement = name, placement
        self.since: float | None = time.monotonic()
        """Since when there have been no workers; None while workers are up."""

    def __call__(self, workers: bool) -> None:
        """Note whether workers are up.

        Raises:
            GaveUp: no workers have been up for too long.
        """
        if workers:
            self.since = None
            return
        self.since, limit = self.since or time.monotonic(), self.placement.give_up_waiting_minutes
        if limit is not None and time.monotonic() - self.since >= 60 * limit:
            raise GaveUp(given_up(f"training {self.name}", limit, place_words(self.placement.need())))
