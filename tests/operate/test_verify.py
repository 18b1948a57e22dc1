"""verify names everything that is changed behind the ledger's back."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from humpback_ray import storage
from humpback_ray.augment import AugmentConfig, AugmentRecipe, make_candidates
from humpback_ray.config import fingerprint
from humpback_ray.corpus.build import CorpusConfig, CorpusRecipe, make_corpus, make_segments
from humpback_ray.corpus.filters import FilterRecipe
from humpback_ray.corpus.segments import SegmentRecipe
from humpback_ray.engines import EchoEngine
from humpback_ray.operate.verify import Difference, verify
from humpback_ray.placement import PoolPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.seed import SeedConfig, make_seed
from humpback_ray.stages.manifest import read_manifest
from humpback_ray.stages.models import Model
from humpback_ray.stages.stage import Place, Stage
from humpback_ray.stages.tables import drop_counts
from humpback_ray.storage.inventory import Hashes, resolve
from jobs.verify import main
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
        lines += [{"id": f"{number}-short", "html": "<h1>A</h1><p>too little</p><h1>B</h1><p>as well</p>"}]
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
    """A copy to damage."""
    return Path(shutil.copytree(finished, tmp_path / "root"))


def test_an_honest_run_is_proven_stage_by_stage(root: Path) -> None:
    lines = list(verify(str(root)))
    assert "each of 44 documents has its rows" in lines[0]
    assert [line.split(":")[0] for line in lines] == ["segments", "corpus", "models/backward", "candidates"]
    assert "each of 40 ids from corpus has one fate" in lines[3]


def data_file(root: Path, stage: str) -> Path:
    return sorted((root / stage / "data").rglob("*.parquet"))[0]


def forge(root: Path, stage: str, rows: slice) -> None:
    """Rewrite a data file with some of its rows, and all of its records, as a bug of ours would."""
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


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Difference, match="is not a run"):
        list(verify(str(tmp_path)))


def test_a_missing_source_of_a_stage_is_an_error(root: Path) -> None:
    shutil.rmtree(root / "corpus")
    with pytest.raises(Difference, match=r"candidates was made from corpus at .*root/corpus, which is missing"):
        list(verify(str(root)))


def rewrite(root: Path, stage: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the first data file of a stage, and all of its records, as a bug of ours would."""
    manifest = read_manifest(str(root / stage))
    assert manifest
    first, *others = manifest.commits
    name = first.files[0].name
    table = change(pq.read_table(root / stage / name))
    data = storage.parquet_bytes(table)
    (root / stage / name).write_bytes(data)
    kept = table["drop_reason"].null_count
    file = replace(first.files[0], bytes=len(data), sha256=sha256(data).hexdigest(), rows=table.num_rows, kept=kept)
    commit = replace(first, files=(file,), rows=file.rows or 0, kept=kept, drops=drop_counts(table))
    (root / stage / "commits" / f"{commit.shard}.json").write_bytes(commit.json())
    (root / stage / "manifest.json").write_bytes(replace(manifest, commits=(commit, *others)).json())


def only_segments(root: Path) -> None:
    for other in ("corpus", "candidates", "models"):
        shutil.rmtree(root / other)


def first_of_each(table: pa.Table) -> pa.Table:
    documents = table["document_id"].to_pylist()
    return table.filter(pa.array([document not in documents[:place] for place, document in enumerate(documents)]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (first_of_each, r"has 1 rows but gives 2 when cut again: 1 are lost, 0 too many"),
        (
            lambda table: pa.concat_tables([table, table]),
            r"has \d rows but gives \d when cut again: 0 are lost, \d too many",
        ),
    ],
    ids=["lost", "twice"],
)
def test_segments_that_a_document_lost_or_has_twice_are_named(
    root: Path, change: Callable[[pa.Table], pa.Table], said: str
) -> None:
    only_segments(root)
    rewrite(root, "segments", change)
    with pytest.raises(Difference, match=said):
        list(verify(str(root)))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_another_recipe_another_digest_and_other_input_hashes_are_named(root: Path) -> None:
    manifest, recipe = root / "candidates/manifest.json", root / "candidates/recipe.json"
    kept = manifest.read_text(), recipe.read_text()
    edit(recipe, lambda value: value.update(recipe={"version": 99}))
    with pytest.raises(Difference, match=r"candidates/recipe\.json: recipe: found"):
        list(verify(str(root)))
    recipe.write_text(kept[1])
    for path in (manifest, recipe):
        edit(path, lambda value: value["inputs"].update(backward={"digest": "0" * 64}))
    with pytest.raises(Difference, match="fingerprint"):
        list(verify(str(root)))
    for path in (manifest, recipe):
        edit(path, lambda value: value.update(fingerprint=fingerprint({k: value[k] for k in ("recipe", "inputs")})))
    with pytest.raises(Difference, match="the digest of backward"):
        list(verify(str(root)))


def test_a_changed_input_file_is_a_difference_and_a_missing_one_is_listed_while_others_are_checked(
    root: Path, tmp_path: Path
) -> None:
    only_segments(root)
    manifest = read_manifest(str(root / "segments"))
    assert manifest
    inputs = {Path(uri).name: Path(shutil.copy(uri, tmp_path)) for uri in manifest.located["files"]}
    edit(root / "segments/manifest.json", lambda value: value.update(located={"files": [*map(str, inputs.values())]}))
    unproven: list[str] = []
    assert list(verify(str(root), unproven))
    assert unproven == []
    inputs["1.jsonl"].rename(tmp_path / "kept")
    assert "each of 22 documents" in next(verify(str(root), unproven))
    assert len(unproven) == 1
    assert "segments: 1 of 2 input files are missing" in unproven[0]
    assert main([str(root)]) == 5
    (tmp_path / "kept").rename(inputs["1.jsonl"])
    assert main([str(root)]) == 0
    inputs["1.jsonl"].write_text(inputs["1.jsonl"].read_text().replace("room", "roof"))
    with pytest.raises(Difference, match=r"1\.jsonl has changed since .* recorded sha256:"):
        list(verify(str(root)))
    assert main([str(root)]) == 1


@pytest.mark.parametrize("name", ["manifest.json", "plan.json", "recipe.json", "commits/000000.json"])
def test_a_record_that_was_cut_off_is_a_difference(root: Path, name: str) -> None:
    path = root / "segments" / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(Difference, match=rf"{name} is not JSON"):
        list(verify(str(root)))


def test_a_lost_seed_row_is_named(root: Path, tmp_path: Path, local_ray: None) -> None:
    lines = [{"instruction": f"Name cheese {n}.", "output": f"Cheese {n}."} for n in range(58)]
    (tmp_path / "seed.jsonl").write_text("\n".join(map(json.dumps, lines)))
    files = resolve("seed", [str(tmp_path / "seed.jsonl")], Hashes(str(tmp_path / "hashes.json")))
    make_seed(SeedConfig(), files, Place("seed", str(root / "seed"), "s"))
    assert "the same 58 rows" in next(verify(str(root)))
    rewrite(root, "seed", lambda table: table.slice(0, 20))
    with pytest.raises(Difference, match="38 of 58 rows lost and 0 too many"):
        list(verify(str(root)))
