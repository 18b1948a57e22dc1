"""Who is told of every step while a model is trained: Ray's metrics, and Weights & Biases if the placement says so.

Both stand beside training and never in its way: gauges are set in memory and fetched by who scrapes them; a run at
Weights & Biases is opened, written and closed by a thread of its own. Its service being away, a wrong key or a full
disk is one warning, and no further step is sent.
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
"""How long opening a run may take, and how long the end of training waits for the last steps to be sent."""


def gauges(run: str, model: str) -> Told:
    """Return what sets Ray's gauges of a model, with the tags `run` and `model`; Ray must be up."""
    from ray.util.metrics import Gauge

    tags = {"run": run, "model": model}
    made = {name: Gauge(f"humpback_train_{name}", f"{name} of the last step", tuple(tags)) for name in WATCHED}

    def tell(figures: Figures) -> None:
        for name, gauge in made.items():
            if figures[name] is not None:
                gauge.set(figures[name], tags)

    return tell


class Tracker:
    """A run at Weights & Biases, opened with the first step that is told; a `with` block that ends it.

    Args:
        mode: "online", or "offline" into a directory that is copied to `uri` in the end.
        run: groups the models of a run.
        model: names this one.
        uri: where an offline run goes.
        settings: of Weights & Biases' own, to replace what its environment variables say.
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
        """Pass a step's figures on; returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
            self._thread.start()
        self._told.put({name: figures[name] for name in METRICS.names if figures[name] is not None})

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._told.put(None)
            self._thread.join(CLOSE_S)
            if self._thread.is_alive():
                logger.warning("%s: the last steps were not sent to Weights & Biases within %g s", self.model, CLOSE_S)

    def _work(self) -> None:
        with tempfile.TemporaryDirectory(prefix="humpback-track-", ignore_cleanup_errors=True) as directory:
            try:
                self._send(directory)
                if self.mode == "offline":
                    storage.upload_directory(Path(directory, "wandb"), self.uri)
            except Exception as error:  # noqa: BLE001  whatever a service and its client come up with
                said = str(error).strip().split("\n")[0]
                logger.warning(
                    "%s is trained on, but no longer tracked: %s: %s", self.model, type(error).__name__, said
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
