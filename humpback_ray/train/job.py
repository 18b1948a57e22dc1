"""A fine-tune as values: the job, its metrics and its result.

A `TrainJob` goes from the driver to the workers and holds names, not data: workers read the tokens and the base model
themselves, so a run continues after its driver has died.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from humpback_ray import storage
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.records import METRICS
from humpback_ray.train.data.examples import Direction
from humpback_ray.train.recipe import TrainRecipe


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from, for its card and its metrics; it does not affect the model."""

    run: str = ""
    """Name of the run's root."""
    fingerprint: str = ""
    """Fingerprint of the model's stage: recipe and inputs."""
    base: str = ""
    """Name of the base model."""
    base_digest: str = ""
    inputs: tuple[tuple[str, int, str], ...] = ()
    """(stage, pairs kept, digest) of every table of pairs."""
    licence: str = "unknown"


@dataclass(frozen=True)
class TrainJob:
    """Everything that determines the model, and where it is written."""

    model: str
    """`backward`, `m0`, `m1`, ...; selects the recipe's steps and rates of that name."""
    direction: Direction
    base_uri: str
    """Directory of the base model: config, safetensors, tokenizer."""
    token_uris: tuple[str, ...]
    """Parquet files of TOKENS rows; rows with a null `drop_reason` are trained on."""
    recipe: TrainRecipe
    chat: ChatRecipe
    export_uri: str
    """Directory that receives the model."""
    provenance: Provenance = Provenance()
    base_files: tuple[storage.InputFile, ...] = ()
    """The base model's files, each with its version; empty: whatever the directory holds."""

    @property
    def base(self) -> storage.Directory:
        """The base model's directory."""
        return storage.Directory(self.base_uri, self.base_files)

    def located(self) -> "TrainJob":
        """Return the job with absolute local paths, since Ray Train's workers run in another directory."""
        tokens = tuple(absolute(uri) for uri in self.token_uris)
        return replace(self, base_uri=absolute(self.base_uri), token_uris=tokens, export_uri=absolute(self.export_uri))

    def identity(self) -> dict[str, object]:
        """Return what must match for a run to resume from a checkpoint: names and recipes, not paths."""
        return {
            "model": self.model,
            "direction": self.direction,
            "recipe": self.recipe.identity(),
            "chat": self.chat.model_dump(mode="json"),
        }


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of one optimizer step; `step` counts from 1."""

    step: int
    loss: float
    """Mean over all output tokens of the global batch, in nats."""
    learning_rate: float
    gradient_norm: float
    """Norm of the gradient of the global batch's mean loss, before clipping."""
    tokens: int
    output_tokens: int
    seconds: float
    skipped: bool = False
    """Whether its update was not applied: the loss or the gradient was not finite, or the loss was a spike."""
    validation_loss: float | None = None
    """Mean loss on the held-out seed pairs after the step; None if it was not measured."""
    mfu: float | None = None
    memory_bytes: int | None = None
    padding_share: float | None = None
    data_s: float | None = None

    def figures(self) -> dict[str, Any]:
        """Return the row of METRICS: the fields and the rates computed from them."""
        rate = 1 / self.seconds if self.seconds else 0.0
        rates = {"tokens_per_s": self.tokens * rate, "output_tokens_per_s": self.output_tokens * rate}
        return vars(self) | rates


def metrics_table(steps: Sequence[StepMetrics]) -> pa.Table:
    """Return the steps as a table, schema METRICS."""
    return pa.Table.from_pylist([step.figures() for step in steps], schema=METRICS)


@dataclass(frozen=True)
class TrainResult:
    """The result of a finished fine-tune."""

    model: str
    metrics: list[StepMetrics]
    """Every step once, in order, those before a resume included."""
    files: list[storage.FileEntry]
    """The exported model."""
    examples: dict[str, int]
    """Pairs by fate: kept, too_long, truncated (a part of kept), held_out (for validation)."""
    batch_examples: int
    parameters: int
    trainable_parameters: int
    dropouts: list[str]
    """Fields of the model's configuration that the recipe's dropout was set on; empty if the family has none."""
    tokens: int
    """Tokens trained on over all steps, prompts included."""
    output_tokens: int
    peak: str
    """Peak of the workers' arithmetic, in words: FLOP/s and where the figure is from."""
    greedy: list[int]
    """First tokens that the trained model writes greedily after the probe prompt (reload.py)."""
    resumed_from: int | None
    """Step of the checkpoint that the last start resumed from; None if it began at step 1."""
    seconds: float
    """Wall time of this launch, start of workers and export included."""


class TrainingStopped(RuntimeError):
    """The run cannot continue, and trying again would not help; the message says what to change."""


class OutOfMemory(TrainingStopped):
    """Memory ran out on the worker that raises this; unlike other verdicts, the other workers do not raise it."""


def absolute(uri: str) -> str:
    """Return a local path as an absolute one, and other URIs unchanged."""
    return uri if storage.is_s3(uri) else str(Path(uri).absolute())
