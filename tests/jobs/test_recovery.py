"""Two drivers at once, and a run on object storage: the same id → fate table as ever (kills: test_kills.py)."""

from pathlib import Path

import pytest

from humpback_ray.stage import read_manifest
from tests.jobs import prepared
from tests.jobs.prepared import Driver

ROWS, SHARDS = 240, 24
REQUESTS_PER_SHARD, REQUESTS_PER_STAGE = 8, 30
"""What the README states; a stage's own are its recipe, plan, manifest and listings."""

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def config(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared.prepare(tmp_path_factory.mktemp("prepared"), ROWS)


@pytest.fixture(scope="module")
def undisturbed(config: Path) -> dict[str, tuple[object, ...]]:
    root = config.parent / "undisturbed"
    driver = Driver("augment", str(config), f"root={root}", "augment.recipe.engine.delay_s=0")
    assert driver.finish() is not None
    assert driver.process.returncode == 0
    found = prepared.fates(root / "candidates")
    assert len(found) == ROWS
    assert len(prepared.attempts(root / "candidates")) == SHARDS
    return found


def verified(root: "Path | str") -> None:
    driver = Driver("verify", str(root))
    out = driver.finish()
    assert driver.process.returncode == 0, out
    assert f"each of {ROWS} ids from corpus has one fate" in out


def test_two_drivers_at_once_do_no_harm(config: Path, undisturbed: dict[str, tuple[object, ...]]) -> None:
    stage = config.parent / "two/candidates"
    drivers = [Driver("augment", str(config), f"root={stage.parent}") for _ in range(2)]
    outs = [driver.finish() for driver in drivers]
    assert [driver.process.returncode for driver in drivers] == [0, 0], outs
    assert len({attempt["submission"] for attempt in prepared.attempts(stage)}) == 2, "both took part"
    assert prepared.fates(stage) == undisturbed
    assert len(list((stage / "data").iterdir())) == SHARDS, "the losers of a race deleted their files"
    verified(stage.parent)


@pytest.mark.s3
def test_a_run_on_object_storage_gives_the_same_fates_and_verifies(
    config: Path, undisturbed: dict[str, tuple[object, ...]], s3_bucket: str
) -> None:
    root = f"{s3_bucket}/recovery"
    driver = Driver("augment", str(config), f"root={root}", "augment.recipe.engine.delay_s=0")
    out = driver.finish()
    assert driver.process.returncode == 0, out
    assert prepared.fates(f"{root}/candidates") == undisturbed
    verified(root)
    made = read_manifest(f"{root}/candidates")
    assert made is not None
    assert sum(made.requests.values()) <= REQUESTS_PER_SHARD * SHARDS + REQUESTS_PER_STAGE, made.requests
