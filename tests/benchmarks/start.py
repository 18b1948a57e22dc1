"""The cost of starting: Ray on this machine, a pool stage of one row, a training of one step.

    make bench-start     (or: python -m tests.benchmarks.start --rounds 3)

A round runs two drivers in turn: one that keeps warm processes (stages/warm.py), as jobs do, and one that does not.
Each starts Ray, runs four stages of one row with the transformers engine and a tiny Llama, and two trainings of one
step with two workers. Before each there is a pause instead of the work of an earlier stage; warm processes start in it.

Seconds do not include the work itself (the engine's reply, the step). Their parts are the times

pool       until the actor's constructor runs, until the engine is built, until there is a manifest
training   until a worker calls the loop, until it could take a step (DeepSpeed, tokenizer, model, engine), until the
           model is exported and loaded again, until the driver has the result
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from humpback_ray.config import load
from humpback_ray.engines import Request, TransformersEngine, generate_all
from humpback_ray.needs import Resources
from humpback_ray.placement import PoolPlacement, TaskPlacement, TrainPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.records import PAIR
from humpback_ray.runconfig import RunConfig
from humpback_ray.stages import warm
from humpback_ray.stages.stage import Place, Stage
from humpback_ray.train import fit, loop
from humpback_ray.train.job import TrainJob
from humpback_ray.train.recipe import TrainRecipe
from jobs.local import start_local_ray
from tests.benchmarks.inference import DEMO, line
from tests.engines.tiny import save_model
from tests.stages.test_stage import make_source
from tests.train.conftest import rows, tokens_of

STAGES, TRAININGS = 4, 2
GOALS = {"pool": 3, "training": 8}
RECIPE = TrainRecipe(steps={"m0": 1}, dropout=0.0, dtype="float32", batch_examples=8)

Times = dict[str, float]


def note(folder: Path, name: str) -> None:
    """Record when something happened, in any process; the first of several workers counts."""
    with (folder / name).open("a") as file:
        file.write(f"{time.time()}\n")


def noted(folder: Path) -> Times:
    return {path.name: min(map(float, path.read_text().split())) for path in folder.iterdir()}


class Predictor:
    """An engine in an actor that records when it is made, built and asked."""

    def __init__(self, folder: Path, model: str, resources: Resources) -> None:
        self.folder = folder
        note(folder, "made")
        self.engine = TransformersEngine(dtype="float32").build(model, resources)
        note(folder, "built")

    async def __call__(self, table: pa.Table) -> pa.Table:
        note(self.folder, "asked")
        await generate_all(self.engine, [Request("Which river?", 4)])
        note(self.folder, "answered")
        return table


def pool(folder: Path, model: str) -> Times:
    """Return the seconds of each part of a stage of one row."""
    source = Stage(Place("source", str(folder / "source"), "bench"), {}, {}, PAIR)
    source = source.once(make_source, ([1],), TaskPlacement(cpus=0.5))
    (folder / "notes").mkdir()
    stage = Stage(Place("made", str(folder / "made"), "bench"), {}, {"source": source}, PAIR)
    placement = PoolPlacement(cpus_per_replica=2)
    began = time.time()
    stage.run(Predictor, (folder / "notes", model), placement, source)
    ended, at = time.time(), noted(folder / "notes")
    parts = {
        "actor": at["made"] - began,
        "engine": at["built"] - at["made"],
        "ledger": at["asked"] - at["built"] + ended - at["answered"],
    }
    return parts | {"whole": sum(parts.values())}


def training(folder: Path, model: str, tokens: str) -> Times:
    """Return the seconds of each part of a training of one step."""
    (folder / "notes").mkdir(parents=True)
    job = TrainJob("m0", "forward", model, (tokens,), RECIPE, ChatRecipe(), str(folder / "model"))
    original = fit.worker

    def worker(config: dict[str, Any]) -> Any:
        advance = loop.advance

        def step(*arguments: Any) -> Any:
            note(folder / "notes", "ready")
            done = advance(*arguments)
            note(folder / "notes", "stepped")
            return done

        note(folder / "notes", "called")
        loop.advance = step
        result = original(config)
        note(folder / "notes", "exported")
        return result

    fit.worker = worker
    try:
        began = time.time()
        fit.launch(job, TrainPlacement(workers=2), "0001", str(folder / "runs"))
        ended, at = time.time(), noted(folder / "notes")
    finally:
        fit.worker = original
    parts = {
        "workers": at["called"] - began,
        "model": at["ready"] - at["called"],
        "export": at["exported"] - at["stepped"],
        "result": ended - at["exported"],
    }
    return parts | {"whole": sum(parts.values())}


def measure(folder: Path, keep: bool, pause_s: float) -> dict[str, list[Times]]:
    """Start Ray in this process and run everything once."""
    import ray
    from transformers import AutoTokenizer

    model = str(save_model(folder / "model"))
    tokens = str(folder / "tokens.parquet")
    pq.write_table(tokens_of(rows(30), AutoTokenizer.from_pretrained(model)), tokens)
    began = time.time()
    start_local_ray(load(RunConfig, DEMO, []))
    init = {"whole": time.time() - began}
    if not keep:
        warm.drop()
    found: dict[str, list[Times]] = {"init": [init], "pool": [], "training": []}
    for number in range(STAGES):
        time.sleep(pause_s)
        found["pool"].append(pool(folder / f"stage-{number}", model))
    for number in range(TRAININGS):
        time.sleep(pause_s)
        found["training"].append(training(folder / f"training-{number}", model, tokens))
    ray.shutdown()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pause-s", type=float, default=15)
    parser.add_argument("--one", choices=["warm", "cold"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        with tempfile.TemporaryDirectory(prefix="bench-start-") as name:
            print(json.dumps(measure(Path(name), arguments.one == "warm", arguments.pause_s)))
        return
    found: dict[str, dict[str, list[Times]]] = {"warm": {}, "cold": {}}
    for number in range(arguments.rounds):
        for kind in ("warm", "cold") if number % 2 else ("cold", "warm"):
            command = [sys.executable, "-m", __spec__.name, "--one", kind, "--pause-s", str(arguments.pause_s)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=dict(os.environ))
            for what, times in json.loads(done.stdout.splitlines()[-1]).items():
                found[kind].setdefault(what, []).extend(times)
    for kind, measured in found.items():
        for what, times in measured.items():
            parts = [f"{part} {statistics.median(one[part] for one in times):.2f}" for part in times[0]]
            print(f"{what}, {kind}: {', '.join(parts)} s")
    for kind, measured in found.items():
        for what, times in measured.items():
            goal = f"<={GOALS[what]}" if kind == "warm" and what in GOALS else "-"
            line(f"start_{what}_{kind}_s", [one["whole"] for one in times], goal)


if __name__ == "__main__":
    main()
