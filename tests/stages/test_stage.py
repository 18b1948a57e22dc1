"""Stages on a real Ray: every id leaves once, drift is refused, failures are bounded and named."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from humpback_ray import storage
from humpback_ray.needs import Resources
from humpback_ray.placement import PoolPlacement, TaskPlacement
from humpback_ray.records import PAIR
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.errors import StageFailed
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.outputs import TableWriter
from humpback_ray.stages.stage import Drift, Place, Stage

pytestmark = pytest.mark.ray
POOL = PoolPlacement(rows_per_shard=10, cpus_per_replica=0.5)


def pairs(count: int, first: int = 0) -> pa.Table:
    rows = [
        {"id": f"{i:04d}", "instruction": f"ask {i}", "response": f"say {i}", "source": "seed", "score": None,
         "drop_reason": "odd" if i % 7 == 3 else None}
        for i in range(first, first + count)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=PAIR)


def make_source(attempt: Attempt, counts: list[int]) -> Commit:
    writer = TableWriter(attempt, PAIR)
    for index, count in enumerate(counts):
        writer.write(pairs(count, first=1000 * index))
    return writer.commit()


class Shout:
    """Upper-cases every instruction, and drops those that end in 5."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources

    async def __call__(self, table: pa.Table) -> pa.Table:
        rows = [
            {
                **row,
                "instruction": row["instruction"].upper(),
                "drop_reason": "five" if row["id"].endswith("5") else None,
            }
            for row in table.to_pylist()
        ]
        return pa.Table.from_pylist(rows, schema=PAIR)


class Loses(Shout):
    async def __call__(self, table: pa.Table) -> pa.Table:
        return (await super().__call__(table)).slice(1)


class DiesOnce:
    """Kills its own process the first time it sees row 0012."""

    def __init__(self, marker: str, resources: Resources) -> None:
        self.marker = Path(marker)

    def __call__(self, table: pa.Table) -> pa.Table:
        if "0012" in table["id"].to_pylist() and not self.marker.exists():
            self.marker.write_text("died")
            os.kill(os.getpid(), signal.SIGKILL)
        return table


class NeverStarts(Shout):
    def __init__(self, resources: Resources) -> None:
        raise MemoryError("80 GB wanted, 1 GB there")


class RaisesOn:
    def __init__(self, rows: str, resources: Resources) -> None:
        self.rows = rows

    def __call__(self, table: pa.Table) -> pa.Table:
        for row in table["id"].to_pylist():
            if re.fullmatch(self.rows, row):
                raise ValueError(f"cannot read row {row}")
        return table


def place(tmp_path: Path, name: str, submission: str = "first") -> Place:
    return Place(name, str(tmp_path / name), submission)


@pytest.fixture(scope="module")
def source(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    stage = Stage(place(tmp_path_factory.mktemp("source"), "source"), {"version": 1}, {}, PAIR)
    return stage.once(make_source, ([25, 0, 13],), TaskPlacement(cpus=0.5))


def fates(manifest: Manifest) -> dict[str, str | None]:
    tables = manifest.tables(["id", "drop_reason"], kept=False)
    return {row["id"]: row["drop_reason"] for table in tables for row in table.to_pylist()}


@pytest.fixture(scope="module")
def shouted(source: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A finished stage, in shards of three rows."""
    stage = Stage(place(tmp_path_factory.mktemp("shout"), "shout"), {"version": 1}, {"source": source}, PAIR)
    return stage.run(Shout, (), POOL.model_copy(update={"rows_per_shard": 3}), source)


def test_a_stage_gives_every_kept_id_exactly_one_fate(source: Manifest, shouted: Manifest) -> None:
    kept_before = {key for key, reason in fates(source).items() if reason is None}
    assert fates(shouted) == {key: "five" if key.endswith("5") else None for key in kept_before}
    assert shouted.rows == source.kept
    assert shouted.drops == {"five": sum(key.endswith("5") for key in kept_before)}
    again = Stage(Place("shout", shouted.uri, "second"), {"version": 1}, {"source": source}, PAIR)
    assert again.done == shouted


def test_rows_per_shard_changes_no_id_and_no_fate(source: Manifest, shouted: Manifest, tmp_path: Path) -> None:
    stage = Stage(place(tmp_path, "shout"), {"version": 1}, {"source": source}, PAIR)
    whole = stage.run(Shout, (), POOL.model_copy(update={"rows_per_shard": 1000}), source)
    assert fates(whole) == fates(shouted)
    assert [len(result.commits) for result in (shouted, whole)] == [11, 1]


def test_another_recipe_or_input_is_refused_and_the_field_named(source: Manifest, tmp_path: Path) -> None:
    Stage(place(tmp_path, "shout"), {"loudness": 1}, {"source": source}, PAIR)
    with pytest.raises(Drift, match=r"recipe\.loudness = 1, but this run has 2"):
        Stage(place(tmp_path, "shout"), {"loudness": 2}, {"source": source}, PAIR)
    other = Stage(place(tmp_path, "other"), {}, {}, PAIR).leased(partial(make_source, counts=[5]))
    with pytest.raises(Drift, match=r"inputs\.source\.digest"):
        Stage(place(tmp_path, "shout"), {"loudness": 1}, {"source": other}, PAIR)


def test_a_worker_that_loses_a_row_fails_the_stage_and_publishes_nothing(source: Manifest, tmp_path: Path) -> None:
    stage = Stage(place(tmp_path, "loses"), {}, {"source": source}, PAIR)
    with pytest.raises(
        StageFailed, match=r"shard 000000 (lost|failed with whatever).* last: ValueError: .*lost 1 of 1 ids"
    ):
        stage.run(Loses, (), POOL.model_copy(update={"rows_per_shard": 1000, "max_attempts": 1}), source)
    assert not storage.exists(str(tmp_path / "loses/manifest.json"))


def test_a_killed_actor_costs_one_attempt_and_no_row(source: Manifest, tmp_path: Path) -> None:
    stage = Stage(place(tmp_path, "dies"), {}, {"source": source}, PAIR)
    done = stage.run(DiesOnce, (str(tmp_path / "marker"),), POOL.model_copy(update={"rows_per_shard": 5}), source)
    assert (tmp_path / "marker").exists()
    assert fates(done) == {key: None for key, reason in fates(source).items() if reason is None}
    assert len(done.commits) < done.attempts <= len(done.commits) + POOL.shards_in_flight


def test_a_shard_that_always_raises_fails_the_stage_with_its_error_and_a_resume_with_its_input_moved_finishes_it(
    source: Manifest, tmp_path: Path
) -> None:
    here = replace(source, uri=str(shutil.copytree(source.uri, tmp_path / "source")))
    stage = Stage(place(tmp_path, "raises"), {}, {"source": here}, PAIR)
    twice = POOL.model_copy(update={"max_attempts": 2})
    said = r"3 shards are committed, but shard 000001 (lost|failed) .*; last: ValueError: cannot read row 001"
    with pytest.raises(StageFailed, match=said):
        stage.run(RaisesOn, ("001[2-6]",), twice, here)
    assert len(stage.ledger.committed()) == 3
    moved = replace(here, uri=str(Path(here.uri).rename(tmp_path / "moved")))
    again = Stage(place(tmp_path, "raises", "second"), {}, {"source": moved}, PAIR)
    done = again.run(RaisesOn, ("none",), twice, moved)
    assert done.rows == source.kept


def test_a_worker_that_cannot_start_fails_the_stage_with_its_error(source: Manifest, tmp_path: Path) -> None:
    stage = Stage(place(tmp_path, "never"), {}, {"source": source}, PAIR)
    with pytest.raises(StageFailed, match=r"never: its workers could not run: .*MemoryError: 80 GB wanted") as error:
        stage.run(NeverStarts, (), POOL, source)
    assert "\n" not in str(error.value)


def test_commits_without_a_manifest_are_published(source: Manifest, tmp_path: Path) -> None:
    unpublished = Path(shutil.copytree(source.uri, tmp_path / "source"))
    (unpublished / "manifest.json").unlink()
    stage = Stage(Place("source", str(unpublished), "second"), {"version": 1}, {}, PAIR)
    assert stage.once(make_source, ([1],), TaskPlacement(cpus=0.5)).rows == source.rows


def test_a_retried_create_that_had_succeeded_is_a_win_and_a_lost_race_leaves_no_file(tmp_path: Path) -> None:
    stage = Stage(place(tmp_path, "race"), {}, {}, PAIR)
    with stage.ledger.begin("000000") as mine, stage.ledger.begin("000000") as other:
        commit = mine.write(pairs(5))
        assert stage.ledger.commit(commit) == commit, "the same commit again, as a retried request would"
        assert (tmp_path / "race" / commit.files[0].name).exists()
        assert other.write(pairs(5)) == commit
    assert os.listdir(tmp_path / "race/data") == ["000000.1.parquet"]
    assert [
        json.loads(path.read_text())["attempt"] for path in sorted((tmp_path / "race/attempts/000000").iterdir())
    ] == [1, 2]
