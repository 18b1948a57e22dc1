import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from humpback_ray.train.engine.losses import WINDOW_STEPS, problem, summed_cross_entropy
from humpback_ray.train.job import StepMetrics
from tests.benchmarks.memory import highest

if TYPE_CHECKING:
    import torch

TOKENS, VOCABULARY = 256, 16_384


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


def output_layer(
    dtype: str, cap: float | None = None
) -> "tuple[torch.Tensor, torch.Tensor, Callable[[], torch.Tensor]]":
    """Weights of an output layer, targets, and a function that computes logits, soft-capped as in Gemma 2."""
    import torch

    torch.manual_seed(0)
    weights = torch.randn(8, VOCABULARY).to(getattr(torch, dtype)).requires_grad_()
    hidden, targets = torch.randn(TOKENS, 8).to(weights.dtype), torch.randint(0, VOCABULARY, (TOKENS,))

    def logits() -> torch.Tensor:
        found = hidden @ weights
        return found if cap is None else torch.tanh(found / cap) * cap

    return weights, targets, logits


@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loss_and_gradient_are_those_of_pytorch_in_float32(dtype: str, cap: float | None) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    weights, targets, logits = output_layer(dtype, cap)
    expected = cross_entropy(logits().float(), targets, reduction="sum")
    (wanted,) = torch.autograd.grad(expected * 1e-3, weights)
    found = summed_cross_entropy(logits(), targets, 7 * VOCABULARY)
    (gradient,) = torch.autograd.grad(found * 1e-3, weights)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(gradient, wanted, rtol=1e-5 if dtype == "float32" else 1e-2, atol=1e-7)


def test_the_loss_of_a_confident_model_keeps_its_precision() -> None:
    import torch

    logits = torch.full((1, 4), 1000.0)
    logits[0, 0] = 1008.0
    assert summed_cross_entropy(logits, torch.tensor([0])).item() == pytest.approx(
        math.log1p(3 * math.exp(-8)), rel=1e-4
    )
    logits[0, 1] = math.nan
    assert math.isnan(summed_cross_entropy(logits, torch.tensor([0])).item())


def test_the_gradient_takes_the_place_of_the_logits() -> None:
    """At most the logits and two float32 copies of 16 of the 256 rows: no copy of all logits, in no format."""
    from torch.profiler import ProfilerActivity, profile

    _, targets, logits = output_layer("bfloat16")
    held, rows = 2 * TOKENS * VOCABULARY, 16
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        summed_cross_entropy(logits(), targets, rows * VOCABULARY).backward()
    assert highest(recorded) < held + 3 * 4 * rows * VOCABULARY < 1.5 * held


def test_logits_that_another_operation_needs_are_not_overwritten_silently() -> None:
    import torch

    needed = torch.zeros(2, 3, requires_grad=True).exp()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        summed_cross_entropy(needed, torch.tensor([0, 1])).backward()
