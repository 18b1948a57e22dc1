"""Whatever is changed behind the ledger's back, verify names it."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from humpback_ray import storage
from humpback_ray.augment import AugmentConfig, AugmentRecipe, make_candidates
from humpback_ray.corpus.build import CorpusConfig, CorpusRecipe, make_corpus, make_segments
from humpback_ray.corpus.filters import FilterRecipe
from humpback_ray.corpus.segments import SegmentRecipe
from humpback_ray.engines import EchoEngine
from humpback_ray.inventory import Hashes, resolve
from humpback_ray.placement import PoolPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.stage import Model, Place, Stage, read_manifest
from humpback_ray.verify import Difference, source_of, verify
from tests.jobs.prepared import write_model

pytestmark = pytest.mark.ray
PAGE = (
    "<html><body><h1>{0}</h1><p>{0} is kept in a dry room, turned once a week, and eaten within the month.</p></body>"
)


@pytest.fixture(scope="module")
def finished(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Segments, corpus and candidates of a small JSONL corpus."""
    folder = tmp_path_factory.mktemp("verify")
    for number in range(2):
        lines = [{"id": f"{number}-{i}", "html": PAGE.format(f"Cheese {number} {i}")} for i in range(20)]
        lines += [{"id": f"{number}-short", "html": "<p>too little</p>"}]
        (folder / f"{number}.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\nbroken\n")
    root = folder / "root"
    small = SegmentRecipe(filters=FilterRecipe(min_chars=20, language=None))
    config = CorpusConfig(recipe=CorpusRecipe(segments=small), placement=PoolPlacement(cpus_per_replica=0.5))
    files = resolve("inputs", [str(folder / "*.jsonl")], Hashes(str(folder / "hashes.json")))
    segments = make_segments(config, files, Place("segments", str(root / "segments"), "s"))
    corpus = make_corpus(config, segments, Place("corpus", str(root / "corpus"), "s"))
    model = Stage(Place("models/backward", str(root / "models/backward"), "s"), {}, {}).leased(write_model)
    augment = AugmentConfig(
        recipe=AugmentRecipe(engine=EchoEngine()), placement=PoolPlacement(rows_per_shard=8, cpus_per_replica=0.5)
    )
    candidates = Place("candidates", str(root / "candidates"), "s")
    make_candidates(augment, ChatRecipe(), corpus, Model.of(model), candidates)
    storage.write_bytes(str(root / "run.json"), b"{}")
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "root"))


def test_an_honest_run_is_proven_stage_by_stage(root: Path) -> None:
    lines = list(verify(str(root)))
    assert "each of 44 documents has its rows" in lines[0]
    assert [line.split(":")[0] for line in lines] == ["segments", "corpus", "models/backward", "candidates"]
    assert "each of 40 ids from corpus has one fate" in lines[3]


def data_file(root: Path, stage: str) -> Path:
    return sorted((root / stage / "data").rglob("*.parquet"))[0]


def forge(root: Path, stage: str, rows: slice) -> None:
    """Rewrite a data file with some of its rows, and every record of it, as a bug of ours would."""
    path = data_file(root, stage)
    table = pq.read_table(path).slice(rows.start or 0, rows.stop)
    data = storage.parquet_bytes(table)
    path.write_bytes(data)
    manifest = json.loads((root / stage / "manifest.json").read_text())
    for commit in manifest["commits"]:
        for file in commit["files"]:
            if path == root / stage / file["name"]:
                kept = table["drop_reason"].null_count
                file |= {
                    "bytes": len(data),
                    "sha256": storage.sha256_of(str(path)),
                    "rows": table.num_rows,
                    "kept": kept,
                }
                commit |= {"rows": table.num_rows, "kept": kept}
        (root / stage / "commits" / f"{commit['shard']}.json").write_text(json.dumps(commit))
    (root / stage / "manifest.json").write_text(json.dumps(manifest))
    assert read_manifest(str(root / stage))


def test_a_missing_file_a_flipped_byte_and_a_changed_commit_are_named(root: Path) -> None:
    path = data_file(root, "candidates")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(Difference, match=rf"{path.name}: SHA-256"):
        list(verify(str(root)))
    path.write_bytes(data[:-1])
    with pytest.raises(Difference, match=rf"{path.name}: bytes: found {len(data) - 1}, recorded {len(data)}"):
        list(verify(str(root)))
    path.unlink()
    with pytest.raises(Difference, match=rf"{path.name} is missing"):
        list(verify(str(root)))
    path.write_bytes(data)
    commit = next((root / "candidates/commits").iterdir())
    commit.write_text(commit.read_text().replace('"rows": 8', '"rows": 9'))
    with pytest.raises(Difference, match=commit.name):
        list(verify(str(root)))


def test_a_lost_row_is_named_even_if_all_records_agree(root: Path) -> None:
    forge(root, "candidates", slice(1, None))
    with pytest.raises(Difference, match=r"1 of 40 ids lost and 0 too many"):
        list(verify(str(root)))


def test_a_lost_document_is_named(root: Path) -> None:
    forge(root, "segments", slice(1, None))
    with pytest.raises(Difference, match=r"document .* was read but has no row"):
        list(verify(str(root)))


def test_a_folder_that_is_no_run_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(Difference, match="is no run"):
        list(verify(str(tmp_path)))


def test_a_stage_whose_source_is_gone_is_not_passed_over(root: Path) -> None:
    shutil.rmtree(root / "corpus")
    with pytest.raises(Difference, match=r"candidates was made from corpus, which is not here"):
        list(verify(str(root)))


@pytest.mark.parametrize(
    ("stage", "inputs", "source"),
    [
        ("corpus", ("segments",), "segments"),
        ("segments", ("files",), ""),
        ("tokens/backward", ("seed", "base"), "seed"),
        ("round-2/tokens", ("curated", "base"), "round-2/curated"),
        ("round-2/tokens", ("rewritten", "base"), "round-2/rewritten"),
        ("round-1/rewritten", ("curated", "rewriter"), "round-1/curated"),
        ("round-1/canary-scores", ("canaries", "rater"), "canaries"),
        ("evaluation/prompts", ("files",), ""),
        ("evaluation/m2", ("prompts", "model"), "evaluation/prompts"),
        ("compare/round-1/rubric", ("sample", "rater"), "compare/sample"),
        ("compare/sample", ("candidates",), "candidates"),
        ("models/m1", ("base",), ""),
    ],
)
def test_every_stage_is_held_against_the_rows_that_it_was_given(
    stage: str, inputs: tuple[str, ...], source: str
) -> None:
    assert source_of(stage, inputs) == source
