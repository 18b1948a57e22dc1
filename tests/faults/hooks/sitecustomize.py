"""Put on PYTHONPATH by a fault test: kills a driver, an actor or a raylet at an armed step, once.

The folder FAULT_PLAN holds a file `<step>.<role>` per planned kill; the process that renames it does the kill. Drivers
have FAULT_DRIVER set and write their process id there; actors write that of their raylet, which is their parent.
"""

import contextlib
import os
import signal
import threading
from pathlib import Path

from humpback_ray.storage import steps

PLAN = Path(os.environ["FAULT_PLAN"])
IS_DRIVER = "FAULT_DRIVER" in os.environ


def leave(role: str, pid: int) -> None:
    """Write a process id so that who reads it at that moment never finds half of it."""
    whole = PLAN / f"{role}.pid.{os.getpid()}.{threading.get_ident()}"
    whole.write_text(str(pid))
    whole.replace(PLAN / f"{role}.pid")


def at(step: str) -> None:
    parent = os.getppid()
    if not IS_DRIVER and Path(f"/proc/{parent}/comm").read_text().strip() == "raylet":  # not who adopts its orphans
        leave("raylet", parent)
    number = step.split()[0]
    for role in ("driver", "actor", "raylet"):
        armed = PLAN / f"{number}.{role}"
        if armed.exists() and not (role == "actor" and IS_DRIVER):
            with contextlib.suppress(OSError):
                pid = os.getpid() if role == "actor" else int((PLAN / f"{role}.pid").read_text())
                armed.rename(PLAN / f"{number}.{role}.done")
                os.kill(pid, signal.SIGKILL)


if IS_DRIVER:
    leave("driver", os.getpid())
steps.hook = at
