"""One fine-tune as a value: what is trained on what, and what came of it.

A `TrainJob` travels from the driver to the workers and holds names, not data: workers read the tokens and the base
model themselves, so a run goes on after its driver died.
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
    """Where a model comes from, for its card and for whoever watches; nothing of it decides the model."""

    run: str = ""
    """Name of the run's root."""
    fingerprint: str = ""
    """Of the model's stage: recipe and inputs."""
    base: str = ""
    """The base model, by its directory's name."""
    base_digest: str = ""
    inputs: tuple[tuple[str, int, str], ...] = ()
    """(stage, pairs kept, digest) of every table of pairs."""
    licence: str = "unknown"


@dataclass(frozen=True)
class TrainJob:
    """Everything that decides which model comes out, and where it goes."""

    model: str
    """`backward`, `m0`, `m1`, ...: selects the recipe's steps and rates of that name."""
    direction: Direction
    base_uri: str
    """Directory of the base model: config, safetensors, tokenizer."""
    token_uris: tuple[str, ...]
    """Parquet files of TOKENS rows; those whose `drop_reason` is null are trained on."""
    recipe: TrainRecipe
    chat: ChatRecipe
    export_uri: str
    """Directory that receives the model."""
    provenance: Provenance = Provenance()
    base_files: tuple[storage.InputFile, ...] = ()
    """The files of the base model, each of its version; none: whatever the directory holds."""

    @property
    def base(self) -> storage.Directory:
        """The base model's directory."""
        return storage.Directory(self.base_uri, self.base_files)

    def located(self) -> "TrainJob":
        """Return the job with absolute local paths: Ray Train's workers run in another directory."""
        tokens = tuple(absolute(uri) for uri in self.token_uris)
        return replace(self, base_uri=absolute(self.base_uri), token_uris=tokens, export_uri=absolute(self.export_uri))

    def identity(self) -> dict[str, object]:
        """Return what a checkpoint must agree on for a run to resume from it: names and recipes, no paths."""
        return {
            "model": self.model,
            "direction": self.direction,
            "recipe": self.recipe.identity(),
            "chat": self.chat.model_dump(mode="json"),
        }


@dataclass(frozen=True)
class StepMetrics:
    """What one optimizer step did; `step` counts from 1."""

    step: int
    loss: float
    """Mean over all output tokens of the global batch, nats."""
    learning_rate: float
    gradient_norm: float
    """Of the global batch's mean loss, before clipping."""
    tokens: int
    output_tokens: int
    seconds: float
    skipped: bool = False
    """Its update was not applied: the loss or the gradient was not finite, or the loss a spike."""
    validation_loss: float | None = None
    """Over the held-out seed pairs, after the step; None where it was not asked for."""
    mfu: float | None = None
    memory_bytes: int | None = None
    padding_share: float | None = None
    data_s: float | None = None

    def figures(self) -> dict[str, Any]:
        """Return the row of METRICS: the fields, and the rates that follow from them."""
        rate = 1 / self.seconds if self.seconds else 0.0
        rates = {"tokens_per_s": self.tokens * rate, "output_tokens_per_s": self.output_tokens * rate}
        return vars(self) | rates


def metrics_table(steps: Sequence[StepMetrics]) -> pa.Table:
    """Return the steps as a table, schema METRICS."""
    return pa.Table.from_pylist([step.figures() for step in steps], schema=METRICS)


@dataclass(frozen=True)
class TrainResult:
    """What a finished fine-tune is told by."""

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
    """Fields of the model's configuration that the recipe's dropout was set on; empty where the family has none."""
    tokens: int
    """Tokens trained on over all steps, prompts included."""
    output_tokens: int
    peak: str
    """Of the workers' arithmetic, in words: FLOP/s and where the figure is from."""
    greedy: list[int]
    """Tokens that the trained model writes first after the probe prompt (reload.py), greedily."""
    resumed_from: int | None
    """Step of the checkpoint that the last start resumed from."""
    seconds: float
    """Wall time of this launch, start of workers and export included."""


class TrainingStopped(RuntimeError):
    """The run cannot go on and trying again would not help; the message says what to change."""


def absolute(uri: str) -> str:
    """Return a local path made absolute; other URIs as they are."""
    return uri if storage.is_s3(uri) else str(Path(uri).absolute())
