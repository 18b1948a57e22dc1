"""`max_hours` and `max_dollars`: counted over all submissions, said with both numbers, gone on from."""

import signal
import time
from pathlib import Path

import pytest

from humpback_ray.config import load
from humpback_ray.limits import LimitReached, Limits, dollars_per_s, spent
from humpback_ray.run import Run, RunConfig
from jobs.console import guarded

DEMO = Path(__file__).parents[1] / "configs/demo.yaml"
PRICES = "plan.machines={H100-80G: {dollars_per_hour: 3}}"
LONG = 1000.0
"""Hours that no work here should last for; they take a minute."""


def run(root: Path, *overrides: str) -> Run:
    return Run(load(RunConfig, DEMO, [f"root={root}", *overrides]))


class Clock:
    """Stands for the module `time` of limits: it goes on only while somebody works."""

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
    monkeypatch.setattr("humpback_ray.limits.time", clock)
    return clock


def work(run: Run, hours: float, clock: Clock, stage: str = "models/m0") -> None:
    """Work for so long, a tenth of an hour at a time."""
    with Limits(run, look_every_s=0.001):
        run.at(stage)
        for _ in range(round(10 * hours)):
            clock.advance(0.1)


def test_a_run_within_its_limits_is_left_alone_and_what_it_took_is_written_down(tmp_path: Path, clock: Clock) -> None:
    work(run(tmp_path, "max_hours=1", "max_dollars=1"), 0.5, clock)
    hours, dollars = spent(str(tmp_path))
    assert hours == pytest.approx(0.5)
    assert dollars == pytest.approx(hours * 2 * 0.05), "two cores at five cents"


def test_hours_add_up_over_submissions_and_stop_the_second_one_in_the_middle(tmp_path: Path, clock: Clock) -> None:
    limit = "max_hours=1.25"
    work(run(tmp_path, limit), 0.5, clock)
    with pytest.raises(LimitReached, match=r"max_hours is 1.25; .* higher max_hours goes on .*models/m0"):
        work(run(tmp_path, limit), LONG, clock)
    assert clock.hours < LONG
    with pytest.raises(LimitReached, match="max_hours"):
        work(run(tmp_path, limit), LONG, clock)  # before anything is begun
    assert clock.hours < LONG
    work(run(tmp_path, f"max_hours={2 * LONG}"), 0.1, clock)


def test_dollars_are_those_of_the_stage_at_work(tmp_path: Path, clock: Clock) -> None:
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
    assert "goes on from here; models/m0 is not done" in said


def test_every_stage_of_a_run_has_a_placement_that_is_paid_for(tmp_path: Path) -> None:
    config = load(RunConfig, DEMO, [f"root={tmp_path}", "augment.placement.max_replicas=4"])
    for name in config.stage_names():
        assert config.placement_of(name) is not None, name
        assert dollars_per_s(config, name) > 0
    assert dollars_per_s(config, "candidates") == pytest.approx(4 * 2 * 0.05 / 3600), "a pool at its largest"
