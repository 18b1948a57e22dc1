"""A row that no worker survives costs one row, however it kills: it is quarantined with its words, the others stay."""

import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from humpback_ray import steps
from humpback_ray.ledger import Manifest, StageFailed
from humpback_ray.placement import PoolPlacement, Resources, TaskPlacement
from humpback_ray.records import PAIR, QUARANTINED
from humpback_ray.stage import Stage
from humpback_ray.verify import verify_stage
from tests.test_stage import fates, make_source, place

REPOSITORY = Path(__file__).parents[1]

pytestmark = pytest.mark.ray
POOL = PoolPlacement(rows_per_shard=4, cpus_per_replica=0.5, max_attempts=1, limit_floor_s=15)


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
    ctypes.PyDLL(None).sleep(3600)  # PyDLL keeps the interpreter's lock: no thread of the process runs any more


DEATHS = {death.__name__: death for death in (raise_, exit_, crash, kill, hang)}


class DiesOf:
    """Fails whenever it sees one of some rows."""

    def __init__(self, death: str, rows: tuple[str, ...], resources: Resources) -> None:
        self.death, self.rows = DEATHS[death], rows

    def __call__(self, table: pa.Table) -> pa.Table:
        for row in set(self.rows) & set(table["id"].to_pylist()):
            self.death(row)
        return table


@pytest.fixture(scope="module")
def source(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("poison")
    stage = Stage(place(root, "source"), {"version": 1}, {}, PAIR)
    return stage.once(make_source, ([25, 0, 13],), TaskPlacement(cpus=0.5))


@pytest.mark.parametrize(
    ("death", "error", "words"),
    [
        ("raise_", "ValueError: cannot read row 0014", ""),
        ("exit_", "", "engine: out of luck at 0014"),
        ("crash", "", "Segmentation fault"),
        ("kill", "", ""),
        ("hang", "no end within the limit of", "in hang"),
    ],
)
def test_a_deadly_row_costs_one_row_and_leaves_its_words(
    source: Manifest, tmp_path: Path, death: str, error: str, words: str
) -> None:
    stage = Stage(place(tmp_path, death), {}, {"source": source}, PAIR)
    pool = POOL.model_copy(update={"rows_per_shard": 2}) if death == "hang" else POOL  # each hang takes its limit
    done = stage.run(DiesOf, (death, ("0014",)), pool, source)
    kept = [key for key, reason in fates(source).items() if reason is None]
    assert fates(done) == {key: QUARANTINED if key == "0014" else None for key in kept}
    (lost,) = done.quarantine().to_pylist()
    assert lost["id"] == "0014"
    assert error in lost["error"]
    assert words in lost["last_words"]
    assert "ask 14" in lost["text"]
    assert done.quarantined == 1


def test_rows_per_shard_decides_nothing_about_which_rows_are_lost(source: Manifest, tmp_path: Path) -> None:
    deadly = ("0000", "0001", "0014", "2011")
    found = []
    for rows in (4, 1000):
        stage = Stage(place(tmp_path, f"by-{rows}"), {}, {"source": source}, PAIR)
        pool = POOL.model_copy(update={"rows_per_shard": rows, "max_quarantined_share": 0.5})
        done = stage.run(DiesOf, ("raise_", deadly), pool, source)
        assert sorted(done.quarantine()["id"].to_pylist()) == list(deadly)
        found.append(fates(done))
    assert found[0] == found[1]


def test_a_worker_that_fails_with_any_row_stops_the_stage_and_loses_none(source: Manifest, tmp_path: Path) -> None:
    stage = Stage(place(tmp_path, "any"), {}, {"source": source}, PAIR)
    everything = tuple(key for key in fates(source))
    with pytest.raises(StageFailed, match=r"shard 00000\d (lost|failed with whatever).* last: ValueError: cannot"):
        stage.run(DiesOf, ("raise_", everything), POOL, source)
    assert not stage.ledger.committed()


def test_a_row_that_eats_memory_is_ended_by_the_memory_monitor_and_costs_one_row(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.memory", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [key for key, reason in found["fates"].items() if reason] == ["0014"]
    assert "memory" in found["quarantine"][0]["error"].lower()


class KilledAtStep:
    """Ends its process at the first step of a number that it reaches anywhere, once."""

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
    verify_stage(done, {})
