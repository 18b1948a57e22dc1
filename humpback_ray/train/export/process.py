"""The fresh process that checks exports (fresh.py), from the side of the process that trains.

It starts when a training does or before (stages/warm.py), since its imports take 4 s, and waits. A process that trains
several models on CPUs keeps it for the next one. It does not see what would make it a worker of a distributed run: the
variables of launchers, Accelerate and OpenMP are taken out of its environment, and without GPUs it sees none. It finds
the package where its parent does, from a working directory that nobody deletes.
"""

import atexit
import contextlib
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any, cast

from humpback_ray.train.export import fresh

logger = logging.getLogger(__name__)

SAY_EVERY_S = 60.0
"""Seconds between log lines while a check runs."""

_WORKER = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "ROLE_", "CROSS_", "MASTER_",
    "TORCHELASTIC_", "ACCELERATE_", "FSDP_", "DEEPSPEED_", "DS_", "MPI_", "OMPI_", "PMI_", "SLURM_", "OMP_", "GOMP_",
    "KMP_", "MKL_", "RAY_",
)  # fmt: skip
"""Beginnings of the names of variables that launchers, runtimes and distributed libraries set."""

_processes: "dict[int, Process]" = {}
"""The process of this process, by its id, so that a forked one has its own."""


class CheckFailed(RuntimeError):
    """The check could not be made; that says nothing about the model, and may be tried again."""


class Process:
    """A running fresh.py.

    Args:
        gpu: whether it may see GPUs.
    """

    def __init__(self, gpu: bool) -> None:
        self.gpu, self._owner = gpu, os.getpid()
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-m", fresh.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(os.environ, gpu),
            cwd=os.sep,
            start_new_session=True,  # Ctrl-C ends it by the end of its input, without a traceback
        )
        atexit.register(self.end)

    def runs(self) -> bool:
        """Tell whether it runs."""
        return self._popen.poll() is None

    def ask(self, request: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        """Send a request and return the reply.

        Raises:
            CheckFailed: it ended or did not answer in time; the message says how.
        """
        stdin, stdout = cast(IO[bytes], self._popen.stdin), cast(IO[bytes], self._popen.stdout)
        reply = b""
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
            deadline = time.monotonic() + limit_s
            with selectors.DefaultSelector() as selector:
                selector.register(stdout, selectors.EVENT_READ)
                while not reply.endswith(b"\n"):
                    left_s = deadline - time.monotonic()
                    if not selector.select(max(0.0, min(left_s, SAY_EVERY_S))):
                        if left_s <= SAY_EVERY_S:
                            raise CheckFailed(f"it did not answer within {limit_s:,.0f} s, and was ended")
                        logger.info("the export is being checked, for %.0f s so far", limit_s - left_s + SAY_EVERY_S)
                        continue
                    block = os.read(stdout.fileno(), 1 << 16)
                    if not block:
                        raise CheckFailed(_end_words(self._popen.wait()))
                    reply += block
            return json.loads(reply)
        except BrokenPipeError:
            code = self._popen.wait()
            self.end()
            raise CheckFailed(_end_words(code)) from None
        except BaseException:
            self.end()  # a late reply would be taken for that of the next request
            raise

    def end(self) -> None:
        """End the process, if it runs."""
        if os.getpid() != self._owner:  # a fork of the owner ends
            return
        atexit.unregister(self.end)
        self._popen.kill()
        self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # a request that was not read
                    pipe.close()


def started(gpu: bool) -> Process:
    """Return this process's fresh process; start it unless it runs."""
    here = os.getpid()
    found = _processes.get(here)
    if found is None or found.gpu != gpu or not found.runs():
        ended()
        found = _processes[here] = Process(gpu)
    return found


def ended() -> None:
    """End this process's fresh process, if any: it would hold memory of the GPU."""
    found = _processes.pop(os.getpid(), None)
    if found is not None:
        found.end()


def environment(given: Mapping[str, str], gpu: bool) -> dict[str, str]:
    """Return the variables of a fresh process."""
    kept = {name: value for name, value in given.items() if not name.startswith(_WORKER)}
    kept["PYTHONPATH"] = os.pathsep.join(_search_path())
    kept |= {"HF_HUB_OFFLINE": "1"} | ({} if gpu else {"CUDA_VISIBLE_DEVICES": ""})
    return kept


def _search_path() -> Iterator[str]:
    """Yield the absolute directories in which this process looks for modules."""
    for entry in sys.path:
        if isinstance(entry, str):  # Python ignores others, such as a Path
            with contextlib.suppress(FileNotFoundError):  # relative to a working directory that was deleted
                yield os.path.abspath(entry)


def _end_words(code: int) -> str:
    """Say how a process ended."""
    import psutil

    if code == -signal.SIGKILL:
        free = psutil.virtual_memory().available
        return (
            "it was killed (signal 9), as the kernel does if the host or the container runs out of memory; "
            f"{free:,} bytes are free now"
        )
    return f"it was ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"
