"""DeepSpeed's CPU Adam: C++ that each node compiles for its own processor, once, in about a minute.

torch.utils.cpp_extension marks a build by a file. If its process is killed, the file stays, and every later start would
wait for it forever. So we build in a directory of our own, and only under a lock that the kernel takes back when a
process dies: whoever holds it knows that a mark is stale. The killed process's compiler may still be running; it keeps
the old directory, and the build begins in a new one.

If it cannot be compiled, or cannot be loaded, training uses PyTorch's AdamW, the same one on all workers.
"""

import contextlib
import io
import logging
import os
import platform
import re
import secrets
import shutil
import sysconfig
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from humpback_ray import storage
from humpback_ray.placement import TrainPlacement
from humpback_ray.train.engine import group

logger = logging.getLogger(__name__)

NAME = "cpu_adam"

_TELLING = re.compile(r"error:|not found|no such file|no space|cannot |denied|not permitted", re.IGNORECASE)


def agreed(placement: TrainPlacement, rank: int) -> bool:
    """Prepare CPU Adam if a placement needs it; return whether every worker has it. All workers call it at once."""
    if not (placement.offload_optimizer and placement.gpus_per_worker):
        return False
    problems = group.gathered(prepared(NAME, _load))
    first = next((f"worker {worker}: {why}" for worker, why in enumerate(problems) if why), None)
    if first and rank == 0:
        logger.warning(
            "DeepSpeed's CPU Adam cannot be used, so PyTorch's AdamW updates the offloaded weights, several times "
            "slower; %s; the nodes need a C++ compiler, Python's headers, and 20 MB in the temporary directory",
            first,
        )
    return first is None


def _load() -> object:
    from deepspeed.ops.op_builder import CPUAdamBuilder  # pyright: ignore[reportAttributeAccessIssue]

    return CPUAdamBuilder().load(verbose=False)


def prepared(name: str, load: Callable[[], object]) -> str | None:
    """Compile an extension for this node unless that was done, and load it; return what was wrong, or None.

    Args:
        name: name of the extension.
        load: calls `torch.utils.cpp_extension.load` with that name and no directory.
    """
    began = time.time()
    purpose = f"{name} {platform.python_version()} {version('torch')} {version('deepspeed')} {_processor()}"
    try:
        with storage.node_directory(
            purpose, lambda: logger.info("waiting for another worker to compile %s", name)
        ) as home:
            failure = home / "failure"
            if failure.exists() and failure.stat().st_mtime >= began:  # it failed while we waited for our turn
                return failure.read_text(encoding="utf-8")
            why = _loaded(name, home, load)
            if why:
                failure.write_text(why, encoding="utf-8")
            return why
    except OSError as error:
        return str(error)


def _loaded(name: str, home: Path, load: Callable[[], object]) -> str | None:
    from accelerate.utils import patch_environment

    build = home / name
    if (build / "lock").exists():
        logger.info("the last process that compiled %s was killed; beginning again", name)
        _abandon(build)
    fresh, began = not (build / f"{name}.so").exists(), time.monotonic()
    if fresh:
        # A warning, because nobody sees what a worker logs as information, and the run seems to stand still.
        logger.warning("compiling %s for the processor of this node, once; it takes about a minute", name)
    path = os.pathsep.join([sysconfig.get_path("scripts"), *os.get_exec_path()])  # pip puts ninja there
    try:
        with contextlib.redirect_stdout(io.StringIO()), patch_environment(torch_extensions_dir=str(home), path=path):
            load()
    except Exception as error:  # noqa: BLE001 whatever is wrong, another optimizer does it too
        _abandon(build)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return next((line for line in lines if _TELLING.search(line)), next(iter(lines), type(error).__name__))
    if fresh:
        logger.info("compiled %s in %.0f s", name, time.monotonic() - began)
    return None


def _abandon(build: Path) -> None:
    """Delete a build whose compiler may still be running: it keeps its directory, which no longer has the name."""
    gone = build.with_name(f"abandoned-{secrets.token_hex(4)}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(build, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _processor() -> str:
    """Name the processor and its instructions: the directory may come to another machine in a disk image."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        known = ("model name", "flags", "Features")
        return platform.machine() + "".join(sorted({line for line in file if line.startswith(known)}))
    return platform.machine()
