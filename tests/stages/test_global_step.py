"""A global step whose process is killed, by Ray's memory monitor or otherwise, is tried a few times, then it fails."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from humpback_ray.placement import TaskPlacement
from humpback_ray.records import PAIR
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.errors import StageFailed
from humpback_ray.stages.globalstep import TRIES
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.stage import Stage
from tests.conftest import Said
from tests.stages.test_stage import make_source, place

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.ray


def note(marks: str) -> int:
    """Leave a mark; return how many there are."""
    with Path(marks).open("a") as file:
        file.write("x")
    return len(Path(marks).read_text())


def is_killed(attempt: Attempt, marks: str, times: int) -> Commit:
    if note(marks) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return make_source(attempt, [5])


def test_a_step_whose_process_is_killed_once_is_tried_again(local_ray: None, tmp_path: Path, said: Said) -> None:
    stage = Stage(place(tmp_path, "step"), {}, {}, PAIR)
    made = stage.once(is_killed, (str(tmp_path / "marks"), 1), TaskPlacement(cpus=0.5))
    assert made.rows == 5
    [warning] = [text for level, text in said.records if level == "WARNING"]
    assert re.match(r"step: the task on node \S+ died silently \(.*; trying again", warning)


def test_a_step_whose_process_is_always_killed_fails_the_stage(local_ray: None, tmp_path: Path) -> None:
    stage = Stage(place(tmp_path, "step"), {}, {}, PAIR)
    placement = TaskPlacement(cpus=0.5, memory_bytes=100_000_000)
    with pytest.raises(StageFailed, match=r"its node has [\d.]+ GB, of which it had reserved 0\.1 GB .*tried 3 times"):
        stage.once(is_killed, (str(tmp_path / "marks"), 99), placement)
    assert len((tmp_path / "marks").read_text()) == TRIES


DRIVER = """
import sys
import ray
from pathlib import Path
from humpback_ray.stages.errors import StageFailed
from humpback_ray.placement import TaskPlacement
from humpback_ray.records import PAIR
from humpback_ray.stages.stage import Stage
from tests.stages.test_global_step import waits
from tests.stages.test_stage import place

memory = {"memory_usage_threshold": 0.001, "memory_monitor_refresh_ms": 100}
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, _system_config=memory)
try:
    Stage(place(Path(sys.argv[1]), "step"), {}, {}, PAIR).once(waits, (sys.argv[1],), TaskPlacement())
except StageFailed as failed:
    print(failed)
"""


def waits(attempt: Attempt, folder: str) -> Commit:
    import time

    note(f"{folder}/marks")
    time.sleep(600)
    raise AssertionError("the memory monitor did not come")


@pytest.mark.chaos
def test_a_step_that_the_memory_monitor_kills_is_not_retried_forever_and_says_how_much_memory_it_had(
    tmp_path: Path,
) -> None:
    """The monitor considers a node full when a thousandth of its memory is in use."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert re.search(
        r"step: the task.* ran out of memory and was killed by Ray's memory monitor; [\d.]+ ?\w+ of [\d.]+ ?\w+ were "
        r"in use on the node, [\d.]+ ?\w+ of them by the task; .*had reserved none .*; it was tried 3 times",
        done.stdout,
    ), done.stdout + done.stderr
