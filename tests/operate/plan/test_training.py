"""Steps on n GPUs: traffic, whole examples, and the sensible number of GPUs."""

import math
from dataclasses import replace

import pytest

from humpback_ray.operate.plan.training import Batch, choose, counts, ring_s, smallest, step, steps, traffic
from humpback_ray.rates import MACHINES, PlanConfig
from humpback_ray.train.memory import Layout
from humpback_ray.train.sizes import SIZES

PAPER = Batch(examples=32, mean=440, deviation=160, limit=2048)
LARGE = SIZES["llama-65b"]
ZERO3 = Layout(workers=32, stage=3, checkpointing=True)


def test_the_papers_batch_is_fourteen_thousand_tokens() -> None:
    assert PAPER.tokens == pytest.approx(14_000, rel=0.01)


def test_an_example_is_whole_so_a_worker_never_has_less_than_the_longest() -> None:
    assert PAPER.busiest(1) == PAPER.tokens
    assert PAPER.busiest(8) == PAPER.tokens / 8
    assert PAPER.busiest(64) == PAPER.busiest(128) == PAPER.longest > PAPER.tokens / 32
    assert PAPER.mean < PAPER.longest < PAPER.limit


def test_zero_3_gathers_the_weights_twice_and_reduces_gradients_once_per_micro_batch() -> None:
    weights = 2 * LARGE.parameters
    assert traffic(LARGE, ZERO3, 1)[0] == 3 * weights * 31 / 32
    assert traffic(LARGE, ZERO3, 2)[0] == 2 * traffic(LARGE, ZERO3, 1)[0]
    assert traffic(LARGE, replace(ZERO3, workers=1), 1)[0] == 0
    assert traffic(LARGE, replace(ZERO3, stage=2), 1)[0] == traffic(LARGE, ZERO3, 1)[0]
    assert traffic(LARGE, replace(ZERO3, stage=2), 2)[0] < traffic(LARGE, ZERO3, 2)[0]


def test_between_nodes_the_network_decides() -> None:
    rates, machine = PlanConfig(), MACHINES["A100-80G"]
    inside, outside = ring_s(1e12, 8, machine, rates), ring_s(1e12, 16, machine, rates)
    assert outside / inside == machine.link_bytes_per_s / machine.network_bytes_per_s
    assert ring_s(1e12, 1, machine, rates) == 0


def test_a_step_of_65b_on_64_gpus_is_bound_by_traffic_and_no_faster_than_on_32() -> None:
    for machine in ("A100-80G", "H100-80G"):
        found = {one.workers: one for one in steps(LARGE, ZERO3, PAPER, PlanConfig(machine=machine))}
        assert found[64].traffic_s > 2 * found[64].compute_s
        assert found[64].seconds >= found[32].seconds
        assert found[64].worker_seconds > 1.9 * found[32].worker_seconds
        chosen, least = choose(found.values()), smallest(found.values())
        assert chosen is not None
        assert least is not None
        assert (chosen.workers, least.workers) == (32, 32)


def test_more_gpus_are_sensible_while_they_save_enough() -> None:
    found = steps(SIZES["llama-7b"], Layout(1, 2), PAPER, PlanConfig())
    chosen, least = choose(found), smallest(found)
    assert chosen is not None
    assert least is not None
    assert least.workers < chosen.workers == 8
    by_number = {one.workers: one for one in found}
    assert by_number[8].seconds < 0.71 * by_number[4].seconds
    assert by_number[16].seconds > 0.71 * by_number[8].seconds


def test_nothing_fits_if_even_one_layer_does_not() -> None:
    tiny = PlanConfig.model_validate({"machines": {"H100-80G": {"memory_bytes": 10**9}}})
    found = steps(LARGE, ZERO3, PAPER, tiny)
    assert smallest(found) is choose(found) is None


def test_zero_3_sends_matrices_larger_than_its_buckets_one_by_one() -> None:
    """65B: 80 layers of 7 matrices, and the embedding and output matrix; of 7B, every bucket holds several."""
    assert traffic(LARGE, ZERO3, 1)[1] == 3 * 562
    assert traffic(SIZES["llama-7b"], ZERO3, 1)[1] == 3 * 135
    assert traffic(LARGE, replace(ZERO3, stage=2), 1)[1] == 2 * 1306


@pytest.mark.parametrize(
    ("workers", "milliseconds"),
    [
        (16, 0.825),
        (32, 1.133),
        (64, 1.690),
    ],  # crazyguitar/aws-gpu-communication-benchmark, nccl_all_reduce.csv, 128 MiB
)
def test_published_times_of_nccl_on_p5_nodes_are_met(workers: int, milliseconds: float) -> None:
    sent, rates = 2 * 134.2e6 * (workers - 1) / workers, PlanConfig()
    planned = ring_s(sent, workers, MACHINES["H100-80G"], rates) + rates.message_s * math.log2(workers)
    assert 1 / 1.4 < 1000 * planned / milliseconds < 1.4


LARGE_BATCH = Layout(64, 3, micro_batch_tokens=16_384, checkpointing=True)
SMALL_BATCH = Layout(32, 3, micro_batch_tokens=4096, checkpointing=True)
FOUNDRY, GIST = "mosaicml/llm-foundry, scripts/train/benchmarking", "gist chenyaofo/d4cd6a20, DeepSpeed 0.14 on A800s"


@pytest.mark.parametrize(
    ("source", "size", "machine", "layout", "examples", "length", "tokens_per_s"),
    [
        (FOUNDRY, "llama-65b", "H100-80G", LARGE_BATCH, 2048, 2048, 66_523),
        (FOUNDRY, "llama-65b", "H100-80G", SMALL_BATCH, 1024, 2048, 28_242),
        (FOUNDRY, "llama-13b", "H100-80G", Layout(16, 3, micro_batch_tokens=4096), 32, 2048, 76_280),
        (FOUNDRY, "llama-7b", "H100-80G", Layout(8, 3, micro_batch_tokens=12_288), 48, 2048, 85_144),
        (GIST, "llama-7b", "A100-80G", Layout(8, 2, micro_batch_tokens=4096), 64, 4096, 21_832),
        (GIST, "llama-7b", "A100-80G", Layout(8, 2, micro_batch_tokens=4096, checkpointing=True), 64, 4096, 17_162),
        (GIST, "llama-7b", "A100-80G", Layout(8, 3, micro_batch_tokens=8192, checkpointing=True), 64, 4096, 18_227),
    ],
)  # fmt: skip
def test_published_trainings_are_met_within_a_factor_of_one_and_a_half(
    source: str, size: str, machine: str, layout: Layout, examples: int, length: int, tokens_per_s: float
) -> None:
    batch = Batch(examples, length, 0, length)
    planned = batch.tokens / step(SIZES[size], layout, batch, PlanConfig(machine=machine)).seconds
    assert tokens_per_s / 1.5 < planned < 1.5 * tokens_per_s, source


def test_a_host_must_hold_the_offloaded_state() -> None:
    away = replace(ZERO3, workers=4, offload_optimizer=True, offload_parameters=True)
    small, large = (
        PlanConfig.model_validate({"machines": {"H100-80G": {"host_bytes": gib << 30}}}) for gib in (128, 1024)
    )
    assert not step(LARGE, away, PAPER, small).fits
    assert step(LARGE, away, PAPER, large).fits


def test_nodes_are_filled_before_another_is_taken() -> None:
    assert counts(MACHINES["H200"], 40) == [1, 2, 4, 8, 16, 32]
    assert counts(MACHINES["L40S"], 8) == [1, 2, 4, 8]
