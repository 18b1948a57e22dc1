"""Impossible placements are refused with the fix; their values reach Ray's own arguments."""

import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from humpback_ray.config import ConfigError, load
from humpback_ray.engines.vllm import step_limits
from humpback_ray.placement import LEAST_SHARE, PoolPlacement, TaskPlacement, TrainPlacement
from humpback_ray.runconfig import RunConfig

DEMO = Path(__file__).parents[1] / "configs/demo.yaml"
SPOT = {"ray.io/market-type": "spot"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_replicas": 4, "max_replicas": 2}, "max_replicas 2 is less than min_replicas 4; raise the first"),
        ({"gpus_per_replica": 1.5}, "gpus_per_replica is 1.5, but .* set it to 1 or 2"),
        ({"gpus_per_replica": 0.00005}, "is 5e-05, but Ray reserves at least 0.0001 of a GPU; set it to 0 or"),
        ({"cpus_per_replica": 0.00005}, "greater than or equal to 0.0001"),
        ({"cpus_per_replica": 0}, "greater than or equal to 0.0001"),
        ({"labels": {"ray.io/market type": "spot"}}, "labels"),
        ({"labels": {"ray.io/market-type": "=spot"}}, "labels"),
        ({"replicas": 2}, "Extra inputs"),
    ],
)
def test_an_impossible_pool_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PoolPlacement(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gpus_per_worker": 0.5}, "is 0.5 and workers is 1, .* a whole GPU .* workers to 1, or .* to 0"),
        ({"gpus_per_worker": 1.5}, "is 1.5 and workers is 1, .* set gpus_per_worker to 1 and workers to 2"),
        ({"gpus_per_worker": 2, "workers": 4}, "is 2 and workers is 4, .* set gpus_per_worker to 1 and workers to 8"),
        ({"gpus_per_worker": 8, "workers": (1, 4)}, r"is 8 and workers is \(1, 4\), .* workers to \[8, 32\]"),
        ({"gpus_per_worker": -1}, "greater than or equal to 0"),
        ({"gpus_per_worker": math.nan}, "finite number"),
        ({"gpus_per_worker": math.inf}, "finite number"),
        ({"cpus_per_worker": 0}, "greater than or equal to 0.0001"),
        ({"cpus_per_worker": math.inf}, "finite number"),
        ({"workers": 0}, "greater than or equal to 1"),
        ({"workers": (0, 4)}, "greater than or equal to 1"),
        ({"workers": (4, 2)}, r"workers is \[4, 2\], but the minimum comes first"),
        ({"workers": 1.5}, "workers"),
        ({"micro_batch_tokens": 0}, "greater than or equal to 1"),
        ({"micro_batch_tokens": 0.5}, "valid integer"),
        ({"give_up_waiting_minutes": 0}, "greater than 0"),
        ({"give_up_waiting_minutes": math.inf}, "finite number"),
        ({"checkpoint_every_minutes": math.nan}, "finite number"),
        ({"resize_every_s": -1}, "greater than 0"),
        ({"max_failures": -1}, "greater than or equal to 0"),
    ],
)
def test_an_impossible_training_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainPlacement(**values)


@pytest.mark.parametrize("given", ["true", "'many'", "'1.5'"])
def test_a_configuration_takes_only_plain_numbers_of_gpus(given: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.placement"):
        load(RunConfig, DEMO, [f"train.placement.gpus_per_worker={given}"])


def test_ray_takes_the_smallest_shares_that_a_placement_takes() -> None:
    import ray

    least = PoolPlacement(cpus_per_replica=LEAST_SHARE, gpus_per_replica=LEAST_SHARE).map_arguments()
    resources = {name: least[name] for name in ("num_cpus", "num_gpus")}
    assert ray.remote(lambda: None).options(**resources)
    with pytest.raises(ValueError, match="cannot go beyond"):
        ray.remote(lambda: None).options(num_cpus=LEAST_SHARE / 2)


@pytest.mark.parametrize("value", ["spot", "!spot", "in(us-1a, us-1b)", "!in(us-1a,us-1b)"])
def test_labels_are_those_that_ray_takes(value: str) -> None:
    from ray._private.label_utils import validate_label_selector

    labels = {"ray.io/market-type": value}
    assert validate_label_selector(labels) is None
    assert PoolPlacement(labels=labels).labels == labels


def test_labels_reach_pools_tasks_and_training() -> None:
    import ray

    pool = PoolPlacement(labels=SPOT, gpus_per_replica=0.5, accelerator_type="H100").map_arguments()
    assert (pool["label_selector"], pool["num_gpus"], pool["accelerator_type"]) == (SPOT, 0.5, "H100")
    task = TaskPlacement(labels=SPOT).remote_arguments()
    assert task["label_selector"] == SPOT
    assert ray.remote(lambda: None).options(**task)
    assert task["max_retries"] == 0, "else Ray retries forever after its memory monitor kills a task"
    train = TrainPlacement(labels=SPOT).scaling_arguments()
    assert train["label_selector"] == SPOT
    assert all(found["label_selector"] is None for found in (
        PoolPlacement().map_arguments(), TaskPlacement().remote_arguments(), TrainPlacement().scaling_arguments(),
    ))  # fmt: skip


def test_a_pool_has_no_more_actors_than_shards() -> None:
    pool = PoolPlacement(min_replicas=2, max_replicas=8)
    sizes = [(few.min_replicas, few.most_replicas) for few in map(pool.for_shards, (1, 3, 100))]
    assert sizes == [(1, 1), (2, 3), (2, 8)]
    assert PoolPlacement(min_replicas=3).most_replicas == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gpus_per_replica": 6, "pipeline_parallel": 4}, "is 6 and pipeline_parallel is 4, .* a multiple of 4 or"),
        ({"pipeline_parallel": 2}, "gpus_per_replica is 0 and pipeline_parallel is 2, .* a multiple of 2 or"),
    ],
)
def test_gpus_that_cannot_be_shared_out_are_refused_with_both_numbers(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoolPlacement(**fields)


@pytest.mark.parametrize(
    ("gpus", "pipeline", "tensor", "share"),
    [(0, 1, 1, 0), (0.5, 1, 1, 0.4), (1, 1, 1, 0.8), (8, 1, 8, 0.8), (8, 2, 4, 0.8)],
)
def test_tensor_parallelism_and_memory_follow_from_the_gpus(
    gpus: float, pipeline: int, tensor: int, share: float
) -> None:
    placement = PoolPlacement(gpus_per_replica=gpus, pipeline_parallel=pipeline, memory_share=0.8, min_replicas=3)
    resources = placement.resources
    assert (resources.tensor_parallel, resources.pipeline_parallel) == (tensor, pipeline)
    assert resources.gpu_memory_share == pytest.approx(share)
    assert placement.needs()["GPU"] == 3 * gpus
    assert placement.map_arguments()["num_gpus"] == (gpus or None)


@pytest.mark.parametrize(
    ("gpu", "gib", "limits"),
    [
        ("NVIDIA H100 80GB HBM3", 79, (1024, 16_384)), ("NVIDIA H200", 140, (1024, 16_384)),
        ("NVIDIA B200", 178, (1024, 16_384)), ("NVIDIA A100-SXM4-80GB", 79, (256, 8192)),
        ("NVIDIA A10G", 22, (256, 8192)),
    ],
)  # fmt: skip
def test_a_step_of_vllm_is_as_large_as_the_gpu_allows(gpu: str, gib: int, limits: tuple[int, int]) -> None:
    assert step_limits(gib << 30, gpu) == limits


@pytest.mark.parametrize("section", ["augment", "curate", "rewrite", "evaluate"])
def test_vllm_engines_that_share_a_gpu_need_a_cache_size(section: str) -> None:
    values = [f"{section}.recipe.engine={{kind: vllm}}", f"{section}.placement.gpus_per_replica=0.5"]
    with pytest.raises(ConfigError, match=rf"set {section}.placement.cache_bytes, the memory for keys and values"):
        load(RunConfig, DEMO, values)
    load(RunConfig, DEMO, [*values, f"{section}.placement.cache_bytes=8000000000"])
