"""What the jobs `status` and `gc` print, and their exit codes, in processes that import neither Ray nor torch."""

import json
from pathlib import Path

import pytest

from humpback_ray.records import PAIR
from humpback_ray.stage import Place, Stage, TableWriter
from tests.jobs.test_console import job


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A run with a finished seed, a loser's file in it, and one file that nobody knows."""
    for name in ("run.json", "submissions/20260101T000000Z-abc.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    seed = Stage(Place("seed", str(tmp_path / "seed"), "first"), {}, {}, PAIR)
    manifest = seed.leased(lambda attempt: TableWriter(attempt, PAIR).commit())
    assert manifest.attempts == 1
    loser = tmp_path / "seed/data/all.2-abcdef/000000.parquet"
    loser.parent.mkdir(parents=True)
    loser.write_bytes(b"12345")
    (tmp_path / "notes [bold].txt").write_text("mine")
    return tmp_path


def test_status_is_a_table_or_json(root: Path) -> None:
    code, out = job("status", str(root))
    assert code == 0, out
    assert "20260101T000000Z-abc" in out
    assert next(line.split("│")[2].strip() for line in out.splitlines() if "│ seed" in line) == "done"
    code, out = job("status", str(root), "--json")
    assert code == 0
    stages = {stage["name"]: stage for stage in json.loads(out)["stages"]}
    assert (stages["seed"]["state"], stages["corpus"]["state"]) == ("done", "waiting")


def test_gc_shows_what_it_would_delete_deletes_it_when_told_to_and_verify_passes(root: Path) -> None:
    loser = root / "seed/data/all.2-abcdef/000000.parquet"
    code, out = job("gc", str(root))
    assert code == 0, out
    assert "unknown, left alone: 1 files, first: notes [bold].txt" in out
    assert "may go (--delete deletes): 1 files, 5 bytes" in out
    assert loser.exists()
    code, out = job("gc", str(root), "--delete")
    assert code == 0, out
    assert "deleted: 1 files, 5 bytes" in out
    assert not loser.exists()
    assert (root / "notes [bold].txt").exists()
    code, out = job("verify", str(root))
    assert code == 0, out


@pytest.mark.parametrize("name", ["status", "gc"])
def test_a_folder_that_is_no_run_is_one_line_and_exit_code_2(tmp_path: Path, name: str) -> None:
    code, out = job(name, str(tmp_path))
    assert (code, out) == (2, f"error: {tmp_path} is no run: it has no run.json")


def test_an_age_that_would_end_live_uploads_is_refused(root: Path) -> None:
    code, out = job("gc", str(root), "--delete", "--older-than-hours=0.5")
    assert code == 2
    assert out.startswith("error: --older-than-hours is 0.5")
