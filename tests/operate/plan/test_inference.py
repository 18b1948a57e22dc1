"""The roofline model of engines."""

from dataclasses import replace

import pytest

from humpback_ray.engines import EchoEngine, TransformersEngine, VllmEngine
from humpback_ray.operate.plan.inference import USED_ROWS, RowWork, Writer, row_s, weights_fit
from humpback_ray.placement import PoolPlacement
from humpback_ray.rates import GB, PlanConfig
from humpback_ray.train.sizes import SIZES

SEVEN, LARGE, RATES = SIZES["llama-7b"], SIZES["llama-65b"], PlanConfig()
H100 = RATES.known["H100-80G"]
VLLM = Writer("vllm", rows=256)
FLOPS = H100.peak_flops * RATES.prefill_mfu


def test_reading_is_two_flops_per_parameter_and_token_at_the_share_of_the_peak() -> None:
    seconds = row_s(SEVEN, 1, True, 2, RowWork(500), RATES, VLLM)
    floor = 2 * SEVEN.parameters * 500 / FLOPS
    assert 0.95 * floor < seconds < 1.1 * floor


def test_writing_takes_longer_than_reading_and_is_shared_by_replies_at_once() -> None:
    read, one, three = (
        row_s(SEVEN, 1, True, 2, work, RATES, VLLM) for work in (RowWork(500), RowWork(500, 100), RowWork(500, 100, 3))
    )
    assert read < one < three < 3 * one
    alone = row_s(SEVEN, 1, True, 2, RowWork(500, 100), RATES, Writer("vllm", rows=1))
    assert alone > 20 * one


def test_two_gpus_take_half_the_time_of_vllm_and_a_core_takes_forever() -> None:
    work = RowWork(500, 100)
    assert row_s(SEVEN, 2, True, 2, work, RATES, VLLM) < 0.6 * row_s(SEVEN, 1, True, 2, work, RATES, VLLM)
    assert row_s(SEVEN, 1, False, 4, work, RATES) > 1000 * row_s(SEVEN, 1, True, 2, work, RATES)


def test_the_transformers_engine_uses_one_gpu_after_the_other() -> None:
    assert row_s(SEVEN, 2, True, 2, RowWork(500), RATES) == row_s(SEVEN, 1, True, 2, RowWork(500), RATES)
    half, whole = (row_s(SEVEN, gpus, True, 2, RowWork(500), RATES) for gpus in (0.5, 1))
    assert half == 2 * whole


def test_starting_kernels_from_python_sets_the_pace_of_a_small_model() -> None:
    """A 1B's 16 layers at 1 ms each: 128 rows, seven eighths in use, take 16 ms for a token each."""
    small, work = SIZES["llama-3.2-1b"], RowWork(100, 80)
    writing = row_s(small, 1, True, 2, work, RATES) - row_s(small, 1, True, 2, replace(work, reply_tokens=1), RATES)
    assert 80 / writing == pytest.approx(USED_ROWS * 128 / 0.016)
    free = row_s(small, 1, True, 2, work, PlanConfig(launch_s=0))
    assert row_s(small, 1, True, 2, work, RATES, Writer("vllm", 112)) == pytest.approx(free, rel=0.02)


def test_the_transformers_engine_keeps_room_for_the_longest_reply() -> None:
    """65,536 tokens hold 128 rows of 431 + 81, or 32 of 431 + 1,617."""
    short, long = (
        row_s(SEVEN, 1, True, 2, RowWork(431, 81, most_reply_tokens=most), RATES)
        - row_s(SEVEN, 1, True, 2, RowWork(431), RATES)
        for most in (81, 1617)
    )
    assert long == pytest.approx(4 * short, rel=1e-6)


def test_vllm_reads_a_prompt_once_for_its_samples_and_the_rubric_once_for_all() -> None:
    """Of 900 tokens 300 are the rubric; our engine reads the other 600 for each of three samples."""
    rated = RowWork(900, shared_tokens=300, replies=3)
    own = SEVEN.forward_flops(600, 600, logits=1)
    assert row_s(SEVEN, 1, True, 2, rated, RATES, VLLM) == pytest.approx(own / FLOPS)
    assert row_s(SEVEN, 1, True, 2, rated, RATES) == pytest.approx(3 * own / FLOPS)
    assert row_s(SEVEN, 1, True, 2, replace(rated, replies=1), RATES) == pytest.approx(own / FLOPS)
    again = replace(rated, replies=1, reply_tokens=100, read_again=True)
    once = replace(again, read_again=False)
    extra = row_s(SEVEN, 1, True, 2, again, RATES) - row_s(SEVEN, 1, True, 2, once, RATES)
    assert extra == pytest.approx(SEVEN.forward_flops(700, 600, logits=1) / FLOPS)
    assert row_s(SEVEN, 1, True, 2, again, RATES, VLLM) == row_s(SEVEN, 1, True, 2, once, RATES, VLLM)


def test_an_engine_is_described_by_its_kind_its_placement_and_its_machine() -> None:
    a100, placement = RATES.known["A100-80G"], PoolPlacement(gpus_per_replica=1, batch_rows=64, batch_tokens=9)
    assert Writer.of(VllmEngine(), placement, "H100-80G", H100).rows == 1024
    assert Writer.of(VllmEngine(), placement, "A100-80G", a100).rows == 256
    assert Writer.of(VllmEngine(), PoolPlacement(), "cpu", RATES.known["cpu"]).rows == 128
    set_by_hand = PoolPlacement(gpus_per_replica=1, max_num_seqs=7, cache_bytes=GB)
    assert Writer.of(VllmEngine(), set_by_hand, "H100-80G", H100) == Writer("vllm", 7, cache_bytes=GB)
    assert Writer.of(TransformersEngine(), placement, "H100-80G", H100) == Writer("transformers", 64, 9)
    assert Writer.of(EchoEngine(), placement, "H100-80G", H100).kind == "echo"


def test_a_small_cache_holds_few_replies() -> None:
    work = RowWork(500, 100)
    few = row_s(SEVEN, 1, True, 2, work, RATES, replace(VLLM, cache_bytes=2 * 2 * SEVEN.kv_elements * 550))
    two = row_s(SEVEN, 1, True, 2, work, RATES, Writer("vllm", rows=2))
    assert few == pytest.approx(two)


@pytest.mark.parametrize(
    ("size", "machine", "gpus", "prompt", "reply", "published"),
    [
        ("llama-7b", "A100-80G", 1, 231, 250, 15.6),  # vLLM 0.4.3, ShareGPT (vllm-project/vllm, pull request 5046)
        ("llama-3.1-70b", "A100-80G", 4, 231, 250, 10.2),  # the same
        ("llama-3.1-8b", "H100-80G", 1, 128, 128, 12_500 / 128),  # morphllm.com/vllm-benchmarks, April 2026
    ],
)
def test_published_speeds_of_vllm_are_met_within_a_factor_of_one_and_a_half(
    size: str, machine: str, gpus: int, prompt: int, reply: int, published: float
) -> None:
    rates = PlanConfig(machine=machine)
    writer = Writer.of(VllmEngine(), PoolPlacement(gpus_per_replica=gpus), machine, rates.known[machine])
    planned = 1 / row_s(SIZES[size], gpus, True, 2, RowWork(prompt, reply), rates, writer)
    assert published / 1.5 < planned < 1.5 * published


def test_weights_need_room_for_keys_and_values_beside_them() -> None:
    assert weights_fit(14 * GB, 1, RATES)
    assert not weights_fit(2 * LARGE.parameters, 2, RATES) or 2 * LARGE.parameters < 0.85 * 2 * 78 * GB
    assert not weights_fit(2 * LARGE.parameters, 1, RATES)
    assert weights_fit(2 * LARGE.parameters, 4, RATES)
