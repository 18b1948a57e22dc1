"""SIGKILL at every numbered step, of the driver, an actor or a raylet, locally and on S3: no fate changes.

By default one run, on an S3 that sometimes fails, loses an actor between a shard's upload and its commit, a raylet
after a commit, and its driver when it learns of one; `make chaos` kills each of them at every step.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from humpback_ray import storage
from humpback_ray.augment import Predictor
from humpback_ray.config import load
from humpback_ray.inputs.contamination import NOTHING
from humpback_ray.needs import Resources
from humpback_ray.operate.verify import verify
from humpback_ray.runconfig import RunConfig
from humpback_ray.stages.manifest import read_manifest
from tests.chaos.play import account, fault_proxy
from tests.jobs import prepared
from tests.jobs.heads import Cluster

ROWS = 60
ACTOR_STEPS = ("3", "4", "5", "6", "8", "9")
STEPS = {
    "driver": ("1", "2", *ACTOR_STEPS, "10", "12"),
    "actor": ACTOR_STEPS,
    "raylet": (*ACTOR_STEPS, "10"),
}
"""Steps 7 and 11 belong to quarantine and leases, which have their own tests; step 8 exists only on local storage."""

SETTINGS = ("augment.recipe.engine.delay_s=0.01",)
HOOKS = Path(__file__).parents[1] / "faults/hooks"

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared.prepare(tmp_path_factory.mktemp("kills"), ROWS)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    (tmp_path / "plan").mkdir()
    return tmp_path / "plan"


@contextlib.contextmanager
def store(where: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A root, and the environment with which processes find it; on a failing S3 every twentieth request fails."""
    if where == "local":
        yield str(folder / "run"), {}
        return
    root = storage.join(request.getfixturevalue("s3_bucket"), uuid.uuid4().hex)
    if where == "s3":
        yield root, {}
        return
    with fault_proxy(os.environ["AWS_ENDPOINT_URL"], 0.05, 0, folder) as (endpoint, counts):
        yield root, {"AWS_ENDPOINT_URL": endpoint}
    assert account(counts)[1], "nothing failed"


@contextlib.contextmanager
def cluster_of(plan: Path, variables: dict[str, str]) -> Iterator[Cluster]:
    """A head without CPUs and a node that follows the plan."""
    hooks = {"FAULT_PLAN": str(plan), "PYTHONPATH": f"{HOOKS}:{prepared.REPOSITORY}"}
    with Cluster(0, {**hooks, **variables}) as cluster:
        cluster.add(2)
        yield cluster


def driver(cluster: Cluster, config: Path, root: str, log: Path, attempts: int = 3) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "jobs.augment", str(config), f"root={root}"]
    command += [*SETTINGS, f"augment.placement.max_attempts={attempts}"]
    environment = {**cluster.environment, "RAY_ADDRESS": cluster.address, "FAULT_DRIVER": "1"}
    with log.open("w") as file:
        return subprocess.Popen(command, cwd=prepared.REPOSITORY, env=environment, stdout=file, stderr=file)


def everywhere(role: str, where: str) -> list[str]:
    return [f"{step}.{role}" for step in STEPS[role] if where == "local" or step != "8"]


@pytest.mark.parametrize(
    ("kills", "where"),
    [
        pytest.param(["6.actor", "9.raylet", "10.driver"], "failing s3", marks=pytest.mark.s3, id="one of each"),
        *(
            pytest.param(everywhere(role, where), where, marks=[pytest.mark.chaos, *marks], id=f"{role}-{where}")
            for role in STEPS
            for where, marks in (("local", []), ("s3", [pytest.mark.s3]))
        ),
    ],
)
def test_a_kill_at_any_step_changes_no_fate(
    config: Path, plan: Path, request: pytest.FixtureRequest, tmp_path: Path, kills: list[str], where: str
) -> None:
    for kill in kills:
        (plan / kill).touch()
    roles = {kill.split(".")[1] for kill in kills}
    with store(where, request, tmp_path) as (root, variables), cluster_of(plan, variables) as cluster:
        run(cluster, config, root, plan, tmp_path / "log", roles)
    assert sorted(path.name for path in plan.glob("*.done")) == sorted(f"{kill}.done" for kill in kills)
    assert prepared.fates(storage.join(root, "candidates")) == undisturbed(config)
    assert any(f"each of {ROWS} ids from corpus has one fate" in line for line in verify(root))


def run(cluster: Cluster, config: Path, root: str, plan: Path, log: Path, roles: set[str]) -> None:
    """Start drivers until one reaches the end, and replace every lost node."""
    nodes, kills = 1, len(list(plan.glob("*.driver")))
    for _ in range(kills + 1):
        process = driver(cluster, config, root, log, attempts=20 if "actor" in roles else 3)  # nodes are not charged
        while process.poll() is None:
            if nodes <= len(list(plan.glob("*.raylet.done"))):
                cluster.add(2)
                nodes += 1
            time.sleep(0.1)
        if process.returncode == 0:
            return
        assert "driver" in roles, log.read_text()
    raise AssertionError(log.read_text())


def undisturbed(config: Path) -> dict[str, tuple[object, ...]]:
    """The fates that the stage's actor gives to all rows at once, without Ray and shards."""
    given = load(RunConfig, config, SETTINGS)
    corpus = read_manifest(given.reuse["corpus"])
    assert corpus
    predict = Predictor(given.augment.recipe, given.chat, "", NOTHING, Resources())
    rows = asyncio.run(predict(pa.concat_tables(corpus.tables()))).to_pylist()
    assert len(rows) == ROWS
    return {row["id"]: (row["instruction"], row["drop_reason"]) for row in rows}
