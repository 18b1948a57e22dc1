"""`python -m jobs.curate`: chained rounds and `--compare`, as processes, checked by verify and gc."""

import json
import math
from pathlib import Path

import pytest

from humpback_ray.graph import stage_names
from humpback_ray.operate import gc
from humpback_ray.operate.verify import verify
from humpback_ray.stages.manifest import read_manifest
from tests.jobs import prepared
from tests.jobs.conftest import Head

ROWS = 60
ECHO = ("augment.recipe.engine={kind: echo}", "curate.recipe.engine={kind: echo}", "curate.recipe.max_failed_share=1")

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared.prepare(tmp_path_factory.mktemp("prepared"), ROWS)


def run(head: Head, *arguments: str) -> str:
    driver = head.driver(*arguments)
    out = driver.finish()
    assert driver.process.returncode == 0, out
    return out


def proof(root: Path) -> str:
    """The output of verify for a run whose every file gc knows."""
    assert not gc.survey(str(root), 3600).unknown
    return "\n".join(verify(str(root)))


@pytest.fixture(scope="module")
def comparison(config: Path) -> tuple[str, ...]:
    """The arguments of a comparison."""
    return ("curate", str(config), "--compare", f"root={config.parent / 'compare'}", *ECHO, "curate.compare.size=20")


@pytest.fixture(scope="module")
def compared(comparison: tuple[str, ...], head: Head) -> str:
    """The output of a comparison."""
    return run(head, *comparison)


def test_a_comparison_is_printed_kept_resumed_verified_and_known_to_gc(
    config: Path, head: Head, comparison: tuple[str, ...], compared: str
) -> None:
    root, out = config.parent / "compare", compared
    for words in ("rubric_expected", "likelihood", "failed", "after retry", "Spearman; overlap of the", "actor s"):
        assert words in out
    assert "AUC" not in out, "the truth of these pages is not known"
    stored = json.loads((root / "report/comparison-1.json").read_text())
    assert [one["name"] for one in stored["scorers"]] == ["rubric", "rubric_expected", "additive", "likelihood"]
    made = {name: read_manifest(str(root / f"compare/round-1/{name}")) for name in ("rubric", "additive")}
    run(head, *comparison)
    assert {name: read_manifest(str(root / f"compare/round-1/{name}")) for name in made} == made
    assert json.loads((root / "report/comparison-1.json").read_text()) == stored
    assert "compare/round-1/additive: 20 rows" in proof(root)


def test_a_chained_round_rates_a_share_and_says_so(config: Path, head: Head, compared: str) -> None:
    root, given = config.parent / "chain", config.parent / "compare/candidates"
    scorer = "curate.recipe.scorer={kind: chained, share: 0.25}"
    rounds = "curate.recipe.rounds=[{threshold: 1}]"
    reuse = f"reuse.candidates={given}"
    out = run(head, "curate", str(config), "round=1", f"root={root}", reuse, *ECHO, scorer, rounds)
    candidates = read_manifest(str(given))
    assert candidates
    over = candidates.kept - math.ceil(0.25 * candidates.kept)
    assert "In round 1," in out
    assert f"{over} more were not passed on by the cheap scorer" in out
    assert "round-1/prescores" in out
    said = f"round-1/scores: {candidates.kept} rows, files and counts agree, each of {candidates.kept} ids"
    assert said in proof(root)


def test_stages_of_comparisons_are_found_by_their_files() -> None:
    files = ["compare/round-2/ifd/manifest.json", "compare/sample/plan.json", "compare/notes.txt", "seed/plan.json"]
    assert stage_names(files=iter(files))[-2:] == ["compare/sample", "compare/round-2/ifd"]
    assert "prescores" in stage_names()
