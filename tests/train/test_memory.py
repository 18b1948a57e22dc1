"""The memory plan: laws of its figures, and two layouts against measured allocations."""

from dataclasses import replace
from pathlib import Path

import pytest

from humpback_ray.train.memory import Layout, activations, memory
from humpback_ray.train.sizes import SIZES
from tests.benchmarks.memory import Case, measure, planned

SEVEN = SIZES["llama-7b"]


def test_the_state_of_a_parameter_is_sixteen_to_eighteen_bytes_and_is_divided_by_stage() -> None:
    """Rajbhandari et al. 2020 (arXiv:1910.02054), section 3.1, with gradients in float32, stage 1 in bfloat16 too."""
    for workers in (1, 8):
        for stage, parts in {1: (2, 6, 12 / workers), 2: (2, 4 / workers, 12 / workers)}.items():
            found = memory(SEVEN, Layout(workers, stage))  # pyright: ignore[reportArgumentType]
            assert found.parameters == pytest.approx(parts[0] * SEVEN.parameters, rel=1e-3)
            assert found.gradients == pytest.approx(parts[1] * SEVEN.parameters, rel=1e-3)
            assert found.optimizer == pytest.approx(parts[2] * SEVEN.parameters, rel=1e-3)
    assert memory(SEVEN, Layout(8, 3)).parameters == pytest.approx(2 * SEVEN.parameters / 8, rel=1e-2)


def test_offloaded_state_is_on_the_host_and_nowhere_else() -> None:
    layout = Layout(4, 3, checkpointing=True)
    here = memory(SEVEN, layout)
    away = memory(SEVEN, replace(layout, offload_optimizer=True, offload_parameters=True))
    assert away.optimizer == 0
    assert away.parameters < 0.001 * here.parameters + 10_000_000
    assert away.host >= here.optimizer + here.gradients
    assert away.peak < here.peak / 3


def test_checkpointing_keeps_a_layers_input_instead_of_its_activations() -> None:
    layout = Layout(8, 2)
    kept = activations(SEVEN, replace(layout, checkpointing=True))
    assert 2 * SEVEN.hidden * SEVEN.layers * layout.micro_batch_tokens < kept < activations(SEVEN, layout) / 15


def test_memory_grows_with_tokens_and_shrinks_with_workers_and_higher_stages() -> None:
    peaks = [memory(SEVEN, Layout(8, stage)).peak for stage in (1, 2, 3)]  # pyright: ignore[reportArgumentType]
    assert peaks == sorted(peaks, reverse=True)
    assert memory(SEVEN, Layout(16, 2)).peak < memory(SEVEN, Layout(8, 2)).peak
    less, more = (memory(SEVEN, Layout(8, 2, micro_batch_tokens=n)) for n in (1000, 2000))
    assert more.activations == 2 * less.activations
    assert more.logits == 2 * less.logits


@pytest.mark.parametrize("case", [Case("3m", 2, 2), Case("3m", 2, 3, "bfloat16", checkpointing=True)])
def test_the_plan_is_within_a_tenth_of_what_a_small_model_allocates(case: Case, tmp_path: Path) -> None:
    found = measure(case, tmp_path)
    assert planned(case, tmp_path / case.model).peak == pytest.approx(found.peak, rel=0.1)
