"""A run submitted to a Ray that asks for a token: submission ids, the end by `ray job stop`, exit codes."""

import json
import os
import signal
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from humpback_ray.config import load
from humpback_ray.run import Run, RunConfig
from tests.jobs import prepared
from tests.jobs.heads import Cluster, wait_for

ROWS, SHARDS = 160, 16
Fates = dict[str, tuple[object, ...]]


@pytest.fixture(scope="module")
def config(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared.prepare(tmp_path_factory.mktemp("prepared"), ROWS)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(cpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(config: Path, cluster: Cluster) -> Fates:
    """Submitted by the command that the documents name."""
    root = config.parent / "undisturbed"
    command = entrypoint(config, root, "augment.recipe.engine.delay_s=0")
    done = cluster.ray("job", "submit", "--submission-id", "first", "--no-wait", "--", *command)
    assert done.returncode == 0, done.stdout + done.stderr
    job = cluster.finish("first")
    assert (job["status"], job["driver_exit_code"]) == ("SUCCEEDED", 0), cluster.logs("first")
    return prepared.fates(root / "candidates")


def entrypoint(config: Path, root: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "jobs.augment", str(config), f"root={root}", *overrides]


def submit_and_wait(cluster: Cluster, submission: str, command: list[str], stage: Path) -> None:
    """Submit a run and wait until it is in the middle of a stage."""
    cluster.submit(" ".join(command), submission)
    wait_for(lambda: prepared.commits(stage) > 2, "a few commits", 60)


@pytest.mark.ray
@pytest.mark.slow
def test_attempts_and_the_record_bear_the_submission_id_of_ray(
    config: Path, cluster: Cluster, undisturbed: Fates
) -> None:
    root = config.parent / "undisturbed"
    assert len(undisturbed) == ROWS
    assert {attempt["submission"] for attempt in prepared.attempts(root / "candidates")} == {"first"}
    record = json.loads((root / "submissions/first.json").read_text())
    assert record["ray_job_id"] == cluster.job("first")["driver_info"]["id"]


@pytest.mark.ray
@pytest.mark.slow
def test_without_the_token_nothing_is_told_and_nothing_is_run(cluster: Cluster) -> None:
    for token, code in (("", 401), ("0" * 64, 403)):
        for body in (None, {"entrypoint": "true", "submission_id": "intruder"}):
            with pytest.raises(urllib.error.HTTPError, match=str(code)):
                cluster.ask("/api/jobs/", body, token)
    assert "intruder" not in {job["submission_id"] for job in cluster.ask("/api/jobs/")}


@pytest.mark.ray
@pytest.mark.slow
def test_a_submission_id_is_taken_once(config: Path, cluster: Cluster, undisturbed: Fates) -> None:
    root = config.parent / "undisturbed"
    before = sorted(root.rglob("*"))
    with pytest.raises(urllib.error.HTTPError) as refused:
        cluster.submit(" ".join(entrypoint(config, root)), "first")
    assert b"already exists" in refused.value.read()
    assert sorted(root.rglob("*")) == before


@pytest.mark.ray
@pytest.mark.slow
def test_a_stopped_job_says_what_is_left_and_another_submission_goes_on(
    config: Path, cluster: Cluster, undisturbed: Fates
) -> None:
    stage = config.parent / "stopped/candidates"
    command = entrypoint(config, stage.parent)
    submit_and_wait(cluster, "stopped", command, stage)
    cluster.stop("stopped")
    assert cluster.finish("stopped")["status"] == "STOPPED"
    committed = prepared.commits(stage)
    assert committed < SHARDS
    said = [line for line in cluster.logs("stopped").splitlines() if line.startswith("terminated; candidates has ")]
    assert len(said) == 1, cluster.logs("stopped")
    assert f" of {SHARDS} shards committed; the same command goes on from here" in said[0]
    cluster.submit(" ".join(command), "again")
    assert cluster.finish("again")["status"] == "SUCCEEDED", cluster.logs("again")
    assert prepared.fates(stage) == undisturbed
    assert {attempt["submission"] for attempt in prepared.attempts(stage)} == {"stopped", "again"}


@pytest.mark.ray
@pytest.mark.slow
def test_a_terminated_driver_exits_143(config: Path, cluster: Cluster) -> None:
    stage = config.parent / "terminated/candidates"
    submit_and_wait(cluster, "terminated", entrypoint(config, stage.parent), stage)
    os.kill(int(cluster.job("terminated")["driver_info"]["pid"]), signal.SIGTERM)
    assert cluster.finish("terminated")["driver_exit_code"] == 143


@pytest.mark.ray
@pytest.mark.slow
def test_an_unusable_configuration_exits_2(config: Path, cluster: Cluster) -> None:
    cluster.submit(" ".join(entrypoint(config, config.parent / "unusable", "augment.recipe.engin=1")), "unusable")
    assert cluster.finish("unusable")["driver_exit_code"] == 2


def test_a_submission_that_is_started_again_is_numbered(tmp_path: Path) -> None:
    config = load(RunConfig, prepared.REPOSITORY / "configs/demo.yaml", [f"root={tmp_path}"])
    assert [Run(config, "nightly").submission for _ in range(3)] == ["nightly", "nightly-2", "nightly-3"]
    assert Run(config, "of/odd name").submission == "of-odd-name"
    assert len(list((tmp_path / "submissions").glob("*.json"))) == 4
