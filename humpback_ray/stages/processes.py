"""Worker processes on other machines of the cluster: end one, or read its last output.

Both are Ray tasks that need no CPU and are bound to the process's node, so they run even if an actor does not answer. A
node that does not run them in time counts as lost.

SIGUSR1 asks a hanging process for the stacks of its threads. `answer_when_ended` lets faulthandler write them and then
passes the signal on, which ends the process: once it is gone, its output is complete.
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
"""Time limit of a task without resources: a worker process may have to start for it."""
STACKS_S = 20.0
"""Time that a hanging process has to write its stacks before it is killed; a busy machine may be slow to run it."""
WORDS_BYTES = 32_000
"""Bytes kept of the end of standard error. A stack takes about 1,000, and an engine has dozens of threads."""


@dataclass(frozen=True)
class Process:
    """A worker process, as code on another machine needs to know it."""

    node_id: str
    node: str
    pid: int
    stderr: str
    """Path of its standard error on that node; "" if that is not a file."""


class NodeLost(RuntimeError):
    """The node is gone or does not answer."""


class Dead(RuntimeError):
    """This process's engine has died, so it can do no more work and should end."""


def answer_when_ended() -> None:
    """Make this process write its stacks to standard error when `end` ends it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # standard error is not a file, or not POSIX
        faulthandler.register(signal.SIGUSR1, all_threads=True, chain=True)


def born(pid: int | None = None) -> str:
    """Return when a process (None: this one) began, in ticks since its machine booted; "" if unknown.

    Together with the pid this identifies a process. Unlike psutil's time, it does not change when a clock is set.
    """
    try:
        return Path(f"/proc/{pid or 'self'}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def end(node_id: str, pid: int, began: str = "") -> None:
    """End a worker process; it first writes where it hangs, and is killed if that takes longer than `STACKS_S`.

    Args:
        node_id: Ray's id of its node.
        pid: its process id.
        began: what `born` returns for it there, so a new process with the same pid is spared; "": skip this check.

    Raises:
        NodeLost: the node is gone or does not answer.
    """
    _on_node(node_id, _end, pid, began)


def words(node_id: str, path: str) -> str:
    """Return the end of a file on a node: the last output of a dead process to standard error.

    Raises:
        NodeLost: the node is gone or does not answer.
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
            return  # another process has its pid by now
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
