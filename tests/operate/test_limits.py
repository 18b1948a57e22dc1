"""`max_hours` and `max_dollars`: counted over all submissions, reported with both numbers, resumable."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from humpback_ray import storage
from humpback_ray.config import ConfigError, load
from humpback_ray.graph import Graph
from humpback_ray.operate.limits import LimitReached, Limits, dollars_per_s, spent
from humpback_ray.run import Run
from humpback_ray.runconfig import RunConfig
from jobs.console import guarded

REPOSITORY = Path(__file__).parents[2]
DEMO = Path(__file__).parents[2] / "configs/demo.yaml"
PRICES = "plan.machines={H100-80G: {dollars_per_hour: 3}}"
LONG = 1000.0
"""More hours than any work here should take; waiting for them takes a minute."""


def run(root: Path, *overrides: str) -> Run:
    return Run(load(RunConfig, DEMO, [f"root={root}", *overrides]))


class Clock:
    """Replaces the module `time` in limits: time passes only while a test works."""

    def __init__(self) -> None:
        self.hours, self.read = 0.0, 0

    def monotonic(self) -> float:
        self.read += 1
        return self.hours * 3600

    def advance(self, hours: float) -> None:
        """Let time pass, and wait until the limits have looked at it."""
        self.hours, before = self.hours + hours, self.read
        while self.read < before + 4:  # twice in a look
            time.sleep(0.001)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("humpback_ray.operate.limits.time", clock)
    return clock


def work(run: Run, hours: float, clock: Clock, stage: str = "models/m0") -> None:
    """Work for some hours, a tenth of an hour at a time."""
    with Limits(run, look_every_s=0.001):
        run.at(stage)
        for _ in range(round(10 * hours)):
            clock.advance(0.1)


def test_a_run_within_its_limits_is_left_alone_and_its_time_is_recorded(tmp_path: Path, clock: Clock) -> None:
    work(run(tmp_path, "max_hours=1", "max_dollars=1"), 0.5, clock)
    hours, dollars = spent(str(tmp_path))
    assert hours == pytest.approx(0.5)
    assert dollars == pytest.approx(hours * 2 * 0.05), "two cores at five cents"


def test_hours_add_up_over_submissions_and_stop_the_second_one_in_the_middle(tmp_path: Path, clock: Clock) -> None:
    limit = "max_hours=1.25"
    work(run(tmp_path, limit), 0.5, clock)
    with pytest.raises(LimitReached, match=r"max_hours is 1.25; .* higher max_hours resumes .*models/m0"):
        work(run(tmp_path, limit), LONG, clock)
    assert clock.hours < LONG
    with pytest.raises(LimitReached, match="max_hours"):
        work(run(tmp_path, limit), LONG, clock)  # before anything starts
    assert clock.hours < LONG
    work(run(tmp_path, f"max_hours={2 * LONG}"), 0.1, clock)


def test_dollars_follow_the_current_stage(tmp_path: Path, clock: Clock) -> None:
    gpus = [PRICES, "train.placement.gpus_per_worker=1", "train.placement.workers=8", "max_dollars=20"]
    work(run(tmp_path / "a", *gpus), 1, clock, stage="corpus")
    with pytest.raises(LimitReached, match=r"\$21\.60 .* max_dollars is 20; "):
        work(run(tmp_path / "b", *gpus), LONG, clock)


def test_an_error_in_the_block_is_not_taken_for_a_limit(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Limits(run(tmp_path)):
        raise ZeroDivisionError
    assert spent(str(tmp_path))[0] > 0


def test_a_job_that_reached_a_limit_says_so_in_a_line_and_exits_4(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    def work_too_long() -> int:
        work(run(tmp_path, "max_hours=0.3"), LONG, clock)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    try:
        assert guarded(work_too_long) == 4
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.set_wakeup_fd(-1)
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("stopped: ")
    assert "resumes from here; models/m0 is not done" in said


def test_every_stage_of_a_run_has_a_placement_with_a_price(tmp_path: Path) -> None:
    config = load(RunConfig, DEMO, [f"root={tmp_path}", "augment.placement.max_replicas=4"])
    graph = Graph(config)
    for name in graph.until(None):
        assert graph.placement(name) is not None, name
        assert dollars_per_s(graph, name) > 0
    assert dollars_per_s(graph, "candidates") == pytest.approx(4 * 2 * 0.05 / 3600), "a pool at its maximum size"


def test_a_limit_holds_even_if_counts_cannot_be_written_for_a_while(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, refused = storage.write_bytes, []

    def full(uri: str, data: bytes) -> None:
        if len(refused) < 20:
            refused.append(uri)
            raise OSError(28, "No space left on device")
        write(uri, data)

    opened = run(tmp_path, "max_hours=1")
    monkeypatch.setattr(storage, "write_bytes", full)
    with pytest.raises(LimitReached, match="max_hours is 1"):
        work(opened, LONG, clock)
    assert refused
    assert clock.hours < LONG


def test_time_of_other_submissions_counts_too(tmp_path: Path, clock: Clock) -> None:
    mine, other = (run(tmp_path, "max_hours=1") for _ in range(2))

    def together() -> None:
        with Limits(mine, look_every_s=0.001):
            clock.advance(0.1)
            storage.write_bytes(f"{tmp_path}/spent/{other.submission}.json", b'{"hours": 5, "dollars": 1}')
            for _ in range(round(10 * LONG)):
                clock.advance(0.1)

    with pytest.raises(LimitReached, match=r"taken 5\.\d* hours"):
        together()
    assert clock.hours < LONG


def test_a_damaged_count_is_named_with_the_fix_and_other_files_are_left_alone(tmp_path: Path) -> None:
    opened = run(tmp_path)
    for name in (".DS_Store", ".nfs0001.json", "notes.txt"):
        storage.write_bytes(f"{tmp_path}/spent/{name}", b"\0")
    assert spent(str(tmp_path)) == (0.0, 0.0)
    storage.write_bytes(f"{tmp_path}/spent/cut.json", b'{"hours": 1')
    with pytest.raises(ConfigError, match=r"spent/cut\.json is damaged .* delete the file"):
        Limits(opened)


DRIVER = """
import os, sys, threading, time
from types import SimpleNamespace
from humpback_ray.operate import limits
limits.LOOK_EVERY_S, limits.TELL_EVERY_S, limits.END_WITHIN_S = 0.1, 0.2, 1.0
def run(submission="one", place=None):
    config = SimpleNamespace(max_hours=2 / 3600, max_dollars=None)
    return SimpleNamespace(root=sys.argv[1], config=config, submission=submission, place=place, state=lambda: "state")
def counted(call):
    try:
        with limits.Limits(run(), 0.1):
            print("in", flush=True)
            call()
    except limits.LimitReached as reached:
        print("stopped", flush=True)
        os._exit(4)
"""
WAIT = "lock = threading.Lock(); lock.acquire(); counted(lock.acquire)"
DEAF = """
def deaf():
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass
counted(deaf)
"""


def driver(root: Path, work: str) -> "subprocess.Popen[str]":
    """Start a driver whose run may take two seconds, SIGINT blocked as under `ray job submit`."""
    blocked = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})"
    command = [sys.executable, "-c", f"{blocked}\n{DRIVER}\n{work}", str(root)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_main_thread_that_waits_for_a_lock_is_stopped_and_a_deaf_one_is_terminated(tmp_path: Path) -> None:
    both: Sequence[tuple[str, int, str]] = (
        ("lock", 4, "stopped"),
        ("deaf", -signal.SIGTERM, "did not stop within"),
    )
    running = [driver(tmp_path / name, WAIT if name == "lock" else DEAF) for name, _, _ in both]
    try:
        for process, (name, code, words) in zip(running, both, strict=True):
            said, _ = process.communicate(timeout=120)
            assert process.returncode == code, (name, said)
            assert words in said
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_a_driver_that_is_killed_in_its_first_seconds_has_counted_most_of_them(tmp_path: Path) -> None:
    with driver(tmp_path, "limits.Limits.problem = lambda self: ''\ncounted(lambda: time.sleep(100))") as process:
        assert process.stdout
        while process.stdout.readline() != "in\n":
            assert process.poll() is None
        since = time.monotonic()
        file = tmp_path / "spent/one.json"
        while not (file.exists() and json.loads(file.read_text())["hours"] * 3600 > 1.5):
            assert time.monotonic() - since < 60
            time.sleep(0.05)
        process.kill()
    assert spent(str(tmp_path))[0] * 3600 > 1.5
