"""gc deletes files that no commit will ever name and nothing else, on local storage and S3, beside active writers."""

import json
import os
import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import botocore.session
import pyarrow as pa
import pytest

from humpback_ray import storage
from humpback_ray.config import ConfigError
from humpback_ray.needs import Resources
from humpback_ray.operate import gc
from humpback_ray.operate.verify import verify
from humpback_ray.placement import PoolPlacement, TaskPlacement
from humpback_ray.records import PAIR
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.ledger import Attempt, Ledger, write_table
from humpback_ray.stages.manifest import Manifest, read_manifest
from humpback_ray.stages.outputs import TableWriter, upload_files
from humpback_ray.stages.shards import plan_rows
from humpback_ray.stages.stage import Place, Stage
from humpback_ray.storage import steps

POOL = PoolPlacement(rows_per_shard=10, cpus_per_replica=0.5)
HOUR_S = 3600.0
SHARED = [pytest.param("local"), pytest.param("s3", marks=pytest.mark.s3)]


def pairs(count: int) -> pa.Table:
    rows = [
        {"id": f"{i:04d}", "instruction": f"ask {i}", "response": f"say {i}", "source": "seed", "score": None,
         "drop_reason": "odd" if i % 7 == 3 else None}
        for i in range(count)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=PAIR)


def write_pairs(attempt: Attempt) -> Commit:
    writer = TableWriter(attempt, PAIR)
    writer.write(pairs(40))
    return writer.commit()


class Shout:
    """Upper-cases every instruction."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = [{**row, "instruction": row["instruction"].upper()} for row in table.to_pylist()]
        return pa.Table.from_pylist(rows, schema=PAIR)


@pytest.fixture(params=SHARED)
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "root")
    return f"{request.getfixturevalue('s3_bucket')}/gc-{uuid.uuid4().hex}"


def candidates(root: str, submission: str) -> Manifest:
    """Make the missing shards of a stage; on S3 in this process, since Ray's workers may have no keys."""
    corpus = read_manifest(storage.join(root, "corpus"))
    assert corpus
    stage = Stage(Place("candidates", storage.join(root, "candidates"), submission), {"v": 1}, {"corpus": corpus}, PAIR)
    if storage.is_s3(root):
        for shard in plan_rows(corpus, POOL.rows_per_shard):
            if shard.name not in stage.ledger.committed():
                with stage.ledger.begin(shard.name) as attempt:
                    loaded = shard.located(corpus).load()
                    assert isinstance(loaded, pa.Table)
                    attempt.write(Shout(POOL.resources)(loaded))
    return stage.run(Shout, (), POOL, corpus)


@pytest.fixture(scope="module")
def made(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A global step, a stage over shards and a model, all finished."""
    folder = tmp_path_factory.mktemp("made")
    root = str(folder / "root")
    put(root, "run.json", "submissions/20260101.json")
    corpus = Stage(Place("corpus", storage.join(root, "corpus"), "first"), {"v": 1}, {}, PAIR)
    corpus.once(write_pairs, (), TaskPlacement(cpus=0.5))
    candidates(root, "first")
    (folder / "model").mkdir()
    (folder / "model/model.safetensors").write_bytes(b"weights")

    def train(attempt: Attempt) -> Commit:
        return attempt.describe(upload_files(attempt, folder / "model"), {}, extra={"model": attempt.directory})

    Stage(Place("models/m0", storage.join(root, "models/m0"), "first"), {}, {}).leased(train)
    return folder / "root"


def put(root: str, *names: str) -> None:
    for name in names:
        storage.write_bytes(storage.join(root, name), b"{}")


def found(survey: gc.Survey) -> dict[str, str]:
    """Name, relative to the root → reason."""
    return {f"{group.stage}/{file.name}".lstrip("/"): group.reason for group in survey.waste for file in group.files}


def fates(stage: str) -> dict[str, tuple[str, str | None]]:
    manifest = read_manifest(stage)
    assert manifest
    rows = [row for table in manifest.tables(kept=False) for row in table.to_pylist()]
    return {row["id"]: (row["instruction"], row["drop_reason"]) for row in rows}


def names(root: str) -> set[str]:
    return {file.name for file in storage.listing(root)}


WASTE = {
    "candidates/data/000001.9.parquet": gc.LOST,
    "candidates/quarantine/000001.9.parquet": gc.LOST,
    "candidates/data/777777.1.parquet": gc.UNLISTED,
    "corpus/data/all.1-ffffff/000000.parquet": gc.LOST,
    "corpus/data/all.2-000000/000000.parquet": gc.LOST,
    "models/m0/data/all.7-abcdef/model.safetensors": gc.LOST,
    "models/m0/checkpoints/m0/progress.json": gc.SUPERSEDED,
    "models/m0/checkpoints/m0/step-000001/zero/states.pt": gc.SUPERSEDED,
    f"probe-{'0' * 32}": gc.PROBES,
}
UNKNOWN = ["candidates/data/notes.txt", "notes.txt", "nested/run.json", "nested/corpus/data/000000.1.parquet"]


@pytest.mark.ray
def test_files_to_delete_are_named_with_their_reason_and_nothing_else_is_deleted(made: Path, root: str) -> None:
    clean = {entry.name for entry in storage.upload_directory(made, root)}
    put(root, *WASTE, *UNKNOWN, "candidates/attempts/000001/0009.json", "report/index.html")
    before = names(root)
    survey = gc.survey(root, older_than_s=0)
    assert found(survey) == WASTE
    assert sorted(survey.unknown) == sorted(UNKNOWN)
    assert names(root) == before, "a survey deletes nothing"
    assert sum(group.bytes for group in gc.delete(survey.waste)) == 2 * len(WASTE)
    kept = {*UNKNOWN, "candidates/attempts/000001/0009.json", "report/index.html"}
    assert names(root) == clean | kept
    assert not gc.survey(root, older_than_s=0).waste
    assert len(list(verify(root))) == 3


@pytest.mark.ray
def test_an_active_stage_keeps_files_that_may_still_be_committed_and_ends_with_the_same_fates(
    made: Path, root: str
) -> None:
    storage.upload_directory(made, root)
    stage = storage.join(root, "candidates")
    expected = fates(stage)
    for gone in ("manifest.json", "commits/000001.json"):
        storage.delete(storage.join(stage, gone))
    put(stage, "data/000001.5.parquet", "quarantine/000001.5.parquet", "checkpoints/x.pt", "data/000002.5.parquet")
    survey = gc.survey(root, older_than_s=HOUR_S)
    assert found(survey) == {"candidates/data/000002.5.parquet": gc.LOST}
    gc.delete(survey.waste)
    assert {"data/000001.1.parquet", "data/000001.5.parquet", "data/000002.1.parquet"} <= names(stage)
    again = candidates(root, "second")
    assert fates(stage) == expected
    gc.delete(gc.survey(root, older_than_s=HOUR_S).waste)
    left = {name for name in names(stage) if name.startswith(("data/", "quarantine/", "checkpoints/"))}
    assert left == {file.name for file in again.files}
    assert len(list(verify(root))) == 3


def shards(root: str) -> Ledger:
    """An unfinished stage."""
    put(root, "run.json")
    stage = Stage(Place("candidates", storage.join(root, "candidates"), "first"), {"v": 1}, {}, PAIR)
    return stage.ledger


def test_a_reason_that_no_longer_holds_saves_the_file(root: str) -> None:
    ledger = shards(root)
    for _ in range(2):
        with ledger.begin("000000") as attempt:
            attempt.write(pairs(3))
    put(root, "candidates/data/000000.2.parquet", "models/m0/manifest.json.not", "models/m0/checkpoints/m0/a.pt")
    (losers,) = gc.survey(root, HOUR_S).waste
    commit = json.loads(storage.read_bytes(ledger.at("commits/000000.json")))
    commit |= {"attempt": 2, "files": [{**commit["files"][0], "name": "data/000000.2.parquet"}]}
    storage.write_bytes(ledger.at("commits/000000.json"), json.dumps(commit).encode())
    checkpoint = gc.Waste("models/m0", storage.join(root, "models/m0"), gc.SUPERSEDED, losers.files)
    assert gc.delete([losers, checkpoint]) == []
    assert "candidates/data/000000.2.parquet" in names(root)


def test_gc_in_a_loop_beside_two_writers_leaves_every_commit_its_file(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 6 if storage.is_s3(root) else 20
    ledger, over, deleted, collections = shards(root), threading.Event(), [], 0
    table = pairs(5)

    def linger(step: str) -> None:
        if step == "6 rows uploaded":
            last = collections + random.randint(1, 2)  # 2: one of them started after the upload
            while collections < last and not over.is_set():
                time.sleep(0.001)

    monkeypatch.setattr(steps, "hook", linger)

    def write() -> None:
        for shard in [f"{number:06d}" for number in range(count)]:
            with ledger.begin(shard) as attempt:
                attempt.write(table)
            with ledger.begin(shard) as attempt:  # one that dies after its upload
                write_table(ledger, f"data/{shard}.{attempt.number}.parquet", table)

    def collect() -> None:
        nonlocal collections
        try:
            while not over.is_set():
                deleted.extend(gc.delete(gc.survey(root, HOUR_S).waste))
                collections += 1
        finally:
            over.set()

    with ThreadPoolExecutor() as pool:
        collecting = pool.submit(collect)
        writers = [pool.submit(write), pool.submit(write)]
        try:
            for writer in writers:
                writer.result()
        finally:
            over.set()
        collecting.result()
    assert deleted
    gc.delete(gc.survey(root, HOUR_S).waste)
    commits = [ledger.commit_of(f"{number:06d}") for number in range(count)]
    named = {file.name: file.sha256 for commit in commits if commit for file in commit.files}
    assert len(named) == count
    assert {name for name in storage.list_names(ledger.uri) if name.startswith("data/")} == set(named)
    assert all(storage.sha256_of(ledger.at(name)) == sha256 for name, sha256 in named.items())


def test_temporary_files_are_deleted_by_age_and_sooner_in_a_finished_stage(made: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    storage.upload_directory(made, str(root))
    (root / "candidates/manifest.json").unlink()
    ages = {"candidates": (2, 25), "corpus": (0.5, 2)}
    for stage, hours in ages.items():
        for age in hours:
            path = root / stage / f"lease/.tmp-host-{age:g}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x")
            os.utime(path, (time.time() - age * HOUR_S,) * 2)
    survey = gc.survey(str(root), 24 * HOUR_S)
    gone = {"candidates/lease/.tmp-host-25": gc.TEMPORARY, "corpus/lease/.tmp-host-2": gc.TEMPORARY}
    assert found(survey) == gone
    assert not survey.unknown


@pytest.mark.parametrize("days", [2, 20_000])
def test_a_file_dated_in_the_future_makes_no_other_one_old(tmp_path: Path, days: int) -> None:
    root = str(tmp_path)
    ledger = shards(root)
    put(root, "candidates/data/.tmp-host-live")
    ahead = time.time() + days * 24 * HOUR_S
    for path in (ledger.at("recipe.json"), f"{root}/run.json"):
        os.utime(path, (ahead, ahead))
    assert not gc.survey(root, HOUR_S).waste
    put(root, "candidates/data/.tmp-host-ahead")
    os.utime(f"{root}/candidates/data/.tmp-host-ahead", (ahead, ahead))
    assert not gc.survey(root, HOUR_S).waste


@pytest.mark.s3
def test_unfinished_uploads_are_aborted_by_age_and_unknown_ones_are_named(s3_bucket: str) -> None:
    root = f"{s3_bucket}/gc-{uuid.uuid4().hex}"
    ledger = shards(root)
    client = botocore.session.get_session().create_client("s3")
    for name in ("candidates/data/000000.1.parquet", "notes.bin"):
        bucket, key = storage.join(root, name).removeprefix("s3://").split("/", 1)
        client.create_multipart_upload(Bucket=bucket, Key=key)
    with ledger.begin("000000") as attempt:
        attempt.write(pairs(3))
    assert not gc.survey(root, HOUR_S).waste, "an upload that is an hour old may be alive"
    survey = gc.survey(root, 0)
    assert found(survey) == {"candidates/data/000000.1.parquet": gc.UPLOADS}
    assert survey.unknown == ["notes.bin"]
    gc.delete(survey.waste)
    assert [upload.name for upload in storage.unfinished_uploads(root)] == ["notes.bin"]
    assert "candidates/data/000000.1.parquet" in names(root), "the file of that name is not the upload"


def test_a_link_out_of_the_root_is_not_followed(tmp_path: Path) -> None:
    other, root = tmp_path / "other", tmp_path / "root"
    for where in (other, root):
        ledger = shards(str(where))
        with ledger.begin("000000") as attempt:
            attempt.write(pairs(3))
        put(str(where), "candidates/data/000000.2.parquet")
    (root / "seed").symlink_to(other / "candidates")
    gc.delete(gc.survey(str(root), 0).waste)
    assert not (root / "candidates/data/000000.2.parquet").exists()
    assert (other / "candidates/data/000000.2.parquet").exists()


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run"):
        gc.survey(str(tmp_path), 0)
