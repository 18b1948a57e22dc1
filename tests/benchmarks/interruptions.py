"""The cost of an interruption of a fine-tune: a worker is killed, a node is lost, a node joins.

    python -m tests.benchmarks.interruptions    (a part of make bench-train)

A Llama of 3 M parameters learns from the demo's segments on a cluster of one-CPU nodes, with `workers: [1, 2]` and a
checkpoint every five steps; the interruption comes at a random step. Seconds lost are those without a new step: Ray
notices, the workers restart, and they repeat the steps since the checkpoint; if a node joins, until the larger group
has caught up. The final loss is compared with that of an undisturbed run.
"""

import argparse
import random
import tempfile
from pathlib import Path
from typing import Any

from humpback_ray.placement import TrainPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.train.job import TrainJob
from humpback_ray.train.recipe import TrainRecipe
from tests.benchmarks.inference import SHAPES, Material, line, save_llama
from tests.benchmarks.training import demo_pairs, write_tokens
from tests.train.elastic import Event, Scenario, play

STEPS = 200
"""Ray Train sees a new node up to 20 s after it has joined, and the larger group needs some steps too."""
RECIPE = TrainRecipe(
    steps={"m0": STEPS}, learning_rate=3e-4, final_learning_rate=3e-5, dropout=0.0, dtype="float32", batch_examples=8
)
PLACEMENT = TrainPlacement(
    workers=(1, 2), resize_every_s=1, micro_batch_tokens=200, checkpoint_every_steps=5, max_failures=1
)
NODES = {"kill": 2, "lose": 2, "join": 1}
"""Number of nodes at the start of a run, by the kind of interruption."""


def kill(rounds: int) -> None:
    """Measure the cost of each interruption, and compare the final loss with that of an undisturbed run."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="bench-interruptions-") as directory:
        folder = Path(directory)
        material = Material.make(folder / "web")
        base = save_llama(folder / "base", material.tokenizer, **SHAPES["3m"])
        tokens = write_tokens(material, demo_pairs(material, folder), folder / "tokens.parquet")

        def run(name: str, nodes: int, *events: Event) -> dict[str, Any]:
            job = TrainJob("m0", "forward", str(base), (tokens,), RECIPE, ChatRecipe(), str(folder / name / "model"))
            made = play(Scenario(job, PLACEMENT, folder / name / "runs", nodes, events))
            print(f"{name}: {made['seconds']:.0f} s, without a new step {made['gaps_s']}", flush=True)
            return made

        alone = run("alone", 2)["metrics"]
        lost: dict[str, list[float]] = {kind: [] for kind in NODES}
        apart = []
        for turn in range(rounds):
            for kind, nodes in NODES.items():
                event = Event(kind, rng.randrange(8, STEPS // 4))  # pyright: ignore[reportArgumentType]
                made = run(f"{kind}-{turn}", nodes, event)
                assert kind == "kill" or made["workers"] == [nodes, 3 - nodes], f"workers over time: {made['workers']}"
                lost[kind] += made["gaps_s"]
                apart.append(abs(made["metrics"][-1]["loss"] / alone[-1]["loss"] - 1))
        line("interruptions_worker_killed_s", lost["kill"], "-")
        line("interruptions_two_to_one_s", lost["lose"], "-")
        line("interruptions_one_to_two_s", lost["join"], "-")
        print(f"final loss {alone[-1]['loss']:.6f} alone, others differ by at most {max(apart):.1e} of it", flush=True)
        line("interruptions_final_loss_apart_ppm", [1e6 * value for value in apart], "<=10")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    kill(parser.parse_args().rounds)


if __name__ == "__main__":
    main()
