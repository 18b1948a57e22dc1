"""Output and exit codes of the jobs `status` and `gc`, in processes that import neither Ray nor torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from humpback_ray.records import PAIR
from humpback_ray.stages.outputs import TableWriter
from humpback_ray.stages.stage import Place, Stage
from tests.jobs.prepared import REPOSITORY

CHECK = """
import contextlib, io, json, runpy, sys
found = []
for job, *arguments in json.loads(sys.argv[1]):
    sys.argv = [job, *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try: runpy.run_module(f'jobs.{job}', run_name='__main__')
        except SystemExit as end: found.append((end.code, out.getvalue().strip()))
loaded = {'ray', 'torch'} & set(sys.modules)
assert not loaded, loaded
print(json.dumps(found))
"""


def jobs(*commands: tuple[str, ...]) -> list[tuple[int, str]]:
    """Run jobs one after another in a separate process; return each one's exit code and output."""
    command = [sys.executable, "-c", CHECK, json.dumps(commands)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    found = [(code, out) for code, out in json.loads(done.stdout)]
    assert len(found) == len(commands)
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A run with a finished seed, a loser's file in it, and an unknown file."""
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
    (code, out), (json_code, json_out) = jobs(("status", str(root)), ("status", str(root), "--json"))
    assert code == 0, out
    assert "20260101T000000Z-abc" in out
    assert next(line.split("│")[2].strip() for line in out.splitlines() if "│ seed" in line) == "done"
    assert json_code == 0
    stages = {stage["name"]: stage for stage in json.loads(json_out)["stages"]}
    assert (stages["seed"]["state"], stages["corpus"]["state"]) == ("done", "waiting")


def test_gc_shows_files_and_deletes_them_when_told_to_and_verify_passes(root: Path) -> None:
    loser = root / "seed/data/all.2-abcdef/000000.parquet"
    ((code, out),) = jobs(("gc", str(root)))
    assert code == 0, out
    assert "unknown files, left alone: 1; first: notes [bold].txt" in out
    assert "not needed (--delete deletes them): 1 files, 5 bytes" in out
    assert loser.exists()
    (code, out), (verified, proof) = jobs(("gc", str(root), "--delete"), ("verify", str(root)))
    assert code == 0, out
    assert "deleted: 1 files, 5 bytes" in out
    assert not loser.exists()
    assert (root / "notes [bold].txt").exists()
    assert verified == 0, proof


def test_unusable_input_is_one_line_and_exit_code_2(root: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    commands = (("status", str(nowhere)), ("gc", str(nowhere)), ("gc", str(root), "--delete", "--older-than-hours=0.5"))
    *no_run, (code, out) = jobs(*commands)
    assert no_run == [(2, f"error: {nowhere} is not a run: it has no run.json")] * 2
    assert code == 2
    assert out.startswith("error: --older-than-hours is 0.5")
