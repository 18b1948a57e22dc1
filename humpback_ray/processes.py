"""Worker processes on other machines of the cluster: end one, read what it wrote last.

Both are Ray tasks without CPUs that are bound to the process's node, so they run where an actor would not answer. A
node that does not run them in time is taken for lost.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NODE_ANSWERS_S = 60
"""How long a node has to run a task that needs nothing: a worker process may have to start for it."""
WORDS_BYTES = 4000


class NodeLost(RuntimeError):
    """The node is gone, or does not answer."""


class Dead(RuntimeError):
    """What this process works with has died (its engine), so it can do no more work and should end."""


def end(node_id: str, pid: int, started: float) -> None:
    """Ask a worker process where it hangs (faulthandler writes that to its standard error), then kill it.

    Raises:
        NodeLost: nobody is there to do it.
    """
    _on_node(node_id, _end, pid, started)


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


def _end(pid: int, started: float) -> None:
    import psutil

    try:
        process = psutil.Process(pid)
        if process.create_time() > started + 1:
            return  # another process has its number by now
        if hasattr(signal, "SIGUSR1"):
            os.kill(pid, signal.SIGUSR1)
            time.sleep(0.5)
        process.kill()
    except psutil.NoSuchProcess:
        return


def _tail(path: str) -> str:
    if not path or not os.path.isfile(path):
        return ""
    data = Path(path).read_bytes()[-WORDS_BYTES:]
    return data.decode("utf-8", "replace").strip()
