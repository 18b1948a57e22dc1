"""Fine-tuning, compared with the usual alternatives; the examples are the demo's.

    make bench-train     (or: python -m tests.benchmarks.training speed exact)

`speed` needs TRL and so the virtual environment `.venv-bench` that the make target makes.

speed    output tokens/s of the loop in one process over those of TRL's SFTTrainer with padding, over those of the same
         with its packing, and over those of a bare forward, backward and AdamW step on the same packed tensors. Llamas
         of 3 M and 50 M parameters with random weights, float32, 32 examples per step; TRL packs as many tokens. The
         demo's examples are nearly all of one length, so `3m_long` has examples as long and as varied as the paper's.
exact    the largest relative difference of a step's loss from that of a plain PyTorch loop over 20 steps in float32:
         1, 2 and 4 workers, ZeRO 1, 2 and 3, packed and each example alone.

The rivals take turns in one call, each in its own process; every figure is the median over rounds of a ratio taken
within a round.
"""

import contextlib
import itertools
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from humpback_ray.placement import TrainPlacement
from humpback_ray.records import PAIR, record_id
from humpback_ray.seed import SeedRecipe, seed_file
from humpback_ray.train.data.examples import Examples, read_examples
from humpback_ray.train.data.tokens import tokenise
from humpback_ray.train.recipe import TrainRecipe
from tests.benchmarks.inference import SHAPES, Material, line, main, save_llama
from tests.train.conftest import plain_loop
from tests.train.workers import Case, job, run

STEPS = {"3m": 20, "50m": 4, "3m_long": 2}
"""Number of steps in a turn, after one that is not counted."""
PAPER_CHARS = ((148, 322, 1072, 818), (206, 298, 1985, 649))
"""Characters in the seed and in A_4: mean and deviation of instruction and output (Li et al. 2023, arXiv:2308.06259,
table 1)."""
BATCH = 32
ROOM_TOKENS = 4096
RECIPE = TrainRecipe(
    dropout=0.0, dtype="float32", batch_examples=BATCH, learning_rate=1e-4, final_learning_rate=1e-5,
    steps={"m0": 10_000},
)  # fmt: skip


def demo_pairs(material: Material, folder: Path) -> list[dict[str, Any]]:
    """Return the demo's seed pairs, and a pair like a candidate for each segment of its web."""
    with (folder / "web/seed.jsonl").open("rb") as stream:
        seed = seed_file(stream, "seed.jsonl", SeedRecipe()).to_pylist()
    asked, draw = [pair["instruction"] for pair in seed], random.Random(0)
    augmented = [
        {"id": record_id(text), "instruction": draw.choice(asked), "response": text, "source": "augmented"}
        for text in material.texts
    ]
    return seed + augmented


def long_pairs(material: Material, count: int = 512) -> list[dict[str, Any]]:
    """Return pairs of the web's text with lengths like the paper's: half like its seed, half like its A_4."""
    draw = random.Random(0)

    def text(mean: float, deviation: float) -> str:
        chars = draw.gammavariate((mean / deviation) ** 2, deviation**2 / mean)
        return " ".join(draw.choices(material.texts, k=round(chars / 20) + 1))[: round(chars) + 1]

    shapes = [PAPER_CHARS[number % 2] for number in range(count)]
    return [
        {"id": str(number), "instruction": text(*shape[:2]), "response": text(*shape[2:]), "source": "seed"}
        for number, shape in enumerate(shapes)
    ]


def write_tokens(material: Material, pairs: list[dict[str, Any]], path: Path) -> str:
    """Write pairs as tokens; those that do not fit the model are dropped."""
    table = pa.Table.from_pylist(pairs, schema=PAIR)
    pq.write_table(tokenise(table, material.tokenizer, material.config.chat, "forward", 2048, "drop"), path)
    return str(path)


@dataclass(frozen=True)
class Bench:
    """The arguments of a rival."""

    base: Path
    tokens: str
    steps: int
    cpus: int

    def examples(self) -> Examples:
        return read_examples([self.tokens])[0]


@contextlib.contextmanager
def benches(cpus: int) -> Iterator[dict[str, Bench]]:
    """Yield the rivals' arguments by the name of the comparison."""
    with tempfile.TemporaryDirectory(prefix="bench-training-") as directory:
        folder = Path(directory)
        material = Material.make(folder / "web")
        demo = write_tokens(material, demo_pairs(material, folder), folder / "demo.parquet")
        long = write_tokens(material, long_pairs(material), folder / "long.parquet")
        bases = {name: save_llama(folder / name, material.tokenizer, **shape) for name, shape in SHAPES.items()}
        yield {
            name: Bench(bases[name.removesuffix("_long")], long if name.endswith("_long") else demo, steps, cpus)
            for name, steps in STEPS.items()
        }


Turn = Callable[[], tuple[int, float]]
"""Trains for the steps of a turn; returns output tokens and seconds."""


def ours(bench: Bench) -> Turn:
    """Prepare the loop in one process."""
    import torch.distributed as dist

    from humpback_ray.train import loop

    rendezvous = f"file://{bench.base}/rendezvous-{os.getpid()}"
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    dist.init_process_group("gloo", init_method=rendezvous, rank=0, world_size=1)
    this = job(bench.base, (bench.tokens,), bench.base / "export", **dict(RECIPE))
    session = loop.Session(0, 1, str(bench.base / "checkpoints"), "0001", lambda figures: None)
    running = loop.prepare(this, TrainPlacement(micro_batch_tokens=ROOM_TOKENS), session, bench.base)

    def turn() -> tuple[int, float]:
        for _ in range(bench.steps + 1):
            loop.advance(running, len(running.history) + 1)
        counted = running.history[-bench.steps :]
        return sum(step.output_tokens for step in counted), sum(step.seconds for step in counted)

    return turn


def bare(bench: Bench) -> Turn:
    """Prepare a forward, backward and optimizer step on tensors that are packed in advance."""
    import torch
    from transformers import AutoModelForCausalLM

    from humpback_ray.train.data.packing import pack
    from humpback_ray.train.data.schedule import schedule
    from humpback_ray.train.engine import attention

    model: Any = AutoModelForCausalLM.from_pretrained(bench.base, dtype=torch.float32).train()
    batching = attention.prepare(model, TrainPlacement())
    examples = bench.examples()
    plan = schedule(RECIPE, "m0", len(examples))
    steps = []
    for number in range(1, bench.steps + 2):
        batch = [examples[index] for index in plan.batch(number)]
        micros = pack([example.length for example in batch], 1, ROOM_TOKENS)[0]
        steps.append([attention.inputs([batch[place] for place in micro], batching, "cpu") for micro in micros])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=RECIPE.betas, weight_decay=RECIPE.weight_decay)

    def step(micros: list[tuple[dict[str, Any], Any]]) -> None:
        output_tokens = sum(len(targets) for _, targets in micros)
        optimizer.zero_grad()
        for arguments, targets in micros:
            logits = model(**arguments, use_cache=False).logits[0]
            (torch.nn.functional.cross_entropy(logits, targets, reduction="sum") / output_tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def turn() -> tuple[int, float]:
        step(steps[0])
        since = time.perf_counter()
        for micros in steps[1:]:
            step(micros)
        return sum(len(targets) for micros in steps[1:] for _, targets in micros), time.perf_counter() - since

    return turn


def trl(bench: Bench, packing: bool) -> Turn:
    """Prepare TRL's trainer on the same tokens and with the loss on the same tokens."""
    import torch
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    class Counting(SFTTrainer):
        """Counts the output tokens of every step."""

        def training_step(self, model: Any, inputs: dict[str, Any], *others: Any) -> Any:
            counts.append(int((inputs["labels"] != -100).sum()))
            return super().training_step(model, inputs, *others)

    class Clock(TrainerCallback):
        """Notes when every step ended."""

        def on_step_end(self, *arguments: Any, **others: Any) -> None:
            ends.append(time.perf_counter())

    counts: list[int] = []
    ends: list[float] = []
    examples = list(bench.examples())
    rows = [
        {"input_ids": e.ids.tolist(), "labels": [-100] * e.loss_start + e.ids[e.loss_start :].tolist()}
        for e in examples
    ]
    batch_tokens = sum(e.length for e in examples) * BATCH // len(examples)
    rounds = -(-batch_tokens // ROOM_TOKENS)
    settings = SFTConfig(
        output_dir=str(bench.base / "trl"), max_steps=bench.steps + 1, use_cpu=True, bf16=False, optim="adamw_torch",
        gradient_checkpointing=False, learning_rate=1e-4, weight_decay=RECIPE.weight_decay, adam_beta2=RECIPE.betas[1],
        report_to="none", logging_strategy="no", save_strategy="no", disable_tqdm=True, packing=packing,
        per_device_train_batch_size=1 if packing else BATCH // rounds, gradient_accumulation_steps=rounds,
        max_length=batch_tokens // rounds if packing else None,
    )  # fmt: skip
    trainer = Counting(
        model=AutoModelForCausalLM.from_pretrained(bench.base, dtype=torch.float32),
        args=settings, train_dataset=Dataset.from_list(rows), callbacks=[Clock()],
        processing_class=AutoTokenizer.from_pretrained(bench.base),
    )  # fmt: skip

    def turn() -> tuple[int, float]:
        counts.clear()
        ends.clear()
        trainer.train()
        assert len(counts) == rounds * len(ends) == rounds * (bench.steps + 1)
        return sum(counts[rounds:]), ends[-1] - ends[0]

    return turn


RIVALS: dict[str, Callable[[Bench], Turn]] = {
    "ours": ours,
    "bare_step": bare,
    "trl_padding": lambda bench: trl(bench, packing=False),
    "trl_packing": lambda bench: trl(bench, packing=True),
}


def serve(rival: str, bench: Bench, pipe: Connection) -> None:
    """Prepare a rival, and let it train a turn whenever it is told to."""
    import torch

    torch.set_num_threads(bench.cpus)
    sys.stdout = sys.stderr
    turn = RIVALS[rival](bench)
    pipe.send("ready")
    while pipe.recv():
        pipe.send(turn())


def speed(rounds: int, cpus: int) -> None:
    """Measure the loop against TRL and against the bare step."""
    with benches(cpus) as found:
        for name, bench in found.items():
            rates = race(name, bench, rounds)
            for rival, theirs in rates.items():
                line(f"speed_{name}_{rival}_output_tokens_per_s", theirs, "-")
            for rival, goal in (("trl_padding", ">=2"), ("trl_packing", ">=1.1"), ("bare_step", ">=0.9")):
                ratios = [mine / theirs for mine, theirs in zip(rates["ours"], rates[rival], strict=True)]
                line(f"speed_{name}_over_{rival}", ratios, goal)


def race(name: str, bench: Bench, rounds: int) -> dict[str, list[float]]:
    """Let the rivals train in turn; return the output tokens per second of each by round."""
    spawn = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    rates: dict[str, list[float]] = {rival: [] for rival in RIVALS}
    for rival in RIVALS:
        pipes[rival], theirs = spawn.Pipe()
        spawn.Process(target=serve, args=(rival, bench, theirs), daemon=True).start()
        assert pipes[rival].recv() == "ready"
    for turn in range(rounds + 1):
        for rival, pipe in pipes.items():
            pipe.send(True)
            tokens, seconds = pipe.recv()
            if turn:  # the first turn is a warm-up
                rates[rival].append(tokens / seconds)
        if turn:
            print(f"{name}: " + ", ".join(f"{rival} {found[-1]:.0f}" for rival, found in rates.items()), flush=True)
    for pipe in pipes.values():
        pipe.send(False)
    return rates


EXACT_STEPS = 20
EXACT = RECIPE.model_copy(update={"steps": {"m0": EXACT_STEPS}, "batch_examples": 8})


def exact(rounds: int, cpus: int) -> None:
    """Measure how far the losses of all layouts are from a plain loop's; one round is enough."""
    del rounds
    worst = {"packed": 0.0, "unpacked": 0.0}
    with benches(cpus) as found:
        bench = found["3m"]
        expected = [loss for loss, _ in plain_loop(bench.base, (bench.tokens,), EXACT)]
        for workers, stage in itertools.product((1, 2, 4), (1, 2, 3)):
            at = bench.base / f"{workers}-{stage}"
            cases = [
                Case(
                    name,
                    job(bench.base, (bench.tokens,), at / "export", **dict(EXACT)),
                    TrainPlacement(zero_stage=stage, micro_batch_tokens=room),
                )
                for name, room in (("packed", 150), ("unpacked", 1))
            ]
            for name, result in run(cases, workers, at, patience_s=1800).items():
                losses = [step["loss"] for step in result["metrics"]]
                apart = max(abs(a / b - 1) for a, b in zip(losses, expected, strict=True))
                worst[name] = max(worst[name], apart)
                print(f"{workers} workers, ZeRO {stage}, {name}: {apart:.2g}", flush=True)
    for name, apart in worst.items():
        line(f"exact_{name}_largest_relative_difference", [apart], "<=1e-5", ".2g")


PARTS: dict[str, Callable[[int, int], None]] = {"speed": speed, "exact": exact}


if __name__ == "__main__":
    main(str(__doc__), PARTS, list(PARTS))
