"""Worker processes on other machines of the cluster: end one, read what it wrote last.

Both are Ray tasks without CPUs that are bound to the process's node, so they run where an actor would not answer. A
node that does not run them in time is taken for lost.

A hanging process is asked for the stacks of its threads with SIGUSR1. `answer_when_ended` lets faulthandler write them
and then passes the signal on, which ends the process: once it is gone, all of its words are there.
"""

import contextlib
import faulthandler
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NODE_ANSWERS_S = 60
"""How long a node has to run a task that needs nothing: a worker process may have to start for it."""
STACKS_S = 20.0
"""How long a hanging process has to write its stacks before it is killed: on a busy machine it waits for its turn."""
WORDS_BYTES = 32_000
"""The end of its standard error that is kept. A stack takes about 1,000, and an engine has dozens of threads."""


@dataclass(frozen=True)
class Process:
    """A worker process, as somebody on another machine needs to know it."""

    node_id: str
    node: str
    pid: int
    stderr: str
    """Path of its standard error on that node; "" if it is no file."""


class NodeLost(RuntimeError):
    """The node is gone, or does not answer."""


class Dead(RuntimeError):
    """What this process works with has died (its engine), so it can do no more work and should end."""


def answer_when_ended() -> None:
    """Let this process write where it hangs to its standard error when `end` ends it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # standard error is no file, or not POSIX
        faulthandler.register(signal.SIGUSR1, all_threads=True, chain=True)


def born(pid: int | None = None) -> str:
    """Return when a process (None: this one) began, in ticks since its machine did; "" where no one can tell.

    With its number this identifies a process. Clocks that are set do not change it, as they do psutil's time.
    """
    try:
        return Path(f"/proc/{pid or 'self'}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def end(node_id: str, pid: int, began: str = "") -> None:
    """End a worker process; it says where it hangs first, and is killed if it takes longer than `STACKS_S` to do so.

    Args:
        node_id: Ray's id of its node.
        pid: its number.
        began: what `born` says of it there; another process of that number is spared. "": it is known to be this one.

    Raises:
        NodeLost: nobody is there to do it.
    """
    _on_node(node_id, _end, pid, began)


def words(node_id: str, path: str) -> str:
    """Return the end of a file on a node: what a process that died wrote to its standard error last.

    Raises:
        NodeLost: nobody is there to read it.
    """
    return _on_node(node_id, _tail, path)


def _on_node(node_id: str, call: Callable[..., Any], *arguments: Any) -> Any:
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    bound = NodeAffinitySchedulingStrategy(node_id, soft=False)
    task = ray.remote(call).options(num_cpus=0, max_retries=0, scheduling_strategy=bound).remote(*arguments)
    try:
        return ray.get(task, timeout=NODE_ANSWERS_S)
    except RayError as error:
        ray.cancel(task)
        raise NodeLost(f"node {node_id} does not answer: {type(error).__name__}") from error


def _end(pid: int, began: str) -> None:
    import psutil

    try:
        process = psutil.Process(pid)
        if began and born(pid) != began:
            return  # another process has its number by now
        if hasattr(signal, "SIGUSR1"):
            process.send_signal(signal.SIGUSR1)
            deadline = time.monotonic() + STACKS_S
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
                time.sleep(0.05)
        process.kill()
    except psutil.NoSuchProcess:
        return


def _tail(path: str) -> str:
    if not path or not os.path.isfile(path):
        return ""
    data = Path(path).read_bytes()[-WORDS_BYTES:]
    return data.decode("utf-8", "replace").strip()
