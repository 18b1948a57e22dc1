"""A run submitted to a Ray cluster that asks for a token: submission ids, `ray job stop`, exit codes."""

import json
import os
import signal
import urllib.error
from pathlib import Path

import pytest

from humpback_ray.config import load
from humpback_ray.run import Run
from humpback_ray.runconfig import RunConfig
from tests.jobs import prepared
from tests.jobs.conftest import ROWS, SHARDS, Fates, Head, entrypoint
from tests.jobs.heads import wait_for

pytestmark = pytest.mark.timeout(900)
BEFORE = 3
"""Number of shards committed before something happens to a submission."""


def submit_and_wait(head: Head, submission: str, command: list[str], stage: Path) -> None:
    """Submit a run, hold it in the middle of a stage, and wait until it is there."""
    head.submit(" ".join(command), submission)
    wait_for(lambda: prepared.commits(stage) == BEFORE, f"{BEFORE} commits", 120)


@pytest.mark.ray
@pytest.mark.slow
def test_attempts_and_the_record_have_rays_submission_id(config: Path, head: Head, undisturbed: Fates) -> None:
    root = config.parent / "undisturbed"
    assert len(undisturbed) == ROWS
    assert {attempt["submission"] for attempt in prepared.attempts(root / "candidates")} == {"first"}
    record = json.loads((root / "submissions/first.json").read_text())
    assert record["ray_job_id"] == head.job("first")["driver_info"]["id"]


@pytest.mark.ray
@pytest.mark.slow
def test_without_the_token_the_cluster_tells_nothing_and_runs_nothing(head: Head) -> None:
    for token, code in (("", 401), ("0" * 64, 403)):
        for body in (None, {"entrypoint": "true", "submission_id": "intruder"}):
            with pytest.raises(urllib.error.HTTPError, match=str(code)):
                head.ask("/api/jobs/", body, token)
    assert "intruder" not in {job["submission_id"] for job in head.ask("/api/jobs/")}


@pytest.mark.ray
@pytest.mark.slow
def test_a_submission_id_can_be_used_once(config: Path, head: Head, undisturbed: Fates) -> None:
    root = config.parent / "undisturbed"
    before = sorted(root.rglob("*"))
    with pytest.raises(urllib.error.HTTPError) as refused:
        head.submit(" ".join(entrypoint(config, root)), "first")
    assert b"already exists" in refused.value.read()
    assert sorted(root.rglob("*")) == before


@pytest.mark.ray
@pytest.mark.slow
def test_a_stopped_job_says_how_far_it_is_and_another_submission_resumes(
    config: Path, head: Head, undisturbed: Fates
) -> None:
    stage = config.parent / "stopped/candidates"
    command = entrypoint(config, stage.parent)
    with head.holding(BEFORE):
        submit_and_wait(head, "stopped", command, stage)
        head.stop("stopped")
        assert head.finish("stopped")["status"] == "STOPPED"
    assert prepared.commits(stage) == BEFORE
    said = [line for line in head.logs("stopped").splitlines() if line.startswith("terminated; candidates has ")]
    assert len(said) == 1, head.logs("stopped")
    assert f" {BEFORE} of {SHARDS} shards committed; the same command resumes from here" in said[0]
    head.submit(" ".join(command), "again")
    assert head.finish("again")["status"] == "SUCCEEDED", head.logs("again")
    assert prepared.fates(stage) == undisturbed
    assert {attempt["submission"] for attempt in prepared.attempts(stage)} == {"stopped", "again"}


@pytest.mark.ray
@pytest.mark.slow
def test_a_terminated_driver_exits_143(config: Path, head: Head) -> None:
    stage = config.parent / "terminated/candidates"
    with head.holding(BEFORE):
        submit_and_wait(head, "terminated", entrypoint(config, stage.parent), stage)
        os.kill(int(head.job("terminated")["driver_info"]["pid"]), signal.SIGTERM)
        assert head.finish("terminated")["driver_exit_code"] == 143


@pytest.mark.ray
@pytest.mark.slow
def test_an_unusable_configuration_exits_2(config: Path, head: Head) -> None:
    head.submit(" ".join(entrypoint(config, config.parent / "unusable", "augment.recipe.engin=1")), "unusable")
    assert head.finish("unusable")["driver_exit_code"] == 2


def test_a_submission_that_is_started_again_is_numbered(tmp_path: Path) -> None:
    config = load(RunConfig, prepared.REPOSITORY / "configs/demo.yaml", [f"root={tmp_path}"])
    assert [Run(config, "nightly").submission for _ in range(3)] == ["nightly", "nightly-2", "nightly-3"]
    assert Run(config, "of/odd name").submission == "of-odd-name"
    assert len(list((tmp_path / "submissions").glob("*.json"))) == 4
