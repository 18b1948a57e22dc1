"""Drivers with their own Ray, as processes that tests kill and stop."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from humpback_ray.placement import TrainPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.records import TOKENS
from humpback_ray.stages import stage
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.lease import Lease
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.manifest import Manifest, read_manifest
from humpback_ray.stages.models import Model
from humpback_ray.stages.outputs import TableWriter
from humpback_ray.stages.stage import Place, Stage
from humpback_ray.storage.inventory import Hashes, resolve_model
from humpback_ray.train.recipe import TrainRecipe
from humpback_ray.train.tune import TrainConfig, fine_tune

REPOSITORY = Path(__file__).parents[2]

TUNE = """
import sys
import ray
from humpback_ray.stages.lease import LeaseLost
from tests.train.drivers import tune

ray.init(address="local", num_cpus=2, include_dashboard=False)
try:
    tune(*sys.argv[1:])
except LeaseLost as lost:
    print(lost)
    sys.exit(3)
"""


def write_tokens(root: str, tokens: pa.Table) -> Manifest:
    """Make the stage `tokens/seed` of a root."""

    def work(attempt: Attempt) -> Commit:
        writer = TableWriter(attempt, TOKENS)
        writer.write(tokens)
        return writer.commit()

    return Stage(Place("tokens/seed", f"{root}/tokens/seed", "test"), {}, {}, TOKENS).leased(work)


def tune(root: str, submission: str, recipe: str, placement: str) -> None:
    """Fine-tune `<root>/base` on `<root>/tokens/seed`, under a lease with a quick heartbeat."""
    stage.Lease = functools.partial(Lease, beat_s=0.3, stale_s=3.0)  # pyright: ignore[reportAttributeAccessIssue]
    tokens = read_manifest(f"{root}/tokens/seed")
    assert tokens is not None
    base = Model(f"{root}/base", resolve_model("base_model", f"{root}/base", Hashes(f"{root}/hashes.json")))
    config = TrainConfig(
        recipe=TrainRecipe.model_validate_json(recipe), placement=TrainPlacement.model_validate_json(placement)
    )
    fine_tune(config, ChatRecipe(), "m0", base, [tokens], Place("models/m0", f"{root}/models/m0", submission))


@contextlib.contextmanager
def driver(script: str, arguments: Sequence[str], log: Path) -> Iterator[psutil.Popen]:
    """Run a driver with SIGINT blocked as under `ray job submit`; at the end kill it, then all processes it started."""
    blocked = functools.partial(signal.pthread_sigmask, signal.SIG_BLOCK, {signal.SIGINT})
    command = [sys.executable, "-c", script, *arguments]
    with log.open("w") as file:
        process = psutil.Popen(command, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT, preexec_fn=blocked)
    try:
        yield process
    finally:
        left = process.children(recursive=True) if process.poll() is None else []
        for one in (process, *left):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs([process, *left], timeout=20)


def training_workers(process: psutil.Process) -> list[psutil.Process]:
    """Return the workers of Ray Train among the processes of a driver."""
    found = []
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [child] if "RayTrainWorker" in " ".join(child.cmdline()) else []
    return found


def send(number: signal.Signals, processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        os.kill(process.pid, number)


def wait_for(condition: Callable[[], Any], alive: Callable[[], bool], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert alive(), "the run ended before it could be killed"
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
