"""A hanging process says where it hangs before it ends, however busy the machine and however many its threads."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from humpback_ray.stages import processes

THREADS = 25
HANGS = f"""
import ctypes, threading
from humpback_ray.stages.processes import answer_when_ended

def wait_for_ever(depth):
    threading.Event().wait() if depth == 0 else wait_for_ever(depth - 1)

def hang():
    print("hangs", flush=True)
    ctypes.PyDLL(None).sleep(600)  # PyDLL keeps the interpreter's lock: no thread of the process runs any more

answer_when_ended()
for number in range({THREADS}):
    threading.Thread(target=wait_for_ever, args=(10,), daemon=True).start()
hang()
"""


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return tmp_path / "stderr"


@pytest.fixture
def hanging(words: Path) -> Iterator["subprocess.Popen[str]"]:
    """A hanging process with many threads, which writes its output to a file."""
    with words.open("w") as stderr:
        process = subprocess.Popen([sys.executable, "-c", HANGS], stdout=subprocess.PIPE, stderr=stderr, text=True)
    assert process.stdout
    try:
        assert process.stdout.readline() == "hangs\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def stopped(process: "subprocess.Popen[str]") -> None:
    """Stop a process for a while, as a busy machine does."""
    process.send_signal(signal.SIGSTOP)
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)


def test_a_process_that_waits_for_the_cpu_still_says_where_every_thread_hangs(
    hanging: "subprocess.Popen[str]", words: Path
) -> None:
    stopped(hanging)
    ending = threading.Thread(target=processes._end, args=(hanging.pid, ""))
    ending.start()
    ending.join(1)
    assert ending.is_alive(), "it was not waited for"
    hanging.send_signal(signal.SIGCONT)
    ending.join(60)
    assert not ending.is_alive()
    assert hanging.wait(10) == -signal.SIGUSR1
    said = processes._tail(str(words))
    assert said.count(" in wait_for_ever\n") == 11 * THREADS
    assert " in hang\n" in said


def test_a_process_that_never_answers_is_killed(
    hanging: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "STACKS_S", 0.1)
    stopped(hanging)
    processes._end(hanging.pid, "")
    assert hanging.wait(10) == -signal.SIGKILL


def test_a_process_that_got_the_pid_of_an_ended_one_is_left_alone(hanging: "subprocess.Popen[str]") -> None:
    processes._end(hanging.pid, str(int(processes.born(hanging.pid)) - 1))
    assert hanging.poll() is None
