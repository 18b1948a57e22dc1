"""A worker's surroundings, and its state between steps."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from humpback_ray.placement import TrainPlacement
from humpback_ray.train.checkpoint.saver import Saver
from humpback_ray.train.data.examples import Example, Examples
from humpback_ray.train.data.packing import computed_tokens, pack
from humpback_ray.train.data.schedule import Schedule
from humpback_ray.train.engine.attention import Batching
from humpback_ray.train.engine.metrics import Meter
from humpback_ray.train.job import StepMetrics, TrainJob
from humpback_ray.train.types import SavedTokenizer, Told, TrainingEngine


@dataclass(frozen=True)
class Session:
    """A worker's surroundings: rank, directories, and whom it tells."""

    rank: int
    workers: int
    checkpoints: str
    """Directory of the checkpoints of all attempts; training resumes from the newest complete one."""
    attempt: str
    """Name of the subdirectory for this attempt's checkpoints."""
    progress: Told
    """Called by rank 0 after every step; decides itself how often to pass the figures on."""
    leaving: Callable[[], bool] = lambda: False
    """Returns True, once per request from outside, if a checkpoint is wanted now."""

    @staticmethod
    def alone(checkpoints: str, progress: Told = lambda figures: None) -> "Session":
        """Return the session of a single worker, without Ray and without a launcher."""
        return Session(rank=0, workers=1, checkpoints=checkpoints, attempt="0001", progress=progress)


@dataclass(frozen=True)
class Data:
    """A job's examples."""

    examples: Examples
    held_out: Examples
    """Seed pairs that no step trains on; their loss is the validation loss."""
    counts: dict[str, int]
    """Number of pairs by fate, as in `TrainResult.examples`."""


@dataclass
class Training:
    """A worker's state between steps."""

    job: TrainJob
    placement: TrainPlacement
    session: Session
    schedule: Schedule
    data: Data
    engine: TrainingEngine
    batching: Batching
    dropouts: list[str]
    """Fields of the model's configuration that the recipe's dropout was set on."""
    meter: Meter
    tokenizer: SavedTokenizer
    identity: dict[str, object]
    start: str
    """Random name of this start of the workers; distinguishes its files from those of other starts of the attempt."""
    saver: Saver
    boundary: int | None = None
    """Length of examples on whose two sides the model computes differently (rope.py)."""
    saved_at: float = field(default_factory=time.monotonic)
    """When the last checkpoint began, or the training."""
    history: list[StepMetrics] = field(default_factory=list)
    resumed_from: int | None = None

    def asks(self) -> bool:
        """Tell whether this worker wants a checkpoint after this step; rank 0 keeps the clock."""
        minutes = self.placement.checkpoint_every_minutes
        due = self.session.rank == 0 and minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes
        return self.session.leaving() or due

    def micros(self, examples: Sequence[Example]) -> tuple[list[list[Example]], int]:
        """Return this worker's micro-batches of the examples, and the tokens that all workers compute for them."""
        lengths, padded = [example.length for example in examples], self.batching == "padded"
        shares = pack(lengths, self.session.workers, self.placement.micro_batch_tokens, padded, self.boundary)
        mine = [[examples[place] for place in places] for places in shares[self.session.rank]]
        return mine, computed_tokens(shares, lengths, padded)
