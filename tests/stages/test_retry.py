"""Quarantined rows are tried again: those that now work replace their blank rows, and nothing else changes."""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from humpback_ray import storage
from humpback_ray.config import ConfigError
from humpback_ray.corpus.filters import FilterRecipe
from humpback_ray.corpus.readers import default_readers
from humpback_ray.corpus.segments import Segmenter, SegmentRecipe
from humpback_ray.needs import Resources
from humpback_ray.operate import gc
from humpback_ray.operate.verify import verify_stage
from humpback_ray.placement import PoolPlacement, TaskPlacement
from humpback_ray.records import PAIR, QUARANTINED, SEGMENT
from humpback_ray.run import refuse_read
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.errors import StageFailed
from humpback_ray.stages.manifest import Manifest, read_manifest
from humpback_ray.stages.pool import Pool
from humpback_ray.stages.shards import Shard
from humpback_ray.stages.stage import Place, Stage
from humpback_ray.storage import InputFile
from humpback_ray.storage.inventory import Hashes, resolve
from jobs import retry
from tests.jobs import prepared
from tests.stages.test_poison import DiesOf
from tests.stages.test_stage import fates, make_source

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
POOL = PoolPlacement(rows_per_shard=8, cpus_per_replica=0.5, max_attempts=1)
LOST = ("0006", "0014", "2010", "2011")


def stage(root: Path, name: str, source: Manifest, retry: bool = False) -> Stage:
    """The stage `name` of the root, opened with or without trying its quarantined rows again."""
    check = functools.partial(refuse_read, str(root)) if retry else None
    return Stage(Place(name, str(root / name), "retry" if retry else "first", check), {}, {"source": source}, PAIR)


@pytest.fixture(scope="module")
def source(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    place = Place("source", str(tmp_path_factory.mktemp("retry") / "source"), "first")
    return Stage(place, {"version": 1}, {}, PAIR).once(make_source, ([25, 0, 13],), TaskPlacement(cpus=0.5))


@pytest.fixture(scope="module")
def made(source: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    deaths = dict.fromkeys(LOST, "raise_")
    return stage(tmp_path_factory.mktemp("lossy"), "seed", source).run(DiesOf, (deaths,), POOL, source)


@pytest.fixture
def lossy(made: Manifest, tmp_path: Path) -> Manifest:
    """A stage that lost the rows LOST; a copy for each test."""
    shutil.copytree(made.uri, tmp_path / "seed")
    return replace(made, uri=str(tmp_path / "seed"))


def again(root: Path, source: Manifest, deadly: Mapping[str, str]) -> Manifest:
    """Try the quarantined rows again with a worker that some rows still kill."""
    return stage(root, "seed", source, retry=True).run(DiesOf, (deadly,), POOL, source)


def test_rows_that_now_work_replace_those_in_quarantine(source: Manifest, lossy: Manifest, tmp_path: Path) -> None:
    assert lossy.quarantined == len(LOST)
    before = {file.name: file.sha256 for file in lossy.files}
    done = again(tmp_path, source, {"0006": "exit_"})
    assert read_manifest(lossy.uri) == done
    assert fates(done) == {row: QUARANTINED if row == "0006" else None for row in fates(lossy)}
    assert [(row["id"], row["index"]) for row in done.quarantine().to_pylist()] == [("0006", 5)]
    assert "out of luck at 0006" in done.quarantine()["last_words"][0].as_py()
    retried = {commit.shard for commit in lossy.commits if commit.quarantine}
    assert [commit.shard for commit in done.commits] == [
        f"{commit.shard}r1" if commit.shard in retried else commit.shard for commit in lossy.commits
    ]
    assert before.items() >= {file.name: file.sha256 for file in done.files if "r1" not in file.name}.items()
    assert "each of" in verify_stage(done)

    done = again(tmp_path, source, {})
    assert done.quarantined == 0
    assert [commit.shard for commit in done.commits if commit.shard.endswith("r2")] == ["000000r2"]
    assert "each of" in verify_stage(done)
    assert again(tmp_path, source, dict.fromkeys(LOST, "kill")) == done  # nothing is left to try


def test_without_a_request_nothing_is_tried_again(source: Manifest, lossy: Manifest, tmp_path: Path) -> None:
    assert stage(tmp_path, "seed", source).run(DiesOf, ({},), POOL, source) == lossy


def test_if_rows_that_worked_before_fail_the_machine_is_to_blame_and_nothing_changes(
    source: Manifest, lossy: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("humpback_ray.stages.isolation.PATIENCE_S", 3)
    with pytest.raises(StageFailed, match="and with one that worked before"):
        again(tmp_path, source, dict.fromkeys(fates(lossy), "raise_"))
    assert read_manifest(lossy.uri) == lossy


def test_a_stage_that_a_later_stage_has_read_does_not_change(source: Manifest, lossy: Manifest, tmp_path: Path) -> None:
    Stage(Place("corpus", str(tmp_path / "corpus"), "first"), {}, {"from": lossy}, PAIR)
    with pytest.raises(ConfigError, match=r"seed of .* was read by corpus, so it cannot change"):
        again(tmp_path, source, {})
    assert read_manifest(lossy.uri) == lossy


def test_a_stage_that_is_read_while_its_rows_are_tried_again_does_not_change(
    source: Manifest, lossy: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(pool: Pool, shards: Sequence[tuple[Shard, Commit]]) -> None:
        retry_(pool, shards)
        Stage(Place("corpus", str(tmp_path / "corpus"), "first"), {}, {"from": lossy}, PAIR)

    retry_ = Pool.retry
    monkeypatch.setattr(Pool, "retry", begun)
    with pytest.raises(ConfigError, match="was read by corpus"):
        again(tmp_path, source, {})
    assert read_manifest(lossy.uri) == lossy
    assert "each of" in verify_stage(lossy)


def test_a_retrys_unpublished_commit_is_published_by_the_next(
    source: Manifest, lossy: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", interrupt_at("manifest.json"))
        with pytest.raises(KeyboardInterrupt):
            again(tmp_path, source, {})
    assert read_manifest(lossy.uri) == lossy
    attempts = stage(tmp_path, "seed", source).ledger.attempts_made().total()
    done = again(tmp_path, source, dict.fromkeys(LOST, "kill"))
    assert done.quarantined == 0
    assert done.attempts == attempts


def interrupt_at(name: str) -> Callable[[str, bytes], None]:
    write = storage.write_bytes

    def interrupted(uri: str, data: bytes) -> None:
        if uri.endswith(name):
            raise KeyboardInterrupt
        write(uri, data)

    return interrupted


def test_gc_leaves_an_uncommitted_retry_alone(source: Manifest, lossy: Manifest, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    on_its_way = tmp_path / "seed/data/000000r1.1.parquet"
    on_its_way.write_bytes(b"half of it")
    assert gc.survey(str(tmp_path), older_than_s=60).waste == []
    os.utime(on_its_way, (0, 0))
    assert [[file.name for file in waste.files] for waste in gc.survey(str(tmp_path), 60).waste] == [
        ["data/000000r1.1.parquet"]
    ]
    on_its_way.unlink()
    done = again(tmp_path, source, {})
    gc.delete(gc.survey(str(tmp_path), 0).waste)
    assert "each of" in verify_stage(done)


class Fussy(Segmenter):
    """Fails on pages that mention certain things."""

    def __init__(self, words: str, recipe: SegmentRecipe, resources: Resources) -> None:
        super().__init__(recipe)
        self.words = words

    def __call__(self, file: InputFile) -> pa.Table:
        return self.looked_at(super().__call__(file))

    def part(self, file: InputFile, first: int, last: int) -> pa.Table:
        return self.looked_at(super().part(file, first, last))

    def looked_at(self, made: pa.Table) -> pa.Table:
        if any(self.words in text for text in made["text"].to_pylist()):
            raise RuntimeError(self.words)
        return made


def test_records_of_files_are_found_again_by_their_index_even_if_they_are_duplicates(
    local_ray: None, tmp_path: Path
) -> None:
    texts = ["A page of some length about ships and the sea.", "A page of some length about poison and its use."]
    records = [{"id": f"page-{i % 2}", "text": texts[i % 2]} for i in range(6)]  # each page three times
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    files = resolve("inputs", [str(tmp_path / "in.jsonl")], Hashes(str(tmp_path / "hashes.json")))
    recipe = SegmentRecipe(filters=FilterRecipe(min_chars=20, language=None, drop_empty_headers=False))
    identity = {"readers": [r.model_dump(mode="json") for r in default_readers()], "segments": recipe.identity()}

    def cut(words: str, name: str, check: bool = False) -> Manifest:
        place = Place("segments", str(tmp_path / name / "segments"), "s", (lambda _: None) if check else None)
        pool = POOL.model_copy(update={"max_quarantined_share": 0.9})
        return Stage(place, identity, {"files": files}, SEGMENT).run(Fussy, (words, recipe), pool, files)

    whole, lossy = cut("-", "whole"), cut("poison", "lossy")
    assert lossy.drops[QUARANTINED] == 3
    assert len(set(lossy.quarantine()["id"].to_pylist())) == 3
    verify_stage(lossy)
    done = cut("-", "lossy", check=True)
    assert fates(done) == fates(whole)
    verify_stage(done)


FAULT = """
import os
from humpback_ray import augment

predict = augment.Predictor.__call__


async def call(self, segments):
    if os.path.exists(os.environ["ILL"]) and any("Segment 7 " in text for text in segments["text"].to_pylist()):
        raise RuntimeError("CUDA error: an illegal memory access")
    return await predict(self, segments)


augment.Predictor.__call__ = call
"""
"""sitecustomize.py of a machine on which one segment fails while the file ILL exists."""


def test_the_job_retries_with_the_configuration_of_the_last_submission(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = prepared.prepare(tmp_path, rows=30)
    run, ill = tmp_path / "run", tmp_path / "ill"
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(FAULT)
    ill.touch()
    path = os.pathsep.join([str(tmp_path / "site"), str(prepared.REPOSITORY)])
    variables = {**os.environ, "PYTHONPATH": path, "ILL": str(ill)}

    def job(name: str, *arguments: str) -> str:
        command = [sys.executable, "-m", f"jobs.{name}", *arguments]
        done = subprocess.run(
            command, cwd=prepared.REPOSITORY, env=variables, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    out = job("augment", str(config), "augment.placement.max_attempts=1")
    assert f"python -m jobs.retry {run} candidates" in out
    lossy = read_manifest(str(run / "candidates"))
    assert lossy is not None
    assert lossy.quarantined == 1
    out = job("retry", str(run), "candidates")
    assert "candidates: 0 of 1 quarantined rows succeeded" in out
    assert "CUDA error: an illegal memory access" in out
    ill.unlink()
    assert "candidates: 1 of 1 quarantined rows succeeded" in job("retry", str(run), "candidates")
    done = read_manifest(str(run / "candidates"))
    assert done is not None
    assert (done.rows, done.quarantined) == (30, 0)
    verify_stage(done)
    assert retry.main([str(run), "candidates"]) == 0
    assert "has no rows in quarantine" in capsys.readouterr().out
    assert retry.main([str(run), "corpus"]) == 2
    assert f"retry it there: python -m jobs.retry {tmp_path / 'given'} corpus" in capsys.readouterr().out
    assert retry.main([str(run), "round-1/scores"]) == 2
    assert "has no finished stage round-1/scores; finished stages: " in capsys.readouterr().out
    assert retry.main([str(tmp_path), "candidates"]) == 2
    assert "is not a run" in capsys.readouterr().out
