import math

import pytest

from humpback_ray.train.engine.losses import WINDOW_STEPS, problem
from humpback_ray.train.job import StepMetrics


def history(*losses: float, skipped: bool = False) -> list[StepMetrics]:
    return [StepMetrics(step, loss, 1e-5, 1.0, 10, 4, 0.1, skipped) for step, loss in enumerate(losses, start=1)]


CALM = history(*[2.0] * WINDOW_STEPS)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_non_finite_loss_is_always_bad(loss: float) -> None:
    assert problem(loss, [], None) == f"its loss is {loss}"


def test_a_spike_is_measured_against_the_median_of_the_steps_before() -> None:
    assert problem(6.1, CALM, 3.0) == (
        "its loss 6.1 is 3.05 times the median 2 of the 20 steps before (spike_factor 3)"
    )
    assert problem(6.0, CALM, 3.0) is None
    assert problem(1e9, CALM, None) is None
    assert problem(6.1, history(*[9.0] * 50) + CALM, 3.0) is not None


def test_without_enough_steps_no_loss_is_a_spike_and_skipped_steps_do_not_count() -> None:
    assert problem(1e9, CALM[1:], 3.0) is None
    assert problem(1e9, CALM[1:] + history(50.0, 60.0, skipped=True), 3.0) is None
    assert problem(6.1, CALM + history(*[90.0] * 30, skipped=True), 3.0) is not None
