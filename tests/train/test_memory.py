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


def test_buffers_on_the_host_are_those_that_deepspeed_makes() -> None:
    """One worker of 7B under ZeRO 2: weights 4, gradients 4, moments 8 and the new weights 2 bytes per parameter, and
    room for the largest gradient, 131 million elements of the embedding. ZeRO 3: weights 4, moments 8, and gradients
    twice, 4 each. Its offloaded weights: 2, and at first a buffer per parameter."""
    count = SEVEN.parameters
    offloaded = Layout(1, 2, offload_optimizer=True)
    assert memory(SEVEN, offloaded).host == 18 * count + 2 * 32_000 * 4096
    assert memory(SEVEN, replace(offloaded, stage=3)).host == 20 * count
    everything = Layout(8, 3, offload_optimizer=True, offload_parameters=True)
    owned = count // 8
    attention, feed = 2 * 4096 * 4096 // 8, 2 * 4096 * 11008 // 8  # 4 MiB; 10.75 MiB, rounded up to 16 if pinned
    assert attention == 4 << 20
    assert feed < 16 << 20
    embedding = 2 * 32_000 * 4096 // 8  # 31.25 MiB, rounded up to 32
    parts = 32 * (4 * attention + 3 * (16 << 20)) + 2 * (32 << 20)
    assert embedding < 32 << 20
    assert memory(SEVEN, everything).host == 22 * owned + parts
    assert memory(SEVEN, replace(everything, gpu=False)).host == 22 * owned, "on a CPU nothing is pinned"


def test_a_large_pinned_buffer_takes_its_own_size() -> None:
    """PyTorch alone would make 34.4 of the 27 GB of master weights, of gradients, and 17.2 of the 13.5 of weights."""
    held = memory(SEVEN, Layout(1, 2, offload_optimizer=True)).host
    assert held < 1.01 * 18 * SEVEN.parameters < 18 * SEVEN.parameters + 2 * (1 << 35) - 2 * 4 * SEVEN.parameters


def test_a_checkpoints_copy_is_twelve_bytes_of_each_parameter_and_a_file() -> None:
    for stage in (0, 2, 3):
        assert memory(SEVEN, Layout(8, stage)).checkpoint == 12 * SEVEN.parameters // 8 + (1 << 30)
    small = SIZES["qwen3-0.6b"]
    assert memory(small, Layout(16, 1)).checkpoint == 2 * 12 * -(-small.parameters // 16), "smaller than a file"


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
