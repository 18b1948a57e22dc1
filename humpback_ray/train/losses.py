"""Which losses no update should follow: one that is no number, or one far above those before it."""

import math
import statistics
from collections.abc import Sequence

from humpback_ray.train.job import StepMetrics

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
