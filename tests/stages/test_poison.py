"""A deadly row costs only itself, however it kills: it is quarantined with the process's last words; others stay."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from humpback_ray.needs import Resources
from humpback_ray.operate.verify import verify_stage
from humpback_ray.placement import PoolPlacement, TaskPlacement
from humpback_ray.records import PAIR, QUARANTINED
from humpback_ray.stages.errors import StageFailed
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.stage import Stage
from humpback_ray.storage import steps
from tests.stages.test_stage import fates, make_source, place

REPOSITORY = Path(__file__).parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
POOL = PoolPlacement(rows_per_shard=4, cpus_per_replica=0.5, max_attempts=1)


def raise_(row: str) -> None:
    raise ValueError(f"cannot read row {row}")


def exit_(row: str) -> None:
    os.write(2, f"engine: out of luck at {row}\n".encode())
    os._exit(3)


def crash(row: str) -> None:
    ctypes.string_at(0)


def kill(row: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(row: str) -> None:
    ctypes.PyDLL(None).sleep(3600)  # PyDLL keeps the interpreter's lock, so no thread of the process runs any more


DEATHS = {death.__name__: death for death in (raise_, exit_, crash, kill, hang)}
DEADLY = {"0001": "hang", "0006": "exit_", "0012": "crash", "0014": "kill", "2010": "raise_", "2011": "raise_"}


class DiesOf:
    """Fails whenever it sees one of the given rows, each in its own way."""

    def __init__(self, deaths: Mapping[str, str], resources: Resources) -> None:
        self.deaths = {row: DEATHS[death] for row, death in deaths.items()}

    def __call__(self, table: pa.Table) -> pa.Table:
        for row in table["id"].to_pylist():
            if row in self.deaths:
                self.deaths[row](row)
        return table


@pytest.fixture(scope="module")
def source(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("poison")
    stage = Stage(place(root, "source"), {"version": 1}, {}, PAIR)
    return stage.once(make_source, ([25, 0, 13],), TaskPlacement(cpus=0.5))


@pytest.fixture(scope="module")
def done(source: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A stage with a deadly row of every kind.

    The watch over the pool has a clock that runs ten times as fast, so a limit of 50 s ends the hanging shard after
    5 s. If it ends other shards on a slow machine, they are tried alone. Alone, a part has a tenth of 50 s by the true
    clock: that is the cost of a hang, and still far more than a working part takes on a busy machine.
    """
    placement = POOL.model_copy(
        update={"rows_per_shard": 2, "min_replicas": 2, "shards_in_flight": 1, "limit_floor_s": 50,
                "straggler_factor": None}
    )  # fmt: skip
    stage = Stage(place(tmp_path_factory.mktemp("deaths"), "deaths"), {}, {"source": source}, PAIR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("humpback_ray.stages.watch.time", SimpleNamespace(monotonic=lambda: 10 * time.monotonic()))
        return stage.run(DiesOf, (DEADLY,), placement, source)


@pytest.fixture(scope="module")
def quarantine(done: Manifest) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in done.quarantine().to_pylist()}


def test_deadly_rows_are_quarantined_and_all_others_are_kept(source: Manifest, done: Manifest) -> None:
    kept = [key for key, reason in fates(source).items() if reason is None]
    assert fates(done) == {key: QUARANTINED if key in DEADLY else None for key in kept}
    assert done.quarantined == len(DEADLY) == len(done.quarantine())


@pytest.mark.parametrize(
    ("row", "error", "words"),
    [
        ("2010", "ValueError: cannot read row 2010", ""),
        ("2011", "ValueError: cannot read row 2011", ""),
        ("0006", "", "engine: out of luck at 0006"),
        ("0012", "", "Segmentation fault"),
        ("0014", "", ""),
        ("0001", "did not end within the limit of", "in hang"),
    ],
    ids=["raise", "raise beside it", "exit", "crash", "kill", "hang"],
)
def test_a_deadly_row_leaves_its_error_its_words_and_its_text(
    quarantine: Mapping[str, Mapping[str, Any]], row: str, error: str, words: str
) -> None:
    lost = quarantine[row]
    assert error in lost["error"]
    assert words in lost["last_words"]
    assert f"ask {int(row)}" in lost["text"]


def test_rows_per_shard_does_not_affect_which_rows_are_lost(source: Manifest, done: Manifest, tmp_path: Path) -> None:
    stage = Stage(place(tmp_path, "by-1000"), {}, {"source": source}, PAIR)
    pool = POOL.model_copy(update={"rows_per_shard": 1000, "max_quarantined_share": 0.5})
    whole = stage.run(DiesOf, (dict.fromkeys(DEADLY, "raise_"),), pool, source)
    assert sorted(whole.quarantine()["id"].to_pylist()) == list(DEADLY)
    assert fates(whole) == fates(done)


def test_a_worker_that_fails_with_every_row_stops_the_stage_and_loses_none(source: Manifest, tmp_path: Path) -> None:
    stage = Stage(place(tmp_path, "any"), {}, {"source": source}, PAIR)
    everything = dict.fromkeys(fates(source), "raise_")
    with pytest.raises(StageFailed, match=r"shard 00000\d (lost|failed with whatever).* last: ValueError: cannot"):
        stage.run(DiesOf, (everything,), POOL, source)
    assert not stage.ledger.committed()


def test_a_row_that_eats_memory_is_ended_by_the_memory_monitor_and_costs_one_row(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.memory", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=800)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [key for key, reason in found["fates"].items() if reason] == ["0014"]
    assert "memory" in found["quarantine"][0]["error"].lower()


class KilledAtStep:
    """Ends its process, once, at the first step with a given number."""

    def __init__(self, step: int, marker: str, resources: Resources) -> None:
        def at(step_reached: str) -> None:
            if step_reached == steps.STEPS[step - 1] and not Path(marker).exists():
                Path(marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)

        steps.hook = at

    def __call__(self, table: pa.Table) -> pa.Table:
        if "0014" in table["id"].to_pylist():
            raise_("0014")
        return table


def test_a_kill_between_quarantine_and_commit_changes_no_fate(source: Manifest, tmp_path: Path) -> None:
    stage = Stage(place(tmp_path, "seventh"), {}, {"source": source}, PAIR)
    pool = POOL.model_copy(update={"max_attempts": 2})
    done = stage.run(KilledAtStep, (7, str(tmp_path / "marker")), pool, source)
    assert (tmp_path / "marker").exists()
    assert done.quarantine()["id"].to_pylist() == ["0014"]
    assert [key for key, reason in fates(done).items() if reason] == ["0014"]
    verify_stage(done)
