"""The result of each model's training: losses, rates and memory, step by step."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from humpback_ray.graph import models
from humpback_ray.report.funnel import Manifests
from humpback_ray.stages.manifest import Manifest


@dataclass(frozen=True)
class ModelRow:
    """The result of a training."""

    model: str
    parameters: int | None
    examples: int | None
    steps: int
    losses: tuple[tuple[int, float], ...] = field(repr=False)
    """(step, loss), if recorded; the loss is in nats per output token."""
    first_rate: float | None
    last_rate: float | None
    output_tokens: int | None
    """Number of output tokens trained on, over all steps."""
    wall_s: float
    validation: tuple[tuple[int, float], ...] = field(default=(), repr=False)
    """(step, loss) on the held-out seed pairs, if measured."""
    tokens_per_s: float | None = None
    """Median over the steps, as are `mfu` and `padding_share`."""
    mfu: float | None = None
    padding_share: float | None = None
    memory_bytes: int | None = None
    """Maximum over the steps."""
    peak: str = ""
    """The peak that `mfu` is a share of, in words."""

    @property
    def first_loss(self) -> float | None:
        """Mean of the first tenth of the losses; None if none was recorded."""
        return _mean(self.losses[: _tenth(self.losses)])

    @property
    def last_loss(self) -> float | None:
        """Mean of the last tenth of the losses; None if none was recorded."""
        return _mean(self.losses[-_tenth(self.losses) :])


def _tenth(values: Sequence[Any]) -> int:
    return max(1, len(values) // 10)


def _mean(points: Sequence[tuple[int, float]]) -> float | None:
    return sum(loss for _, loss in points) / len(points) if points else None


def model_rows(manifests: Manifests) -> list[ModelRow]:
    """Return the result of each model's training, the base first."""
    return [_model_row(name, manifest) for name, manifest in models(manifests).items()]


def _model_row(name: str, manifest: Manifest) -> ModelRow:
    extra = manifest.extra
    steps: list[Mapping[str, Any]] = manifest.metrics().to_pylist() or [
        {"step": step, "loss": loss} for step, loss in extra.get("metrics") or []
    ]

    def known(column: str) -> list[Any]:
        return [step[column] for step in steps if step.get(column) is not None]

    def median(column: str) -> float | None:
        return statistics.median(known(column)) if known(column) else None

    applied = [step for step in steps if not step.get("skipped")]
    rates, examples = known("learning_rate"), extra.get("examples")
    return ModelRow(
        model=name,
        parameters=extra.get("parameters"),
        examples=examples.get("kept") if isinstance(examples, Mapping) else examples,
        steps=extra.get("steps") or max(known("step"), default=0),
        losses=tuple((step["step"], step["loss"]) for step in applied if step["loss"] is not None),
        first_rate=rates[0] if rates else None,
        last_rate=rates[-1] if rates else None,
        output_tokens=sum(known("output_tokens")) or None,
        wall_s=manifest.wall_s,
        validation=tuple((step["step"], loss) for step in steps if (loss := step.get("validation_loss")) is not None),
        tokens_per_s=median("tokens_per_s"),
        mfu=median("mfu"),
        padding_share=median("padding_share"),
        memory_bytes=max(known("memory_bytes"), default=None),
        peak=extra.get("peak") or "",
    )
