"""Which attempts count against a shard, how shards are divided into blocks, and what a manifest keeps."""

from pathlib import Path
from typing import Any

import pytest

from humpback_ray import storage
from humpback_ray.stages.lease import Lease
from humpback_ray.stages.ledger import MOST_LOST_NODES, AttemptRecord, Ledger, charged


def attempt(number: int, **more: Any) -> AttemptRecord:
    record: Any = {"attempt": number, "submission": "ours", "node_id": "alive", **more}
    return record


@pytest.mark.parametrize(
    ("what", "made", "counted"),
    [
        ("it raised", {"error": "ValueError", "charged": True}, True),
        ("its neighbor's process was ended", {"error": "...", "charged": False}, False),
        ("its process died silently", {}, True),
        ("its node was lost", {"node_id": "gone"}, False),
        ("it raised, and its node was lost later", {"node_id": "gone", "error": "ValueError", "charged": True}, True),
        ("another submission's", {"submission": "theirs"}, False),
    ],
)
def test_an_attempt_counts_if_the_shard_may_have_ended_it(what: str, made: dict[str, Any], counted: bool) -> None:
    assert bool(charged([attempt(1, **made)], "ours", {"alive"})) is counted, what


def test_a_shard_that_loses_node_after_node_is_suspect_itself() -> None:
    lost = [attempt(number, node_id="gone") for number in range(MOST_LOST_NODES)]
    assert not charged(lost[:-1], "ours", {"alive"})
    assert charged(lost, "ours", {"alive"}) == lost


def test_an_error_is_not_hidden_if_storage_cannot_record_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(str(tmp_path), "s")

    def full(*_: Any) -> bool:
        raise OSError(28, "No space left on device")

    def fail() -> None:
        with ledger.begin("000000"):
            monkeypatch.setattr(storage, "create", full)
            raise ValueError("the true cause")

    with pytest.raises(ValueError, match="the true cause"):
        fail()


def test_files_that_are_not_the_ledgers_are_ignored(tmp_path: Path) -> None:
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
