"""Which attempts count against a shard, how shards are divided into blocks, and what a manifest keeps."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray import storage
from humpback_ray.operate.verify import Difference, verify_stage
from humpback_ray.records import METRICS
from humpback_ray.stages.commits import Commit, DataFile
from humpback_ray.stages.lease import Lease
from humpback_ray.stages.ledger import MOST_LOST_NODES, Attempt, Ledger, charged, write_table
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.pool import SHARDS_PER_BLOCK, SINGLE_BLOCKS, groups
from humpback_ray.stages.shards import Shard
from humpback_ray.stages.stage import Place, Stage


def attempt(number: int, **more: Any) -> dict[str, Any]:
    return {"attempt": number, "submission": "ours", "node_id": "alive", **more}


@pytest.mark.parametrize(
    ("what", "made", "counted"),
    [
        ("it raised", {"error": "ValueError", "charged": True}, True),
        ("its neighbour's process was ended", {"error": "...", "charged": False}, False),
        ("its process died without a word", {}, True),
        ("its node was lost", {"node_id": "gone"}, False),
        ("it raised, and its node was lost later", {"node_id": "gone", "error": "ValueError", "charged": True}, True),
        ("another submission's", {"submission": "theirs"}, False),
    ],
)
def test_an_attempt_counts_if_its_end_may_be_the_shards_fault(what: str, made: dict[str, Any], counted: bool) -> None:
    assert bool(charged([attempt(1, **made)], "ours", {"alive"})) is counted, what


def test_a_shard_under_which_node_after_node_is_lost_is_suspect_itself() -> None:
    lost = [attempt(number, node_id="gone") for number in range(MOST_LOST_NODES)]
    assert not charged(lost[:-1], "ours", {"alive"})
    assert charged(lost, "ours", {"alive"}) == lost


@given(st.integers(0, 3 * SINGLE_BLOCKS))
def test_groups_hold_every_shard_once_in_order_and_end_with_single_ones(count: int) -> None:
    shards = [Shard(str(number)) for number in range(count)]
    made = list(groups(shards))
    assert [shard for group in made for shard in group] == shards
    assert all(1 <= len(group) <= SHARDS_PER_BLOCK for group in made)
    assert all(len(group) == 1 for group in made[-min(count, SINGLE_BLOCKS) :])


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = DataFile("data/0.1.parquet", 10, "ab", 3, 2)
    commits = tuple(
        Commit(
            str(n),
            1,
            (file,),
            3,
            2,
            {"quarantined": 1},
            0.5,
            quarantine=file,
            metrics=replace(file, name="data/0.1/metrics.parquet"),
            versions={"ray": "2"},
            requests={"GetObject": n},
        )
        for n in range(3)
    )
    made = Manifest("uri", "stage", "f", {"a": 1}, {}, commits, 4, 1.0, 2.0, {"PutObject": 5})
    read = Manifest.parse("uri", json.loads(made.json()))
    assert read == made
    assert read.requests == {"PutObject": 5, "GetObject": 3}
    assert read.quarantined == 3
    assert read.digest == made.digest


def trained(root: Path, seconds: float) -> Manifest:
    """A stage with metrics of two steps."""
    steps = [{"step": step, "loss": 2.0, "seconds": seconds} for step in (1, 2)]

    def work(attempt: Attempt) -> Commit:
        file = write_table(attempt.ledger, "data/all.1/metrics.parquet", pa.Table.from_pylist(steps, schema=METRICS))
        return replace(attempt.describe([], {}), metrics=file)

    return Stage(Place("models/m0", str(root), "test"), {}, {}).leased(work)


def test_metrics_are_read_and_proven_but_their_times_are_no_part_of_a_models_identity(tmp_path: Path) -> None:
    made = trained(tmp_path / "one", 0.5)
    assert made.metrics().column("seconds").to_pylist() == [0.5, 0.5]
    assert made.digest == trained(tmp_path / "other", 0.7).digest
    verify_stage(made)
    path = tmp_path / "one/data/all.1/metrics.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(Difference, match=r"metrics\.parquet: SHA-256"):
        verify_stage(made)


def test_the_card_beside_a_models_weights_is_no_part_of_its_identity() -> None:
    def model(card: str, weights: str) -> str:
        named = {"README.md": card, "model.safetensors": weights}
        files = tuple(DataFile(f"data/all.1-abc/{name}", 9, sha256) for name, sha256 in named.items())
        commit = Commit("all", 1, files, 0, 0, {}, 1.0)
        return Manifest("uri", "models/m0", "f", {}, {}, (commit,), 1, 1.0, 2.0).digest

    assert model("of the run out/a", "w") == model("of the run out/b", "w") != model("of the run out/a", "other w")


def test_an_error_is_not_hidden_by_storage_that_cannot_note_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(str(tmp_path), "s")

    def full(*_: Any) -> bool:
        raise OSError(28, "No space left on device")

    def fail() -> None:
        with ledger.begin("000000"):
            monkeypatch.setattr(storage, "create", full)
            raise ValueError("the true cause")

    with pytest.raises(ValueError, match="the true cause"):
        fail()


def test_files_that_are_not_the_ledgers_are_left_alone(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), "s")
    with ledger.begin("000000"):
        pass
    for stray in (".DS_Store", ".nfs0001", "000000.json~", "notes.txt"):
        for folder in ("commits", "attempts", "attempts/000000", "lease"):
            storage.write_bytes(str(tmp_path / folder / stray), b"\0")
    assert ledger.committed() == set()
    assert ledger.attempts_made() == {"000000": 1}
    assert len(ledger.attempts("000000")) == 1
    assert ledger.begin("000000").number == 2
    with Lease(str(tmp_path), "s") as lease:
        assert lease.epoch == 1


def test_a_commit_that_was_cut_off_is_named(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "commits/000000.json"), b'{"shard"')
    with pytest.raises(storage.Damaged, match=r"commits/000000\.json is not JSON .*; 8 bytes"):
        Ledger(str(tmp_path), "s").commit_of("000000")
    storage.write_bytes(str(tmp_path / "commits/000000.json"), b'{"shard": "000000", "host": 1}')
    with pytest.raises(storage.Damaged, match=r"is not what a run writes there \(KeyError"):
        Ledger(str(tmp_path), "s").commit_of("000000")
