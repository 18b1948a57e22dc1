"""The loss of a micro-batch, and which losses no update should follow: no number, or far above those before."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from humpback_ray.train.data.examples import Example
from humpback_ray.train.engine.attention import Layout, logits_of
from humpback_ray.train.job import StepMetrics

LOGITS_AT_ONCE = 1 << 26
"""Logits of which the loss is taken at once: 256 MB in float32."""
WINDOW_STEPS = 20
"""Steps whose median a loss is compared with; before so many were taken there is no telling."""


def problem(loss: float, history: Sequence[StepMetrics], spike_factor: float | None) -> str | None:
    """Say what is wrong with a step's mean loss, given the steps before it; None if nothing is."""
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


def summed_loss(model: Any, examples: Sequence[Example], layout: Layout, device: Any) -> Any:
    """Sum the cross-entropy over a micro-batch's output tokens, float32 scalar; 0 (with a graph) if it is empty."""
    logits, targets = logits_of(model, examples, layout, device)
    return summed_cross_entropy(logits, targets) if examples else logits.float().sum() * 0.0


def summed_cross_entropy(logits: Any, targets: Any, at_once: int = LOGITS_AT_ONCE) -> Any:
    """Sum the cross-entropy of logits [N, V] and targets [N] in float32.

    Logits become float32 a few rows at a time, and once more in the backward pass: a vocabulary of 128,000 would take
    two gigabytes for 4,096 tokens, several times over.
    """
    from torch.nn.functional import cross_entropy
    from torch.utils.checkpoint import checkpoint

    def part(some: Any, wanted: Any) -> Any:
        return cross_entropy(some.float(), wanted, reduction="sum")

    if logits.numel() <= at_once:
        return part(logits, targets)
    rows = max(at_once // logits.shape[1], 1)
    parts = zip(logits.split(rows), targets.split(rows), strict=True)
    return sum(checkpoint(part, some, wanted, use_reentrant=False) for some, wanted in parts)
