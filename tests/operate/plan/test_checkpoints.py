"""Seconds and bytes of checkpoints, and the start and end of a stage, by hand."""

from dataclasses import replace

import pytest

from humpback_ray.operate.plan.checkpoints import checkpoints
from humpback_ray.operate.plan.starting import export_s, start_s
from humpback_ray.operate.plan.training import Batch, Step, step
from humpback_ray.placement import TrainPlacement
from humpback_ray.rates import PlanConfig
from humpback_ray.train.memory import Layout
from humpback_ray.train.sizes import SIZES

LARGE, RATES = SIZES["llama-65b"], PlanConfig()
MACHINE = RATES.known["H100-80G"]
PLACEMENT = TrainPlacement(workers=32, gpus_per_worker=1, zero_stage=3)
S3 = "s3://bucket/run"


def of(seconds: float, workers: int = 32) -> Step:
    """A step of 65B that takes this long."""
    made = step(LARGE, Layout(workers, 3, checkpointing=True), Batch(32, 440, 160, 2048), RATES)
    return replace(made, seconds=seconds)


def test_a_checkpoint_of_65b_is_783_gb_and_each_worker_stores_its_part() -> None:
    found = checkpoints(LARGE, PLACEMENT, 500, of(2.5), S3, MACHINE, RATES)
    assert found.bytes == 12 * LARGE.parameters
    assert round(found.bytes / 1e9) == 783
    assert found.kept_bytes == 2 * found.bytes
    assert found.node_copy_bytes == 8 * (found.bytes // 32 + (1 << 30))
    assert found.copy_s == pytest.approx(783.43e9 / 32 / 4e9, rel=1e-4)  # 6 s
    assert found.store_s == pytest.approx(783.43e9 / 32 / 0.3e9, rel=1e-4)  # 82 s: eight send 2.4 of 2.5 GB/s
    assert (found.count, found.apart_s) == (5, 250)
    assert found.stall_s == found.copy_s
    assert found.seconds == pytest.approx(5 * found.copy_s + found.store_s)


def test_training_waits_for_storage_that_is_slower_than_the_steps_between_two() -> None:
    found = checkpoints(LARGE, PLACEMENT, 500, of(0.5), S3, MACHINE, RATES)
    assert found.stall_s == pytest.approx(found.copy_s + found.store_s - 50)
    assert found.seconds == pytest.approx(5 * found.copy_s + 4 * (found.store_s - 50) + found.store_s)
    on_disk = checkpoints(LARGE, PLACEMENT, 500, of(0.5), "/shared/run", MACHINE, RATES)
    assert on_disk.store_s == pytest.approx(783.43e9 / 4 / 2e9, rel=1e-4), "a node's eight workers share its disk"
    narrow = PlanConfig(node_storage_bytes_per_s=0.8e9)
    assert checkpoints(LARGE, PLACEMENT, 500, of(0.5), S3, MACHINE, narrow).store_s == pytest.approx(3 * found.store_s)


def test_minutes_and_the_end_of_training_limit_the_steps_between_two() -> None:
    slow = checkpoints(LARGE, PLACEMENT, 500, of(60), S3, MACHINE, RATES)
    assert (slow.count, slow.apart_s) == (34, 15 * 60)
    by_steps = PLACEMENT.model_copy(update={"checkpoint_every_minutes": None})
    assert checkpoints(LARGE, by_steps, 500, of(60), S3, MACHINE, RATES).count == 5
    once = checkpoints(LARGE, PLACEMENT, 30, of(1), S3, MACHINE, RATES)
    assert (once.count, once.kept_bytes) == (1, once.bytes)


def test_the_start_reads_the_weights_and_the_export_writes_reads_and_loads_them() -> None:
    """100 GB: 50 s from a disk, and before that 333 s from S3 by one process of each node."""
    assert start_s(100e9, "/models/base", RATES) == pytest.approx(120 + 50)
    assert start_s(100e9, S3, RATES) == pytest.approx(120 + 50 + 1000 / 3)
    assert start_s(100e9, "/models/base", RATES, "vllm") == pytest.approx(120 + 50 + 90)
    assert start_s(100e9, "/models/base", RATES, "transformers") == pytest.approx(120 + 50)
    assert start_s(100e9, S3, RATES, "echo") == 120
    assert export_s(100e9, "/run", RATES) == pytest.approx(25 + 50 + 50 + 50)
    assert export_s(100e9, S3, RATES) == pytest.approx(1000 / 3 + 50), "files are stored while others are written"
