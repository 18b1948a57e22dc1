"""Checks of this repository that need a GPU: one GPU, fifteen minutes; without a GPU, the same in tiny sizes.

    python -m tests.gpu.check [REPO] [--parts dtype,exact,train] [--budget-s 450] [--out DIR]

Prints a JSON line per figure and appends it to DIR/gpu_check.jsonl; docs/gpu.md explains them. The exit status is 1 if
a part failed; a goal of speed that is missed is no failure. A part that fails does not stop the others: on a GPU each
runs in its own process, since a process is unusable after a CUDA error, and a process that hangs is ended at its own
limit. Parts that do not fit into the budget are skipped with a line that says so.

It needs the packages that docs/gpu.md lists and none of `ABSENT`, which it blocks; only the part `ray` may import them.
The file may be copied anywhere; the check is of REPO.
"""

import argparse
import contextlib
import faulthandler
import importlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from tests.gpu.report import Report

ABSENT = ("ray", "vllm", "s3fs", "fastwarc", "resiliparse", "publicsuffixlist", "rich", "aiobotocore", "botocore")
"""Modules that a bare GPU machine lacks."""

GRACE_S = 30
"""Seconds that a running part may take beyond the budget, and beyond its own limit."""


@dataclass(frozen=True)
class Part:
    """A part of the check: its module in tests/gpu, its function there, and its time on a GPU."""

    module: str
    function: str
    least_s: float
    """An assumption: imports, a model, one figure. A part that has no such time left is not started."""
    most_s: float
    """After that, the part starts nothing new, and soon its process is ended: one that hangs leaves the others time."""


PARTS = {
    "dtype": Part("replies", "part_dtype", 10, 30),
    "ceilings": Part("ceilings", "part_ceilings", 15, 40),
    "exact": Part("training", "part_exact", 30, 80),
    "train": Part("training", "part_train", 40, 225),
    "engine-7b": Part("replies", "part_engine_large", 60, 150),
    "ray": Part("cluster", "part_ray", 60, 110),
    "lora": Part("training", "part_lora", 45, 75),
    "liger": Part("training", "part_liger", 45, 75),
    "engine-1b": Part("replies", "part_engine", 40, 75),
    "offload": Part("training", "part_offload", 60, 150),
}
"""In the order of their value, which is the order in which they run."""
UNBLOCKED = ("ray",)
"""Parts that may import `ABSENT`; each runs in its own process."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; return 1 if one failed."""
    arguments = parse(argv)
    if not set(arguments.parts) <= set(UNBLOCKED):
        cast(Any, sys.modules).update(dict.fromkeys(ABSENT))
    sys.path.insert(0, arguments.repo)
    with lines_alone() as stream:
        from tests.gpu.report import Report

        faulthandler.enable()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the running part's process too
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
        began, gpu = arguments.began or time.time(), has_gpu()
        report = Report(stream, Path(arguments.out, "gpu_check.jsonl"), arguments.budget_s, began, gpu)
        if not arguments.began:
            report.say("machine", **described(gpu))
        with tempfile.TemporaryDirectory(prefix="gpu-check-", dir=os.environ.get("GPU_CHECK_DIR")) as room:
            failed = run(arguments, report, Path(room), gpu)
        if not arguments.began:
            report.say("end", failed=failed, missed_goals=report.missed_goals(), seconds=round(report.at_s, 1))
    return int(bool(failed))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repo", nargs="?", default=".", help="root of the repository")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}; all by default")
    parser.add_argument("--budget-s", type=float, default=440, help="seconds after which nothing new is started")
    parser.add_argument("--out", default=os.environ.get("OUT", "."), help="directory of gpu_check.jsonl")
    parser.add_argument("--apart", action="store_true", help="run each part in its own process, as on a GPU")
    parser.add_argument("--began", type=float, default=0.0, help=argparse.SUPPRESS)  # passed to the process of a part
    parser.add_argument("--shared", help=argparse.SUPPRESS)  # likewise
    arguments = parser.parse_args(argv)
    arguments.parts = arguments.parts.split(",")
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    return arguments


@contextlib.contextmanager
def lines_alone() -> Iterator[TextIO]:
    """Yield a stream to stdout and send the output of libraries to stderr, so stdout has only lines of JSON."""
    sys.stdout.flush()
    before = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(before), "w") as stream:
            yield stream
    finally:
        sys.stdout.flush()
        os.dup2(before, 1)
        os.close(before)


def has_gpu() -> bool:
    """Return whether torch has a GPU; without one, set torch to a single thread, which is enough."""
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    return torch.cuda.is_available()


def described(gpu: bool) -> dict[str, Any]:
    """Return the machine's hardware and the versions that affect its figures."""
    import psutil
    import torch

    from tests.gpu.report import installed

    return {
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "device_gb": round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1) if gpu else None,
        "host_gb": round(psutil.virtual_memory().total / 1e9, 1), "cpus": os.cpu_count(),
        **{name.replace("-", "_"): installed(name) for name in
           ("torch", "transformers", "deepspeed", "accelerate", "flash-attn", "liger-kernel")},
    }  # fmt: skip


def run(arguments: argparse.Namespace, report: "Report", room: Path, gpu: bool) -> list[str]:
    """Run each part that there is time for; return the parts that failed."""
    shared = Path(arguments.shared or room)
    apart = not arguments.began and (gpu or arguments.apart)
    blocked = set(arguments.parts) - set(UNBLOCKED)

    def one(name: str) -> None:
        if apart or (blocked and name in UNBLOCKED):
            run_apart(name, arguments, report, shared)
        else:
            run_here(name, report, shared, room, gpu)

    return run_parts(arguments.parts, report, least_s=lambda name: PARTS[name].least_s if gpu else 0.0, one=one)


def run_parts(
    names: Sequence[str], report: "Report", least_s: Callable[[str], float], one: Callable[[str], None]
) -> list[str]:
    """Run parts one after another, even if some fail; return those that failed.

    Args:
        names: names of the parts.
        report: receives the parts that fail or are skipped.
        least_s: returns a part's least time, in seconds.
        one: runs a part.
    """
    failed = []
    for name in names:
        missed = len(report.missed)
        if report.fits(name, least_s(name)):
            report.attempt(name, partial(one, name))
        if len(report.missed) > missed:
            failed.append(name)
    return failed


def run_here(name: str, report: "Report", shared: Path, room: Path, gpu: bool) -> None:
    """Run a part in this process."""
    faulthandler.dump_traceback_later(max(report.left_s, 0) + GRACE_S / 2)  # shows on stderr where a part hangs
    try:
        from tests.gpu.material import Check

        module = importlib.import_module(f"tests.gpu.{PARTS[name].module}")
        part: Callable[[Check], None] = getattr(module, PARTS[name].function)
        part(Check(report, shared, room, gpu))
    finally:
        faulthandler.cancel_dump_traceback_later()


def run_apart(name: str, arguments: argparse.Namespace, report: "Report", shared: Path) -> None:
    """Run a part in its own process, which reports its own failures.

    Raises:
        RuntimeError: the process crashed or took too long.
    """
    left_s = min(max(report.left_s, 0), PARTS[name].most_s)
    command = [
        sys.executable, __file__, arguments.repo, "--parts", name, "--out", arguments.out,
        "--budget-s", str(report.at_s + left_s), "--began", str(report.began), "--shared", str(shared),
    ]  # fmt: skip
    limit_s = left_s + GRACE_S
    try:
        done = subprocess.run(command, check=False, timeout=limit_s, stdout=report.stream)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"it was ended after {limit_s:.0f} s; stderr says where it was") from None
    if done.returncode not in (0, 1):
        raise RuntimeError(f"its process ended with {done.returncode}")
    if done.returncode:
        report.missed.append(name)


if __name__ == "__main__":
    sys.exit(main())
