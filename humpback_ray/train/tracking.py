"""Metrics of every step while a model is trained: to Ray, and to Weights & Biases if the placement says so.

Neither delays training. Gauges are set in memory, and a scraper fetches them; a thread of its own opens, writes and
closes the run at Weights & Biases. If the service is down, the key is wrong or the disk is full, there is one warning,
and no further step is sent.
"""

import logging
import queue
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from humpback_ray import storage
from humpback_ray.records import METRICS
from humpback_ray.train.types import Figures, Told

logger = logging.getLogger(__name__)

WATCHED = tuple(name for name in METRICS.names if name not in ("step", "seconds"))
"""The columns of METRICS that become gauges, `humpback_train_<column>`."""

OPEN_S, CLOSE_S = 30.0, 30.0
"""How long a run may take to open, and how long the end of training waits until the last steps are sent."""


def gauges(run: str, model: str) -> Told:
    """Return a function that sets Ray's gauges of a model, with the tags `run` and `model`; Ray must be up."""
    from ray.util.metrics import Gauge

    tags = {"run": run, "model": model}
    made = {name: Gauge(f"humpback_train_{name}", f"{name} of the last step", tuple(tags)) for name in WATCHED}

    def tell(figures: Figures) -> None:
        for name, gauge in made.items():
            if figures[name] is not None:
                gauge.set(figures[name], tags)

    return tell


class Tracker:
    """A run at Weights & Biases, opened at the first step; a context manager that closes it.

    Args:
        mode: "online", or "offline" into a directory that is copied to `uri` at the end.
        run: name of the group for all models of a run.
        model: name of this model's run.
        uri: destination of an offline run.
        settings: settings of Weights & Biases that override its environment variables.
    """

    def __init__(
        self,
        mode: Literal["online", "offline"],
        run: str,
        model: str,
        uri: str,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.mode, self.run, self.model, self.uri, self.settings = mode, run, model, uri, dict(settings or {})
        self._told: queue.SimpleQueue[Figures | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Tracker":
        return self

    def __call__(self, figures: Figures) -> None:
        """Pass a step's figures to the thread; return at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
            self._thread.start()
        self._told.put({name: figures[name] for name in METRICS.names if figures[name] is not None})

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._told.put(None)
            self._thread.join(CLOSE_S)
            if self._thread.is_alive():
                logger.warning("%s: could not send the last steps to Weights & Biases in %g s", self.model, CLOSE_S)

    def _work(self) -> None:
        with tempfile.TemporaryDirectory(prefix="humpback-track-", ignore_cleanup_errors=True) as directory:
            try:
                self._send(directory)
                if self.mode == "offline":
                    storage.upload_directory(Path(directory, "wandb"), self.uri)
            except Exception as error:  # noqa: BLE001  no error of the service or its client may end the training
                said = str(error).strip().split("\n")[0]
                logger.warning(
                    "%s: training continues, but is no longer tracked: %s: %s", self.model, type(error).__name__, said
                )

    def _send(self, directory: str) -> None:
        import wandb

        settings = wandb.Settings(
            console="off", silent=True, disable_git=True, init_timeout=OPEN_S, x_disable_stats=True, **self.settings
        )
        where = {"group": self.run or None, "name": self.model, "dir": directory, "mode": self.mode}
        with wandb.init(**where, settings=settings, reinit="create_new") as opened:
            while (figures := self._told.get()) is not None:
                opened.log({**figures}, step=figures["step"])
