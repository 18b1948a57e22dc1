"""The loss of a micro-batch, and the losses after which no update is applied: non-finite ones and spikes."""

import functools
import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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

    A vocabulary of 128,000 takes 2 GB in float32 for 4,096 tokens, so logits are converted a few rows at a time, again
    in the backward pass. Their gradient, also computed in float32, is written over the logits themselves. PyTorch
    refuses that if another operation needs the logits again; none does in transformers' models, soft caps included.
    """
    return _loss().apply(logits, targets, max(at_once // logits.shape[1], 1))


@functools.cache
def _loss() -> Any:
    """Return `summed_cross_entropy` of logits, targets and rows at once, as a differentiable function."""
    import torch

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: "torch.Tensor", targets: "torch.Tensor", rows: int) -> "torch.Tensor":
            highest_N1 = logits.amax(1, keepdim=True).float()
            parts = zip(logits.split(rows), highest_N1.split(rows), strict=True)
            sums = [(part - highest).exp_().sum(1, keepdim=True) for part, highest in parts]
            log_sums_N1 = torch.cat(sums).log_()
            ctx.rows = rows
            ctx.save_for_backward(logits, targets, highest_N1 + log_sums_N1)
            return (log_sums_N1 - (logits.gather(1, targets[:, None]) - highest_N1)).sum()

        @staticmethod
        def backward(ctx: Any, *gradients: "torch.Tensor") -> tuple["torch.Tensor", None, None]:
            logits, targets, norms_N1 = ctx.saved_tensors
            parts = (tensor.split(ctx.rows) for tensor in (logits, targets[:, None], norms_N1))
            for part, wanted_R1, norms_R1 in zip(*parts, strict=True):
                values = part.float().sub_(norms_R1).exp_()
                values.scatter_add_(1, wanted_R1, -torch.ones_like(norms_R1))
                part.copy_(values.mul_(gradients[0]))
            return logits, None, None

    return Loss
