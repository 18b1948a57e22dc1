"""SIGKILL at every numbered step, of the driver, an actor or a raylet, locally and on S3: no fate changes."""

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from humpback_ray import storage
from humpback_ray.verify import verify
from tests.jobs import prepared
from tests.jobs.heads import Cluster

ROWS = 60
ACTOR_STEPS = ("3", "4", "5", "6", "8", "9")
STEPS = {
    "driver": ("1", "2", *ACTOR_STEPS, "10", "12"),
    "actor": ACTOR_STEPS,
    "raylet": (*ACTOR_STEPS, "10"),
}
"""Steps 7 and 11 belong to quarantine and leases, which have tests of their own; 8 is a step of local storage alone."""

HOOKS = Path(__file__).parents[1] / "faults/hooks"

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def config(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared.prepare(tmp_path_factory.mktemp("kills"), ROWS)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    (tmp_path / "plan").mkdir()
    return tmp_path / "plan"


@pytest.fixture
def cluster(plan: Path) -> Iterator[Cluster]:
    with Cluster(0, {"FAULT_PLAN": str(plan), "PYTHONPATH": f"{HOOKS}:{prepared.REPOSITORY}"}) as cluster:
        cluster.add(2)
        yield cluster


def driver(cluster: Cluster, config: Path, root: str, log: Path, attempts: int = 3) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "jobs.augment", str(config), f"root={root}"]
    command += ["augment.recipe.engine.delay_s=0.01", f"augment.placement.max_attempts={attempts}"]
    environment = {**cluster.environment, "RAY_ADDRESS": cluster.address, "FAULT_DRIVER": "1"}
    with log.open("w") as file:
        return subprocess.Popen(command, cwd=prepared.REPOSITORY, env=environment, stdout=file, stderr=file)


@pytest.mark.parametrize(
    ("role", "where"),
    [
        ("driver", "local"),
        pytest.param("actor", "local", marks=pytest.mark.chaos),
        ("raylet", "local"),
        pytest.param("driver", "s3", marks=[pytest.mark.s3, pytest.mark.chaos]),
        pytest.param("actor", "s3", marks=pytest.mark.s3),
        pytest.param("raylet", "s3", marks=[pytest.mark.s3, pytest.mark.chaos]),
    ],
)
def test_a_kill_at_any_step_changes_no_fate(
    config: Path, plan: Path, request: pytest.FixtureRequest, tmp_path: Path, role: str, where: str
) -> None:
    root = str(tmp_path / "run")
    if where == "s3":
        root = storage.join(request.getfixturevalue("s3_bucket"), uuid.uuid4().hex)
    cluster: Cluster = request.getfixturevalue("cluster")
    steps = [step for step in STEPS[role] if where == "local" or step != "8"]
    for step in steps:
        (plan / f"{step}.{role}").touch()
    nodes, log = 1, tmp_path / "log"
    for _ in range(len(STEPS["driver"]) + 1):
        process = driver(cluster, config, root, log, attempts=20 if role == "actor" else 3)  # nodes are not charged
        while process.poll() is None:
            if role == "raylet" and nodes <= len(list(plan.glob("*.raylet.done"))):
                cluster.add(2)
                nodes += 1
            time.sleep(0.1)
        if process.returncode == 0:
            break
        assert role == "driver", log.read_text()
    assert process.returncode == 0, log.read_text()
    assert sorted(path.name for path in plan.glob("*.done")) == sorted(f"{step}.{role}.done" for step in steps)
    undisturbed = config.parent / "undisturbed"
    assert prepared.fates(storage.join(root, "candidates")) == expected(undisturbed, cluster, config)
    assert any(f"each of {ROWS} ids from corpus has one fate" in line for line in verify(root))


def expected(root: Path, cluster: Cluster, config: Path) -> dict[str, tuple[object, ...]]:
    """The fates of a run that nobody disturbs; it is made once."""
    if not root.exists():
        log = root.with_suffix(".log")
        assert driver(cluster, config, str(root), log).wait(120) == 0, log.read_text()
    return prepared.fates(root / "candidates")
