"""A node compiles an extension once, whoever is killed meanwhile; if it cannot, training uses another optimizer."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch.utils.cpp_extension

from humpback_ray.placement import TrainPlacement
from humpback_ray.train.engine import cpuadam, group
from humpback_ray.train.engine.cpuadam import prepared
from humpback_ray.train.engine.zero import import_deepspeed
from tests.conftest import Said
from tests.train.drivers import wait_for

SOURCE = """
#include <Python.h>
static struct PyModuleDef tiny = {PyModuleDef_HEAD_INIT, "tiny", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_tiny(void) { return PyModule_Create(&tiny); }
"""

COMPILER = """#!/bin/sh
case "$*" in *" -c "*)
    echo "$$" >> {home}/compilers
    if [ -e {home}/broken ]; then
        echo "tiny.c:2:10: fatal error: Python.h: No such file or directory" >&2
        sleep 0.5
        exit 1
    fi
    if [ -e {home}/slow ]; then sleep 60; fi
esac
exec c++ "$@"
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory with a source, and a compiler that can be made slow or broken and counts its calls."""
    (tmp_path / "tiny.cpp").write_text(SOURCE)
    compiler = tmp_path / "g++"
    compiler.write_text(COMPILER.format(home=tmp_path))
    compiler.chmod(0o755)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("CXX", str(compiler))
    return tmp_path


def compiles(home: Path) -> int:
    path = home / "compilers"
    return len(path.read_text().split()) if path.exists() else 0


def build(home: Path) -> None:
    """Prepare the extension in this process, and write down what was wrong."""

    def load() -> object:
        return torch.utils.cpp_extension.load("tiny", [str(home / "tiny.cpp")])

    why = prepared("tiny", load)
    (home / f"ended-{os.getpid()}").write_text(json.dumps(why))


def started(home: Path) -> Any:
    """Start a process that prepares the extension."""
    process = multiprocessing.get_context("fork").Process(target=build, args=(home,))
    process.start()
    return process


def ended(home: Path, process: Any) -> str | None:
    """Wait for a process; return what was wrong with the extension."""
    process.join(60)
    return json.loads((home / f"ended-{process.pid}").read_text())


def test_after_a_killed_compile_the_next_start_compiles_at_once_although_the_compiler_still_runs(home: Path) -> None:
    (home / "slow").touch()
    killed = started(home)
    wait_for(lambda: compiles(home) == 1, killed.is_alive)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    (compiler,) = map(int, (home / "compilers").read_text().split())
    assert psutil.pid_exists(compiler)
    assert len(list(home.glob("temporary/*/*/tiny/lock"))) == 1, "the mark that torch would wait for"
    (home / "slow").unlink()
    began = time.monotonic()
    assert ended(home, started(home)) is None
    assert time.monotonic() - began < 40
    assert psutil.pid_exists(compiler)
    sleeper = psutil.Process(compiler)
    for process in [*sleeper.children(), sleeper]:
        process.kill()
    assert ended(home, started(home)) is None
    assert compiles(home) == 2


def test_workers_of_a_node_compile_once(home: Path) -> None:
    workers = [started(home) for _ in range(3)]
    assert [ended(home, worker) for worker in workers] == [None] * 3
    assert compiles(home) == 1


def test_workers_that_wait_for_a_failing_compile_do_not_try_it_again_but_the_next_start_does(home: Path) -> None:
    (home / "broken").touch()
    first = started(home)
    wait_for(lambda: compiles(home) == 1, first.is_alive)
    workers = [first, started(home), started(home)]
    found = {ended(home, worker) for worker in workers}
    assert found == {"tiny.c:2:10: fatal error: Python.h: No such file or directory"}
    assert compiles(home) == 1
    (home / "broken").unlink()
    assert ended(home, started(home)) is None


def test_a_damaged_build_is_named_and_made_again_by_the_next_start(home: Path) -> None:
    assert ended(home, started(home)) is None
    (library,) = home.glob("temporary/*/*/tiny/tiny.so")
    library.write_bytes(b"")
    os.utime(library, (time.time() + 100, time.time() + 100))
    why = ended(home, started(home))
    assert why is not None
    assert "file too short" in why
    assert ended(home, started(home)) is None


def test_a_directory_that_cannot_be_written_is_a_reason(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(home / "gone"))
    why = prepared("tiny", lambda: None)
    assert why is not None
    assert "No such file or directory" in why


def test_workers_agree_on_another_optimizer_and_rank_0_says_why(
    home: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    offloaded = TrainPlacement(gpus_per_worker=1, offload_optimizer=True)
    (home / "broken").touch()
    import_deepspeed(gpu=False)
    with group.joined(1, gpu=False):
        assert not cpuadam.agreed(TrainPlacement(offload_optimizer=True), rank=0), "a CPU worker uses PyTorch's"
        assert not cpuadam.agreed(TrainPlacement(gpus_per_worker=1), rank=0)
        assert compiles(home) == 0
        assert not cpuadam.agreed(offloaded, rank=0)
    compiling, warning = [text for level, text in said.records if level == "WARNING"]
    assert compiling == "compiling cpu_adam for the processor of this node, once; it takes about a minute"
    assert "DeepSpeed's CPU Adam cannot be used, so PyTorch's AdamW" in warning
    assert "; worker 0: tiny.c:2:10: fatal error: Python.h: No such file or directory; " in warning


REAL = """
import sys, tempfile, torch
tempfile.tempdir = sys.argv[1]
from humpback_ray.placement import TrainPlacement
from humpback_ray.train.engine import cpuadam, group, zero
from humpback_ray.train.recipe import TrainRecipe
zero.import_deepspeed(gpu=False)
placement = TrainPlacement(gpus_per_worker=1, offload_optimizer=True)
with group.joined(1, gpu=False):
    assert cpuadam.agreed(placement, 0)
    recipe = TrainRecipe(dtype="float32")
    config = zero.engine_config(placement.model_copy(update={"gpus_per_worker": 0}), recipe, cpu_adam=True)
    engine = zero.start_engine(torch.nn.Linear(3, 2), config, gpu=False)
    zero.finish_step(engine, engine(torch.ones(1, 3)).sum())
    print(type(engine.optimizer.optimizer).__name__)
"""


@pytest.mark.chaos
def test_deepspeeds_own_adam_is_compiled_beside_a_stale_mark_and_used(tmp_path: Path) -> None:
    def run() -> str:
        found = subprocess.run([sys.executable, "-c", REAL, str(tmp_path)], capture_output=True, text=True, check=True)
        return found.stdout.split()[-1]

    assert run() == "DeepSpeedCPUAdam"
    (build,) = tmp_path.glob("*/*/cpu_adam")
    (build / "lock").touch()
    assert run() == "DeepSpeedCPUAdam"
    assert not (build / "lock").exists()
