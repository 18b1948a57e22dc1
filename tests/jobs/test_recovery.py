"""Two drivers at once, and a run on object storage: the same id → fate table as always (kills: test_kills.py)."""

from pathlib import Path

import pytest

from humpback_ray.operate.verify import verify
from humpback_ray.stages.manifest import read_manifest
from tests.jobs import prepared
from tests.jobs.conftest import ROWS, SHARDS, Fates, Head
from tests.jobs.heads import wait_for

REQUESTS_PER_SHARD, REQUESTS_PER_STAGE = 8, 30
"""The number in docs/operations.md; a stage's own requests are for its recipe, plan, manifest and listings."""

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def verified(root: "Path | str") -> None:
    assert any(f"each of {ROWS} ids from corpus has one fate" in line for line in verify(str(root)))


def test_two_drivers_at_once_do_no_harm(config: Path, head: Head, undisturbed: Fates) -> None:
    stage = config.parent / "two/candidates"

    def submissions() -> int:
        return len({attempt["submission"] for attempt in prepared.attempts(stage)})

    with head.holding(1):
        drivers = [head.driver("augment", str(config), f"root={stage.parent}") for _ in range(2)]
        wait_for(lambda: submissions() == 2, "an attempt of each driver", 120)
    outs = [driver.finish() for driver in drivers]
    assert [driver.process.returncode for driver in drivers] == [0, 0], outs
    assert submissions() == 2, "both took part"
    assert prepared.fates(stage) == undisturbed
    assert len(list((stage / "data").iterdir())) == SHARDS, "the losers of a race deleted their files"
    verified(stage.parent)


@pytest.mark.s3
def test_a_run_on_object_storage_gives_the_same_fates_and_verifies(
    config: Path, head: Head, undisturbed: Fates, s3_bucket: str
) -> None:
    root = f"{s3_bucket}/recovery"
    driver = head.driver("augment", str(config), f"root={root}")
    out = driver.finish()
    assert driver.process.returncode == 0, out
    assert prepared.fates(f"{root}/candidates") == undisturbed
    verified(root)
    made = read_manifest(f"{root}/candidates")
    assert made is not None
    assert sum(made.requests.values()) <= REQUESTS_PER_SHARD * SHARDS + REQUESTS_PER_STAGE, made.requests
