"""`python -m jobs.curate`: chained rounds and `--compare`, as processes; what verify and gc say of what they made."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from humpback_ray.gc import survey
from humpback_ray.run import every_stage_name
from humpback_ray.stage import read_manifest
from humpback_ray.verify import verify
from tests.jobs import prepared
from tests.jobs.prepared import REPOSITORY

ROWS = 60
ECHO = (
    "augment.recipe.engine={kind: echo}", "curate.recipe.engine={kind: echo}", "curate.recipe.max_failed_share=1",
    "curate.recipe.canaries=false",
)  # fmt: skip

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def config(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared.prepare(tmp_path_factory.mktemp("prepared"), ROWS)


def run(*arguments: str) -> str:
    """What a job prints; it runs on the Ray of the tests."""
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "-m", "jobs.curate", *arguments, *ECHO]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_comparison_is_printed_kept_resumed_verified_and_known_to_gc(config: Path) -> None:
    root = config.parent / "compare"
    arguments = (str(config), "--compare", f"root={root}", "curate.compare.size=20")
    out = run(*arguments)
    for words in ("rubric_expected", "likelihood", "failed", "after retry", "Spearman; overlap of the", "actor s"):
        assert words in out
    assert "AUC" not in out, "nobody knows the truth of these pages"
    stored = json.loads((root / "report/comparison-1.json").read_text())
    assert [one["name"] for one in stored["scorers"]] == ["rubric", "rubric_expected", "additive", "likelihood"]
    made = {name: read_manifest(str(root / f"compare/round-1/{name}")) for name in ("rubric", "additive")}
    out = run(*arguments)
    assert {name: read_manifest(str(root / f"compare/round-1/{name}")) for name in made} == made
    assert json.loads((root / "report/comparison-1.json").read_text()) == stored
    assert any(line.startswith("compare/round-1/additive: 20 rows") for line in verify(str(root)))
    assert not survey(str(root), 0).unknown


def test_a_chained_round_rates_a_share_and_says_so(config: Path) -> None:
    root = config.parent / "chain"
    scorer = "curate.recipe.scorer={kind: chained, share: 0.25}"
    out = run(str(config), "round=1", f"root={root}", scorer, "curate.recipe.rounds=[{threshold: 1}]")
    candidates = read_manifest(str(root / "candidates"))
    assert candidates
    over = candidates.kept - math.ceil(0.25 * candidates.kept)
    assert "In round 1," in out
    assert f"{over} more were not passed on by the cheap scorer" in out
    assert "round-1/prescores" in out
    proof = f"round-1/scores: {candidates.kept} rows, files and counts agree, each of {candidates.kept} ids"
    assert any(line.startswith(proof) for line in verify(str(root)))
    assert not survey(str(root), 0).unknown


def test_stages_of_comparisons_are_found_by_their_files() -> None:
    files = ["compare/round-2/ifd/manifest.json", "compare/sample/plan.json", "compare/notes.txt", "seed/plan.json"]
    assert every_stage_name(files)[-2:] == ["compare/sample", "compare/round-2/ifd"]
    assert "prescores" in every_stage_name()
