"""status tells how far a run is from storage alone, with few reads."""

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from humpback_ray import storage
from humpback_ray.config import ConfigError
from humpback_ray.operate.status import BEAT_QUIET_S, StageStatus, expected_stages, status
from humpback_ray.records import PAIR
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.drivers import Presence, beat_uri
from humpback_ray.stages.lease import Lease
from humpback_ray.stages.ledger import Attempt, Ledger, write_table
from humpback_ray.stages.outputs import TableWriter
from humpback_ray.stages.shards import Shard
from humpback_ray.stages.stage import Place, Stage
from humpback_ray.storage import files

GIVEN = {"recipe": {"inputs": ["a"]}}
CONFIG = {
    "root": "there", "base_model": "base", "reuse": {}, "seed": GIVEN, "corpus": GIVEN,
    "curate": {"recipe": {"rounds": [{}]}},
}  # fmt: skip


@pytest.fixture(params=[pytest.param("local"), pytest.param("s3", marks=pytest.mark.s3)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A run that was submitted and has done nothing yet."""
    local = request.param == "local"
    root = str(tmp_path / "root") if local else f"{request.getfixturevalue('s3_bucket')}/status-{uuid.uuid4().hex}"
    submit(root, CONFIG)
    return root


def submit(root: str, config: dict[str, Any], **how: Any) -> None:
    put(root, "run.json", {})
    value = {"config": config, "reuse": config["reuse"], "versions": {"ray": "2"}, "started": time.time(), **how}
    put(root, "submissions/20260101T000000Z-abc.json", value)


def put(root: str, name: str, value: Any) -> None:
    storage.write_bytes(storage.join(root, name), json.dumps(value).encode())


def place(root: str, name: str) -> Place:
    return Place(name, storage.join(root, name), "first")


def pairs(count: int, quarantined: int = 0) -> pa.Table:
    rows = [
        {"id": f"{i}", "instruction": "", "response": "", "source": "", "score": None,
         "drop_reason": "quarantined" if i < quarantined else None}
        for i in range(count)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=PAIR)


def finish_seed(root: str) -> None:
    def write(attempt: Attempt) -> Commit:
        writer = TableWriter(attempt, PAIR)
        writer.write(pairs(7))
        return writer.commit()

    Stage(place(root, "seed"), {}, {}, PAIR).leased(write)


def begin_candidates(root: str, count: int) -> Ledger:
    """Candidates in shards of ten rows, the last of four."""
    ledger = Stage(place(root, "candidates"), {}, {}, PAIR).ledger
    shards = [Shard(f"{i:06d}", slices=(("data/0", 0, 10 if i < count - 1 else 4),)) for i in range(count)]
    put(root, "candidates/plan.json", {"shards": [json.loads(shard.json()) for shard in shards]})
    return ledger


def stages(root: str) -> dict[str, StageStatus]:
    return {stage.name: stage for stage in status(root).stages}


def test_a_stage_waits_runs_and_is_done(root: str) -> None:
    assert {stage.state for stage in status(root).stages} == {"waiting"}
    finish_seed(root)
    ledger = begin_candidates(root, 4)
    for shard in ("000000", "000003"):
        with ledger.begin(shard) as attempt:
            attempt.write(pairs(10))
    found = stages(root)
    assert list(found) == [
        "seed", "segments", "corpus", "tokens/backward", "models/backward", "tokens/seed", "models/m0", "candidates",
        "canaries", "round-1/scores", "round-1/canary-scores", "round-1/curated", "round-1/tokens", "models/m1",
    ]  # fmt: skip
    seed, running = found["seed"], found["candidates"]
    assert (seed.state, seed.unit, seed.done, seed.total, seed.attempts, seed.again) == ("done", "rows", 7, 7, 1, 0)
    assert (running.state, running.unit, running.done, running.total) == ("running", "rows", 14, 34)
    assert running.per_s
    assert running.eta_s == pytest.approx(20 / running.per_s)
    assert running.quiet_s is not None
    assert running.quiet_s < 60
    assert status(root).submission == "20260101T000000Z-abc"
    assert status(root).versions == {"ray": "2"}


def test_attempts_errors_and_quarantined_rows_are_counted(root: str) -> None:
    ledger = begin_candidates(root, 3)
    with pytest.raises(ValueError, match="no"), ledger.begin("000000"):
        raise ValueError("no")
    with ledger.begin("000000") as attempt:
        attempt.write(pairs(10, quarantined=2))
    with ledger.begin("000001") as other:
        write_table(ledger, "quarantine/000000.2.parquet", pairs(2))
        write_table(ledger, f"quarantine/000001.{other.number}.parquet", pairs(5))
    found = stages(root)["candidates"]
    assert (found.attempts, found.again, found.failed) == (3, 1, 1)
    assert found.quarantined == 2, "those of shard 000001 are not committed"


def test_files_are_counted_if_their_rows_are_not_known(root: str) -> None:
    ledger = Stage(place(root, "segments"), {}, {}, PAIR).ledger
    put(root, "segments/plan.json", {"shards": [json.loads(Shard(f"{i:06d}", file="f").json()) for i in range(3)]})
    with ledger.begin("000001") as attempt:
        attempt.write(pairs(100))
    found = stages(root)["segments"]
    assert (found.unit, found.done, found.total) == ("files", 1, 3)


def test_a_training_run_shows_its_steps_and_who_holds_its_lease_until_it_ends(root: str) -> None:
    Stage(place(root, "models/m0"), {}, {})
    figures = {"step": 30, "steps": 80, "seconds": 0.5, "loss": 1.0, "tokens_so_far": 9}
    put(root, "models/m0/checkpoints/m0/progress.json", figures)
    with Lease(storage.join(root, "models/m0"), "mine"):
        found = stages(root)["models/m0"]
        assert (found.state, found.unit, found.done, found.total) == ("running", "steps", 30, 80)
        assert (found.per_s, found.eta_s) == (2.0, 25.0)
        assert f"(process {os.getpid()}, submission mine)" in found.holder
    ended = stages(root)["models/m0"]
    assert (ended.state, ended.holder, ended.per_s) == ("stopped?", "", None)
    for damaged in (
        b"",
        b"{",
        b"[]",
        b'{"step": 3}',
        b'{"step": "x", "steps": 1, "seconds": 1}',
        b'{"step": Infinity}',
    ):
        storage.write_bytes(storage.join(root, "models/m0/checkpoints/m0/progress.json"), damaged)
        storage.write_bytes(storage.join(root, "models/m0/checkpoints/m0/step-000030-3fa9c1/state.json"), damaged)
        assert stages(root)["models/m0"].done is None, damaged


def test_a_stage_over_shards_runs_while_a_driver_beats_and_shows_what_it_waits_for(root: str) -> None:
    ledger = begin_candidates(root, 3)
    what = "a node with 1 GPU (H100); the cluster has 1 node with 2 CPUs"
    put(root, "candidates/drivers/one.waiting", {"what": what, "waited_s": 3700})
    with Presence(ledger.uri, "one"):
        found = stages(root)["candidates"]
        assert found.state == "running"
        assert found.waiting.startswith("waiting 1 h 01 min for a node with 1 GPU (H100); the cluster has 1 node")


def test_a_driver_whose_heartbeat_stops_is_no_longer_running(tmp_path: Path) -> None:
    root = str(tmp_path)
    submit(root, CONFIG)
    ledger = begin_candidates(root, 3)
    with Presence(ledger.uri, "one") as presence:
        presence.stop()
        long_ago = time.time() - 2 * BEAT_QUIET_S
        os.utime(beat_uri(ledger.uri, "one"), (long_ago, long_ago))
        assert stages(root)["candidates"].state == "stopped?"


def test_a_long_step_reports_its_progress(root: str) -> None:
    Stage(place(root, "corpus"), {}, {})
    storage.write_bytes(storage.join(root, "corpus/progress.txt"), b"3 of 4 bands")
    with Lease(storage.join(root, "corpus"), "mine"):
        found = stages(root)["corpus"]
    assert (found.state, found.unit, found.done, found.words) == ("running", "", None, "3 of 4 bands")


def test_a_stage_without_a_sign_of_life_may_have_stopped(tmp_path: Path) -> None:
    root = str(tmp_path)
    submit(root, CONFIG)
    ledger = begin_candidates(root, 2)
    with ledger.begin("000000") as attempt:
        attempt.write(pairs(10))
    for path in (tmp_path / "candidates").rglob("*"):
        os.utime(path, (time.time() - 3600, time.time() - 3600))
    found = stages(root)["candidates"]
    assert (found.state, found.done, found.per_s, found.eta_s) == ("stopped?", 10, None, None)
    assert found.quiet_s is not None
    assert found.quiet_s > 3500


def test_a_reused_stage_is_read_from_its_own_run(root: str, tmp_path: Path) -> None:
    finish_seed(str(tmp_path / "other"))
    submit(root, {**CONFIG, "reuse": {"seed": str(tmp_path / "other/seed")}})
    found = stages(root)["seed"]
    assert (found.state, found.reused, found.done) == ("done", True, 7)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URIs that are read while the test runs."""
    seen: list[str] = []
    read = storage.read_bytes

    def noted(uri: str) -> bytes:
        seen.append(uri)
        return read(uri)

    for module in (storage, files):  # `storage.read_json` calls the `read_bytes` of its own module
        monkeypatch.setattr(module, "read_bytes", noted)
    return seen


def test_no_commit_is_read_for_its_count(tmp_path: Path, reads: list[str]) -> None:
    root = str(tmp_path)
    submit(root, CONFIG)
    ledger = begin_candidates(root, 30)
    for number in range(30):
        with ledger.begin(f"{number:06d}") as attempt:
            attempt.write(pairs(10))
    reads.clear()
    assert stages(root)["candidates"].done == 294
    names = [uri.removeprefix(f"{root}/") for uri in reads if not uri.endswith("/manifest.json")]
    assert sorted(names) == ["candidates/plan.json", "submissions/20260101T000000Z-abc.json"]


@pytest.mark.parametrize(
    ("change", "there", "absent"),
    [
        ({}, {"seed", "segments", "models/m1"}, {"sample/web", "sample/base", "evaluation/m0", "models/m2"}),
        ({"base_model": None, "sample": {"world": {}}}, {"sample/web", "sample/base", "evaluation/m1"}, set()),
        ({"sample": {"world": {}}}, {"sample/web", "evaluation/m1"}, {"sample/base", "sample/ratings"}),
        ({"sample": {"world": {}}, "evaluate": GIVEN}, {"evaluation/m1"}, {"sample/web", "sample/base"}),
        ({"reuse": {"corpus": "elsewhere"}}, {"corpus"}, {"segments"}),
        ({"reuse": {"models/m1": "elsewhere"}}, {"tokens/seed", "tokens/backward"}, {"round-1/tokens"}),
        ({"reuse": {"models/m0": "a", "models/m1": "b"}}, {"tokens/backward"}, {"tokens/seed", "round-1/tokens"}),
        ({"curate": {"recipe": {"canaries": True}}}, {"canaries", "round-2/canary-scores"}, set()),
        ({"a_setting_of_another_version": 1}, {"sample/web", "round-9/rewritten", "evaluation/m9"}, set()),
        ({"curate": {"recipe": {"canaries": False}}}, {"round-2/scores"}, {"canaries", "round-1/canary-scores"}),
        ({"evaluate": GIVEN}, {"evaluation/prompts", "evaluation/m1"}, {"evaluation/m2"}),
    ],
)
def test_the_stages_are_those_that_the_configuration_leads_to(
    change: dict[str, Any], there: set[str], absent: set[str]
) -> None:
    names = set(expected_stages({**CONFIG, **change}))
    assert there <= names
    assert not absent & names


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run"):
        status(str(tmp_path))
