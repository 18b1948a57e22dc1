"""Ray Train around the loop: workers, checkpoints, restarts, progress; one call per model.

`launch` is safe to call again with the same storage path after any process has died, even the driver: the workers
resume from the newest checkpoint there, whoever wrote it (see checkpoint/store.py). They upload and find checkpoints
themselves, with the retries of `storage`. Ray Train does not know of them: its own snapshot belongs to a name and a
path, and a driver that wakes up late would load and overwrite another driver's. Ray Train retries worker failures up
to `max_failures` times. A verdict that retrying cannot change (`TrainingStopped`) is returned as a value and raised
once.

With `workers: [least, most]` Ray Train restarts the workers when there is room for more or a node is lost, and they
resume with the new number. If workers are told that they will be taken away (see checkpoint/notices.py), they save
first.

Rank 0 writes its figures to `<storage path>/<name>/progress.json`, where the driver and any other process can read
them without an actor. They also go to Ray's gauges and, if asked for, to Weights & Biases (tracking.py).
"""

import contextlib
import functools
import json
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from humpback_ray import storage
from humpback_ray.placement import TrainPlacement
from humpback_ray.stages import warm
from humpback_ray.stages.background import Complaints, repeat
from humpback_ray.stages.progress import Progress
from humpback_ray.stages.waiting import Actors, Waiting
from humpback_ray.train import tracking
from humpback_ray.train.causes import first_cause
from humpback_ray.train.checkpoint.callbacks import GaveUp, callbacks
from humpback_ray.train.checkpoint.notices import Notices
from humpback_ray.train.job import OutOfMemory, TrainingStopped, TrainJob, TrainResult, absolute
from humpback_ray.train.loop import Session, train
from humpback_ray.train.types import Figures, Told

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

logger = logging.getLogger(__name__)

PROGRESS = "progress.json"
PROGRESS_EVERY_S = 1.0
PROGRESS_EVERY_S3_S = 10.0


class TrainingFailed(RuntimeError):
    """Workers failed more often than the placement allows; the message is the first cause, `__cause__` has traces."""


def launch(job: TrainJob, placement: TrainPlacement, name: str, storage_path: str, note: str = "") -> TrainResult:
    """Fine-tune one model with Ray Train and DeepSpeed, or resume where an earlier call was killed.

    Args:
        job: what to train.
        placement: the workers and their resources.
        name: name of this attempt; its checkpoints are written under that name.
        storage_path: directory or s3:// URI for this job alone, which all workers reach and where the checkpoints of
            every attempt are looked for.
        note: URI of a file that says what the run waits for while it waits for workers; "" for no file.

    Raises:
        TrainingStopped: trying again will not help: a loss that is not finite, a checkpoint of another run, no
            examples, a worker without enough memory, an export that differs from the trained model.
        TrainingFailed: workers failed more than `placement.max_failures` times, or their nodes were drained more than
            `placement.max_preemption_failures` times; or no workers were up for `placement.give_up_waiting_minutes`.
    """
    started = time.monotonic()
    storage_path = absolute(storage_path)
    progress_uri = storage.join(storage_path, name, PROGRESS)
    storage.delete(progress_uri)
    # Warm processes are replaced once these train: on a laptop the new ones would slow the start down.
    begun = functools.partial(warm.took, training_workers=placement.least_and_most[0])
    waiting = Waiting(f"train {job.model}", placement.need(), Actors("RayTrainWorker"), note=note)
    with (
        tempfile.TemporaryDirectory(prefix="humpback-train-") as scratch,
        watched(job.model, progress_uri, begun, waiting),
    ):
        outcome = fitted(make_trainer(job, placement, name, storage_path, scratch), job.model)
    if isinstance(outcome, str):
        raise TrainingStopped(outcome)
    return replace(outcome, seconds=time.monotonic() - started)


def make_trainer(
    job: TrainJob, placement: TrainPlacement, name: str, storage_path: str, scratch: str
) -> "TorchTrainer":
    """Make Ray Train's trainer of a job; `scratch` is for its controller, which runs on the driver's machine."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    return TorchTrainer(
        worker,
        train_loop_config={"job": job.located(), "placement": placement, "checkpoints": storage_path, "name": name},
        torch_config=TorchConfig(backend="nccl" if placement.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(**placement.scaling_arguments()),
        run_config=RunConfig(
            name=f"{job.model}-{name}",
            storage_path=scratch,
            failure_config=FailureConfig(**placement.failure_arguments()),
            callbacks=callbacks(storage_path, job.model, placement),
            worker_runtime_env=warm.training_environment(),
            logging_config=LoggingConfig(log_level="CRITICAL"),  # Ray logs a traceback per try to get workers; we don't
        ),
    )


def fitted(trainer: "TorchTrainer", model: str) -> TrainResult | str:
    """Run a trainer to its end; return the result, or the verdict that stopped it.

    Raises:
        TrainingFailed: see `launch`.
    """
    from ray.train import TrainingFailedError

    try:
        with interruptible():
            outcome = trainer.fit().return_value
    except TrainingFailedError as error:
        ended, failures = getattr(error, "controller_failure", None), getattr(error, "worker_failures", {})
        if isinstance(ended, GaveUp):
            raise TrainingFailed(str(ended)) from None
        rank, cause = first_cause(failures) or (None, ended or error)
        if isinstance(cause, OutOfMemory):
            return str(cause)
        where = "in Ray Train's controller" if rank is None else f"on worker {rank}"
        raise TrainingFailed(f"training {model} failed {where}: {headline(cause)}") from error
    assert isinstance(outcome, TrainResult | str)
    return outcome


def worker(config: dict[str, Any]) -> TrainResult | str:
    """Run the loop on one Ray Train worker; return the result, or the verdict that stopped it."""
    import ray.train
    import torch

    context = ray.train.get_context()
    job: TrainJob = config["job"]
    placement: TrainPlacement = config["placement"]
    if not placement.gpus_per_worker:
        torch.set_num_threads(max(int(placement.cpus_per_worker), 1))
    with told_of(job, placement, storage.join(config["checkpoints"], config["name"])) as tell:
        session = Session(
            rank=context.get_world_rank(),
            workers=context.get_world_size(),
            checkpoints=config["checkpoints"],
            attempt=config["name"],
            progress=tell,
            leaving=Notices(),
        )
        try:
            return train(job, placement, session)
        except OutOfMemory:
            raise
        except TrainingStopped as verdict:
            return str(verdict)


@contextlib.contextmanager
def told_of(job: TrainJob, placement: TrainPlacement, directory: str) -> Iterator[Told]:
    """Yield a function that passes a step's figures to the driver, Ray's gauges and, if asked for, a tracker."""
    run, model = job.provenance.run, job.model
    with contextlib.ExitStack() as stack:
        all_told: list[Told] = [Pulse(model, storage.join(directory, PROGRESS)), tracking.gauges(run, model)]
        if placement.track:
            tracker = tracking.Tracker(placement.track, run, model, storage.join(directory, "wandb"))
            all_told.append(stack.enter_context(tracker))

        def tell(figures: Figures) -> None:
            for one in all_told:
                one(figures)

        yield tell


class Pulse:
    """Writes figures for the driver every few seconds; a failed write is logged, and training continues."""

    def __init__(self, model: str, uri: str) -> None:
        self.uri, self.tokens, self.last = uri, 0, 0.0
        self.every_s = progress_every_s(uri)
        self.complaints = Complaints(f"train {model}: writing {uri}")

    def __call__(self, figures: Figures) -> None:
        """Count a step, and write its figures if it is time."""
        self.tokens += figures["tokens"]
        if time.monotonic() - self.last < self.every_s and figures["step"] < figures["steps"]:
            return
        self.last = time.monotonic()
        body = figures | {"tokens_so_far": self.tokens, "host": socket.gethostname(), "pid": os.getpid()}
        try:
            storage.write_bytes(self.uri, json.dumps(body).encode())
        except Exception as error:  # noqa: BLE001 no error of storage may end the training
            self.complaints.note(error)


def progress_every_s(uri: str) -> float:
    """Return the seconds between two writes of the figures: requests to object storage cost money."""
    return PROGRESS_EVERY_S3_S if storage.is_s3(uri) else PROGRESS_EVERY_S


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C: Ray Train's handler would exit with code 0, and would stay installed."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        raise KeyboardInterrupt from end
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def watched(model: str, progress_uri: str, begun: Callable[[], None], waiting: Waiting) -> Iterator[None]:
    """Log the run's progress while the block runs, and call `begun` after its first step."""
    latest: Figures = {}
    name = f"train {model}"

    def concern() -> str:
        return _loss_words(latest) + waiting.words()

    with waiting, Progress(name, total=None, unit="steps", concern=concern) as progress:
        follow = functools.partial(_follow, progress_uri, latest, progress, begun)
        loop = repeat(f"{name}: reading {progress_uri}", follow, lambda: progress_every_s(progress_uri))
        try:
            yield
        finally:
            loop.stop()
            with contextlib.suppress(OSError):  # the last step's figures only go to the log
                follow()


def _follow(uri: str, latest: Figures, progress: Progress, begun: Callable[[], None]) -> None:
    """Copy rank 0's figures into the progress, once there are any."""
    try:
        figures = json.loads(storage.read_bytes(uri))
    except FileNotFoundError:
        return
    first = not latest
    latest.update(figures)
    if first:
        progress.begin(latest["steps"], latest["resumed_from"] or 0)
        begun()
    progress.done, progress.tokens = latest["step"], latest["tokens_so_far"]


def _loss_words(latest: Figures) -> str:
    return f", loss {latest['loss']:.4f}, learning rate {latest['learning_rate']:.2e}" if latest else ""


def headline(error: BaseException) -> str:
    """Return an error as one line: its type and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]])
