"""What an actor is given, and what is refused before anything is asked for."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from humpback_ray.placement import PoolPlacement

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gpus_per_replica": 1.5}, "gpus_per_replica is 1.5; more than one GPU means whole ones: 2"),
        ({"gpus_per_replica": 6, "pipeline_parallel": 4}, "is 6 and pipeline_parallel 4, .* a multiple of 4 or"),
        ({"pipeline_parallel": 2}, "gpus_per_replica is 0 and pipeline_parallel 2, .* a multiple of 2 or"),
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
    placement = PoolPlacement(gpus_per_replica=gpus, pipeline_parallel=pipeline, memory_share=0.8, replicas=3)
    resources = placement.resources
    assert (resources.tensor_parallel, resources.pipeline_parallel) == (tensor, pipeline)
    assert resources.gpu_memory_share == pytest.approx(share)
    assert placement.needs()["GPU"] == 3 * gpus
    assert placement.map_arguments()["num_gpus"] == (gpus or None)


@pytest.mark.ray
@pytest.mark.slow
def test_a_replica_gets_all_of_its_gpus_on_one_node(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.replicas", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    given = [json.loads(path.read_text()) for path in (tmp_path / "replicas").iterdir()]
    assert [len(replica["gpus"]) for replica in given] == [2, 2]
    assert len({replica["node"] for replica in given}) == 2, "no node has four"
    assert [replica["tensor"] for replica in given] == [1, 1]
