"""The short form of `make chaos`: up to the first fine-tune, a driver and a raylet killed, 5 % of requests failing."""

import sys
from pathlib import Path

import pytest

from tests import weed
from tests.chaos.play import REPOSITORY, Kill, Play, account, fault_proxy, verify

SMALLEST = (
    "sample.world.seed_towns=12", "sample.world.pool_towns=6", "sample.world.unseen_towns=3",
    "sample.world.common_towns=4", "sample.world.documents=600", "sample.world.archives=2", "sample.world.prompts=4",
    "sample.base.steps=80", "sample.base.width=48", "sample.base.layers=2",
    "train.recipe.steps={backward: 40}", "train.placement.workers=1",
)  # fmt: skip

KILLS = (Kill("driver", "segments"), Kill("raylet", "sample/base"))


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.chaos
def test_a_job_survives_storage_faults_a_killed_driver_and_a_killed_raylet(tmp_path: Path) -> None:
    demo = str(REPOSITORY / "configs/demo.yaml")
    command = [sys.executable, "-m", "jobs.train", demo, "model=backward", "root=s3://chaos/run", *SMALLEST]
    with weed.serving(tmp_path) as variables:
        weed.create_bucket(variables, "chaos")
        with fault_proxy(variables["AWS_ENDPOINT_URL"], 0.05, 0, tmp_path) as (endpoint, counts):
            Play(command, {**variables, "AWS_ENDPOINT_URL": endpoint}, print).run(KILLS)
        _, injected = account(counts)
        assert len(injected) > 2
        verify("s3://chaos/run", variables)
