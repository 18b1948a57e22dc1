"""The whole loop at its smallest: real stages, real models, a fresh process; then the same command redoes nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

SMALLEST = (
    "sample.world.seed_towns=12", "sample.world.pool_towns=6", "sample.world.unseen_towns=3",
    "sample.world.common_towns=4", "sample.world.documents=600", "sample.world.archives=2", "sample.world.prompts=4",
    "sample.base.steps=80", "sample.base.width=48", "sample.base.layers=2",
    "train.recipe.learning_rate=3e-3", "train.recipe.learning_rates={}", "train.recipe.final_learning_rates={}",
    "train.recipe.steps={backward: 40, m0: 4, m1: 4, m2: 4}", "train.placement.workers=1",
    "curate.recipe.scorer={kind: rubric_expected}",
    "curate.recipe.rounds=[{threshold: null, top_k: 5}, {threshold: null, top_k: 5}]",
    "evaluate.recipe.max_new_tokens=8",
)  # fmt: skip
"""A backward model this small does not end every question: failures are let through, and counted."""


def pipeline(root: Path) -> str:
    command = [sys.executable, "-m", "jobs.pipeline", "configs/demo.yaml", f"root={root}", *SMALLEST]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def verify(root: Path) -> None:
    command = [sys.executable, "-m", "jobs.verify", str(root)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_the_whole_loop_ends_in_m2_and_a_report_and_a_second_run_redoes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "run"
    out = pipeline(root)
    assert "report:" in out
    assert "models/m2" in out
    page = (root / "report/index.html").read_text()
    assert "round-2/curated" in page
    verify(root)
    outputs = json.loads((root / "evaluation/m2/model_outputs.json").read_text())
    assert {*outputs[0]} == {"instruction", "output", "generator", "dataset"}
    assert outputs[0]["generator"] == "m2"
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    pipeline(root)
    after = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    changed = {path.relative_to(root).parts[0] for path in after if after[path] != before.get(path)}
    assert changed <= {"submissions", "report"}
