"""gc deletes what no commit will ever name and nothing else, on local storage and S3, beside writers at work."""

import json
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from humpback_ray import gc, storage
from humpback_ray.config import ConfigError
from humpback_ray.ledger import Attempt, Commit, Ledger, Manifest, write_table
from humpback_ray.placement import PoolPlacement, Resources, TaskPlacement
from humpback_ray.records import PAIR
from humpback_ray.stage import Place, Stage, TableWriter, upload_files
from humpback_ray.verify import verify

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


def candidates(root: str, corpus: Manifest, submission: str = "first") -> Manifest:
    stage = Stage(
        Place("candidates", storage.join(root, "candidates"), submission), {"v": 1}, {"corpus": corpus}, PAIR
    )
    return stage.run(Shout, (), POOL, corpus)


def make_run(root: str, folder: Path) -> dict[str, Manifest]:
    """A global step, a stage over shards and a model, all finished."""
    storage.write_bytes(storage.join(root, "run.json"), b"{}")
    storage.write_bytes(storage.join(root, "submissions/20260101.json"), b"{}")
    corpus = Stage(Place("corpus", storage.join(root, "corpus"), "first"), {"v": 1}, {}, PAIR)
    done = {"corpus": corpus.once(write_pairs, (), TaskPlacement(cpus=0.5))}
    done["candidates"] = candidates(root, done["corpus"])
    (folder / "model").mkdir()
    (folder / "model/model.safetensors").write_bytes(b"weights")

    def train(attempt: Attempt) -> Commit:
        return attempt.describe(upload_files(attempt, folder / "model"), {}, extra={"model": attempt.directory})

    done["models/m0"] = Stage(Place("models/m0", storage.join(root, "models/m0"), "first"), {}, {}).leased(train)
    return done


def put(root: str, *names: str) -> None:
    for name in names:
        storage.write_bytes(storage.join(root, name), name.encode())


def found(survey: gc.Survey) -> dict[str, str]:
    """Name, relative to the root → reason."""
    return {f"{group.stage}/{file.name}".lstrip("/"): group.reason for group in survey.waste for file in group.files}


def fates(manifest: Manifest) -> dict[str, tuple[str, str | None]]:
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
def test_what_may_go_is_named_with_its_reason_and_nothing_else_is_deleted(
    local_ray: None, root: str, tmp_path: Path
) -> None:
    done = make_run(root, tmp_path)
    clean = names(root)
    put(root, *WASTE, *UNKNOWN, "candidates/attempts/000001/0009.json", "report/index.html")
    before = names(root)
    survey = gc.survey(root, older_than_s=0)
    assert found(survey) == WASTE
    assert sorted(survey.unknown) == sorted(UNKNOWN)
    assert names(root) == before, "a survey deletes nothing"
    assert sum(group.bytes for group in gc.delete(survey.waste)) == sum(map(len, WASTE))
    kept = {*UNKNOWN, "candidates/attempts/000001/0009.json", "report/index.html"}
    assert names(root) == clean | kept
    assert not gc.survey(root, older_than_s=0).waste
    assert len(list(verify(root))) == len(done)


@pytest.mark.ray
def test_a_stage_at_work_keeps_what_may_still_be_committed_and_ends_with_the_same_fates(
    local_ray: None, root: str, tmp_path: Path
) -> None:
    done = make_run(root, tmp_path)
    expected = fates(done["candidates"])
    stage = storage.join(root, "candidates")
    for gone in ("manifest.json", "commits/000001.json"):
        storage.delete(storage.join(stage, gone))
    put(stage, "data/000001.5.parquet", "quarantine/000001.5.parquet", "checkpoints/x.pt", "data/000002.5.parquet")
    survey = gc.survey(root, older_than_s=HOUR_S)
    assert found(survey) == {"candidates/data/000002.5.parquet": gc.LOST}
    gc.delete(survey.waste)
    assert {"data/000001.1.parquet", "data/000001.5.parquet", "data/000002.1.parquet"} <= names(stage)
    again = candidates(root, done["corpus"], "second")
    assert fates(again) == expected
    gc.delete(gc.survey(root, older_than_s=HOUR_S).waste)
    left = {name for name in names(stage) if name.startswith(("data/", "quarantine/", "checkpoints/"))}
    assert left == {file.name for file in again.files}
    assert len(list(verify(root))) == len(done)


def shards(root: str) -> Ledger:
    """An unfinished stage."""
    storage.write_bytes(storage.join(root, "run.json"), b"{}")
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


@pytest.mark.parametrize("count", [120])
def test_gc_in_a_loop_beside_two_writers_leaves_every_commit_its_file(root: str, count: int) -> None:
    count = count // 4 if storage.is_s3(root) else count
    ledger, over, deleted = shards(root), threading.Event(), []
    table = pairs(5)

    def write(order: Callable[[list[str]], list[str]]) -> None:
        for shard in order([f"{number:06d}" for number in range(count)]):
            with ledger.begin(shard) as attempt:
                attempt.write(table)
            with ledger.begin(shard) as attempt:  # one that dies after its upload
                write_table(ledger, f"data/{shard}.{attempt.number}.parquet", table)

    def collect() -> None:
        while not over.is_set():
            deleted.extend(gc.delete(gc.survey(root, HOUR_S).waste))

    with ThreadPoolExecutor() as pool:
        collecting = pool.submit(collect)
        writers = [pool.submit(write, order) for order in (list, lambda names: names[::-1])]
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


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run"):
        gc.survey(str(tmp_path), 0)
