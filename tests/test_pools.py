"""A pool of actors on half GPUs of spot nodes: it grows while shards wait, onto a node that comes late, and shrinks.

The GPUs are only said to be there; who is placed where, and how many are taken, is Ray's own doing.
"""

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `tests.pools` saw, in an interpreter and a cluster of its own."""
    folder = tmp_path_factory.mktemp("pools")
    command = [sys.executable, "-m", "tests.pools", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=580)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


def test_every_shard_is_worked_on_once_and_on_spot_nodes_alone(found: dict[str, Any]) -> None:
    assert len(found["notes"]) == found["shards"] > 50
    assert {note["node"] for note in found["notes"].values()} == set(found["spot"])


def test_half_a_gpu_each_puts_two_actors_on_one_at_the_same_time(found: dict[str, Any]) -> None:
    by_gpu: dict[tuple[str, int], dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for note in found["notes"].values():
        (gpu,) = note["gpus"]
        by_gpu[note["node"], gpu][note["pid"]].append(note)
    assert [len(by_process) for by_process in by_gpu.values()] == [2, 2]
    for one, other in (by_process.values() for by_process in by_gpu.values()):
        assert any(a["since"] < b["until"] and b["since"] < a["until"] for a in one for b in other)


def test_the_pool_grows_from_its_least_to_its_most_and_shrinks_at_the_tail(found: dict[str, Any]) -> None:
    first = min(note["since"] for note in found["notes"].values())
    slow = found["notes"][found["slow"]]
    assert max(gpus for at, gpus in found["taken"] if at < first) == 0.5, "one actor at the start"
    assert max(gpus for _, gpus in found["taken"]) == 2.0, "four at the most"
    assert [gpus for at, gpus in found["taken"] if at < slow["until"] - 0.5][-1] == 0.5, "one for the last shard"


def test_a_node_that_comes_late_is_used(found: dict[str, Any]) -> None:
    (there,) = found["first"]
    late = [note["since"] for note in found["notes"].values() if note["node"] != there]
    assert late
    assert min(late) > min(note["since"] for note in found["notes"].values())
