"""The loss of a micro-batch, and the losses after which no update is applied: non-finite ones and spikes."""

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from humpback_ray.train.data.examples import Example
from humpback_ray.train.engine.attention import Batching, logits_of
from humpback_ray.train.engine.exhausted import doing
from humpback_ray.train.job import StepMetrics
from humpback_ray.train.types import Causal, TrainingEngine

if TYPE_CHECKING:
    import torch

LOGITS_AT_ONCE = 1 << 26
"""Number of logits whose loss is computed at once: 256 MB in float32."""
WINDOW_STEPS = 20
"""Number of steps whose median a loss is compared with; until then, no loss counts as a spike."""


def problem(loss: float, history: Sequence[StepMetrics], spike_factor: float | None) -> str | None:
    """Say what is wrong with a step's mean loss, given the steps before it; None if it is fine."""
    if not math.isfinite(loss):
        return f"its loss is {loss}"
    last = [row.loss for row in history if not row.skipped][-WINDOW_STEPS:]
    if spike_factor is None or len(last) < WINDOW_STEPS:
        return None
    usual = statistics.median(last)
    if loss <= spike_factor * usual:
        return None
    return (
        f"its loss {loss:.4g} is {loss / usual:.3g} times the median {usual:.4g} of the {WINDOW_STEPS} steps before "
        f"(spike_factor {spike_factor:g})"
    )


def accumulate(
    engine: TrainingEngine, micros: Sequence[Sequence[Example]], batching: Batching, scale: float
) -> tuple[float, "torch.Tensor"]:
    """Run the forward pass of a step's micro-batches, and the backward pass of all but the last, scaled by `scale`.

    Returns:
        The sum of the losses, and the loss of the last one, a float32 scalar; its backward pass ends the step.
    """
    import torch

    *others, last = micros
    summed = torch.zeros((), dtype=torch.float64, device=engine.device)
    engine.set_gradient_accumulation_boundary(False)
    for micro in others:
        with doing(micro=micro):
            loss = summed_loss(engine, micro, batching, engine.device)
            summed += loss.detach()
            engine.backward(loss * scale)
    engine.set_gradient_accumulation_boundary(True)
    with doing(micro=last):
        loss = summed_loss(engine, last, batching, engine.device)
        return (summed + loss.detach()).item(), loss


def measured(engine: TrainingEngine, micros: Sequence[Sequence[Example]], batching: Batching) -> float:
    """Sum the losses of micro-batches without dropout and without gradients."""
    import torch

    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    engine.eval()
    with torch.no_grad():
        for micro in micros:
            with doing(micro=micro):
                total += summed_loss(engine, micro, batching, engine.device)
    engine.train()
    return total.item()


def summed_loss(
    model: Causal, examples: Sequence[Example], batching: Batching, device: "torch.device | str"
) -> "torch.Tensor":
    """Return the summed cross-entropy of a micro-batch's output tokens, float32; 0 (with a graph) if it is empty."""
    logits, targets = logits_of(model, examples, batching, device)
    return summed_cross_entropy(logits, targets) if examples else logits.float().sum() * 0.0


def summed_cross_entropy(
    logits: "torch.Tensor", targets: "torch.Tensor", at_once: int = LOGITS_AT_ONCE
) -> "torch.Tensor":
    """Return the summed cross-entropy of logits [N, V] and targets [N], in float32.

    Logits are converted to float32 a few rows at a time, and again in the backward pass: a vocabulary of 128,000 would
    otherwise take two gigabytes for 4,096 tokens, several times.
    """
    import torch
    from torch.nn.functional import cross_entropy
    from torch.utils.checkpoint import checkpoint

    def part(some: "torch.Tensor", wanted: "torch.Tensor") -> "torch.Tensor":
        return cross_entropy(some.float(), wanted, reduction="sum")

    if logits.numel() <= at_once:
        return part(logits, targets)
    rows = max(at_once // logits.shape[1], 1)
    parts = zip(logits.split(rows), targets.split(rows), strict=True)
    total = sum(checkpoint(part, some, wanted, use_reentrant=False) for some, wanted in parts)
    assert isinstance(total, torch.Tensor)
    return total
