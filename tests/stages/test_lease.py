"""One driver at a time; a dead one is replaced, an overtaken one cannot publish, and a commit is published once."""

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from humpback_ray import storage
from humpback_ray.placement import TaskPlacement
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.lease import Lease, LeaseHeld, LeaseLost
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.manifest import read_manifest
from humpback_ray.stages.stage import Place, Stage
from humpback_ray.storage import steps
from tests.conftest import Said
from tests.jobs.heads import wait_for


class Clock:
    """Replaces the module `time` of leases; the test can let time pass."""

    time, sleep = staticmethod(time.time), staticmethod(time.sleep)

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("humpback_ray.stages.lease.time", clock)
    return clock


def lease(path: Path | str, who: str, stale_s: float = 60.0) -> Lease:
    """A lease that beats often, and counts as dead only after longer than any thread waits to run."""
    return Lease(str(path), who, beat_s=0.1, stale_s=stale_s)


def dead(path: Path | str, who: str = "dead") -> Lease:
    """A driver that took the lease and hangs."""
    held = lease(path, who)
    while not held.epoch:
        held._advance()
    return held


def ends(path: Path | str) -> dict[str, dict[str, Any]]:
    """How each epoch ended."""
    directory = storage.join(str(path), "lease")
    names = [name for name in storage.list_names(directory) if name.endswith(".end")]
    return {name.removesuffix(".end"): json.loads(storage.read_bytes(storage.join(directory, name))) for name in names}


def test_a_second_driver_is_told_who_holds_it(tmp_path: Path) -> None:
    with lease(tmp_path, "first"), pytest.raises(LeaseHeld, match="submission first"), lease(tmp_path, "second"):
        pass


def test_a_lease_whose_work_failed_is_taken_at_once(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lease(tmp_path, "first"):
        _ = 1 / 0
    assert ends(tmp_path)["000001"]["released"] == "ZeroDivisionError"
    with Lease(str(tmp_path), "second", stale_s=1e6) as second:
        assert second.epoch == 2


def test_a_driver_that_hangs_is_overtaken_and_cannot_publish(tmp_path: Path) -> None:
    still = dead(tmp_path, "first")
    with lease(tmp_path, "second", stale_s=0.3) as second:
        assert second.epoch == 2
        with pytest.raises(LeaseLost, match=r"epoch 1 was overtaken by .* \(submission second\)"):
            still.end({"rows": 1})
        second.end({"rows": 2})
    assert "overtaken_by" in ends(tmp_path)["000001"]
    assert ends(tmp_path)["000002"]["commit"] == {"rows": 2}


def test_the_commit_of_an_ended_epoch_goes_to_the_next_driver_which_holds_no_lease(tmp_path: Path) -> None:
    with lease(tmp_path, "first") as first:
        first.end({"rows": 1})
    with Lease(str(tmp_path), "second", stale_s=1e6) as second:
        assert (second.epoch, second.outcome) == (0, {"rows": 1})
    assert set(ends(tmp_path)) == {"000001"}


def test_when_many_drivers_reach_for_a_dead_lease_one_gets_it(tmp_path: Path, clock: Clock, said: Said) -> None:
    dead(tmp_path)
    holding, most, told = 0, 0, []
    gate, all_told = threading.Lock(), threading.Event()

    def work(name: str) -> None:
        nonlocal holding, most
        try:
            with lease(tmp_path, name):
                with gate:
                    holding += 1
                    most = max(most, holding)
                all_told.wait(100)
                with gate:
                    holding -= 1
        except LeaseHeld:
            with gate:
                told.append(name)
                if len(told) == 5:
                    all_told.set()

    threads = [threading.Thread(target=work, args=(f"driver {i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    wait_for(lambda: sum("waiting to see" in message for _, message in said.records) == 6, "all six at its door", 100)
    clock.ahead = 60.0
    for thread in threads:
        thread.join()
    assert most == 1
    assert len(told) == 5


def test_when_many_drivers_end_one_epoch_at_once_exactly_one_decides_how(tmp_path: Path) -> None:
    """The holder wakes up and publishes just when others find it dead, thirty times."""
    for number in range(30):
        path = tmp_path / str(number)
        still = dead(path, "holder")
        barrier, said = threading.Barrier(5), []

        def publish(still: Lease = still, barrier: threading.Barrier = barrier, said: list[str] = said) -> None:
            barrier.wait()
            try:
                still.end("work")
                said.append("published")
            except LeaseLost:
                said.append("lost")

        def overtake(path: Path = path, barrier: threading.Barrier = barrier, said: list[str] = said) -> None:
            other = Lease(str(path), "other", beat_s=0.1, stale_s=0)
            barrier.wait()
            while not other.epoch and other.outcome is None:
                other._advance()
            said.append(f"epoch {other.epoch}" if other.epoch else "finishes")

        work = [publish, overtake, overtake, overtake, overtake]
        threads = [threading.Thread(target=one) for one in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        published = "commit" in ends(path)["000001"]
        assert ("published" in said) == published
        assert said.count("finishes") == (4 if published else 0)
        taken = [word for word in said if word.startswith("epoch")]
        assert len(set(taken)) == len(taken), "an epoch was taken twice"


def test_a_lost_reply_is_recognized_as_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = storage.create
    monkeypatch.setattr(storage, "create", lambda uri, data: create(uri, data) and False)
    with lease(tmp_path, "first") as first:
        first.end({"rows": 1})
    assert (first.epoch, first.outcome) == (1, {"rows": 1})
    with lease(tmp_path, "second") as second:
        assert second.outcome == {"rows": 1}


def overtake(path: Path) -> None:
    """End the first epoch as a driver does that saw its beat go stale."""
    Lease(str(path), "second")._create(1, "end", {"overtaken_by": {"host": "there", "submission": "second"}})


def outage(path: Path, clock: Clock, said: Said) -> None:
    """Let nothing be written under a lease for longer than a beat may stay unchanged."""
    (path / "lease").rename(path / "away")
    while not (path / "lease").is_file():
        with contextlib.suppress(IsADirectoryError):  # a beat has just recreated the directory
            (path / "lease").write_text("in the way")
        shutil.rmtree(path / "lease", ignore_errors=True)
    clock.ahead += 100.0
    silent = re.compile(r"no heartbeat of .* for 1\d\d s")
    wait_for(lambda: any(silent.match(message) for _, message in said.records), "a heartbeat that fails", 100)
    (path / "lease").unlink()
    (path / "away").rename(path / "lease")

    def beats() -> bytes:
        beat = path / "lease/000001.beat"
        return beat.read_bytes() if beat.exists() else b""

    before = beats()
    wait_for(lambda: beats() != before, "a beat after the outage", 100)


@pytest.mark.parametrize("before", [None, outage], ids=["overtake", "outage"])
def test_work_is_interrupted_when_the_lease_is_lost_but_not_by_an_outage_of_storage(
    tmp_path: Path, clock: Clock, said: Said, before: Callable[[Path, Clock, Said], None] | None
) -> None:
    happened = []

    def work() -> None:
        with lease(tmp_path, "first"):
            if before:
                before(tmp_path, clock, said)
            happened.append(before)  # the next beat may come before `overtake` returns
            overtake(tmp_path)
            for _ in range(1200):
                time.sleep(0.1)

    began = time.monotonic()
    with pytest.raises(LeaseLost, match="overtaken by there") as raised:
        work()
    assert happened, "it was interrupted too early"
    assert time.monotonic() - began < 100
    assert isinstance(raised.value.__cause__, KeyboardInterrupt)


def test_work_in_a_background_job_of_a_script_is_interrupted_too(tmp_path: Path) -> None:
    """SIGINT is ignored there, and stays ignored outside the lease."""

    def work() -> None:
        with lease(tmp_path, "first"):
            overtake(tmp_path)
            for _ in range(1200):
                time.sleep(0.1)
            pytest.fail("it was not interrupted")

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(LeaseLost, match="overtaken by there"):
            work()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


BLOCKED_DRIVER = """
import os, signal, sys, threading
from concurrent.futures import ThreadPoolExecutor
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
from humpback_ray.stages.lease import Lease, LeaseLost
try:
    with Lease(sys.argv[1], "first", beat_s=0.1, stale_s=60), ThreadPoolExecutor(1) as threads:
        end = threading.Event()
        waits = threads.submit(end.wait, 300)
        print("in", flush=True)
        try:
            waits.result()
        finally:
            end.set()
except LeaseLost:
    print("lost", signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()), flush=True)
    os._exit(3)
"""


def test_a_main_thread_that_waits_for_a_lock_learns_of_the_loss_even_if_sigint_is_blocked(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BLOCKED_DRIVER, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as driver:
        try:
            assert driver.stdout
            assert driver.stdout.readline() == "in\n"
            overtake(tmp_path)
            assert driver.communicate(timeout=30)[0] == "lost True\n", "SIGINT is blocked again"
            assert driver.returncode == 3
        finally:
            driver.kill()


def sleep_on(attempt: Attempt, folder: str) -> Commit:
    Path(folder, "begun").touch()
    time.sleep(600)
    return attempt.describe([], {})


@pytest.mark.ray
def test_a_global_step_is_interrupted_too_and_nothing_is_published(
    tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("humpback_ray.stages.stage.Lease", functools.partial(Lease, beat_s=0.1, stale_s=60))

    def overtake_it() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.1)
        overtake(tmp_path)

    threading.Thread(target=overtake_it, daemon=True).start()
    with pytest.raises(LeaseLost, match="overtaken by there"):
        Stage(Place("step", str(tmp_path), "first"), {}, {}).once(sleep_on, (str(tmp_path),), TaskPlacement(cpus=0.5))
    assert read_manifest(str(tmp_path)) is None
    assert not (tmp_path / "commits").exists()


def test_ctrl_c_stays_ctrl_c(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), lease(tmp_path, "first"):
        raise KeyboardInterrupt
    assert ends(tmp_path)["000001"]["released"] == "KeyboardInterrupt"


class Killed(BaseException):
    """Simulates SIGKILL at a step: nothing after it happens."""


@pytest.mark.s3
@pytest.mark.parametrize("store", ["local", "s3"])
@pytest.mark.parametrize("killed_at", ["11 lease ended", "9 commit created", "12 manifest created"])
def test_a_commit_is_published_by_the_next_driver_without_working_again(
    tmp_path: Path, s3_bucket: str, store: str, killed_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path) if store == "local" else f"{s3_bucket}/{tmp_path.name}"

    def kill(step: str) -> None:
        if step == killed_at:
            raise Killed

    def stage(submission: str) -> Stage:
        return Stage(Place("step", uri, submission), {}, {})

    def work(attempt: Attempt) -> Commit:
        return attempt.describe([], {}, extra={"by": attempt.ledger.submission})

    monkeypatch.setattr(steps, "hook", kill)
    with pytest.raises(Killed):
        stage("first").leased(work)
    monkeypatch.setattr(steps, "hook", None)
    assert (read_manifest(uri) is not None) == (killed_at == "12 manifest created")
    finished = stage("second").leased(lambda attempt: pytest.fail("the work was done"))
    assert finished.extra == {"by": "first"}
    assert finished.attempts == 1
