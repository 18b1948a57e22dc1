"""The memory that a fine-tune takes, compared with the estimate of `train/memory.py`.

    python -m tests.benchmarks.memory [3m 50m 300m] [--workers 1 2] [--stages 1 2 3] [--dtypes float32 bfloat16]

Llamas with random weights take three steps of two micro-batches of 1,024 tokens, in worker processes joined by gloo,
through the loop that Ray Train calls. After the first step the storages of all live tensors are summed (each once).
During the next two steps, torch's profiler records every allocation and release of its CPU allocator. The result is the
bytes at rest plus the highest sum of those events. That is exactly the memory of tensors, temporary ones inside
operators included. It is not the memory of the process, which includes libraries and memory that the allocator keeps.
The printed figure is that of the largest worker. Copies made by gloo's own threads are not counted.
"""

import argparse
import gc
import itertools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from humpback_ray.placement import TrainPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.records import PAIR, record_id
from humpback_ray.train.data.tokens import tokenise
from humpback_ray.train.job import TrainJob
from humpback_ray.train.memory import Layout, Memory, memory
from humpback_ray.train.recipe import TrainRecipe
from humpback_ray.train.sizes import shape_of
from tests.train.conftest import make_tokenizer
from tests.train.workers import spawned

SHAPES = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 300},
    "3m": {"hidden_size": 256, "num_hidden_layers": 3, "vocab_size": 2560},
    "50m": {"hidden_size": 512, "num_hidden_layers": 15, "vocab_size": 2560},
    "300m": {"hidden_size": 1024, "num_hidden_layers": 24, "vocab_size": 2560},
}
CHAT = ChatRecipe.model_validate({"backward": {"opening": "", "turn": "\n"}})
EXAMPLES, LENGTH = 4, 256
"""Examples in a micro-batch, and tokens in each."""
STEPS = 3


@dataclass(frozen=True)
class Case:
    """One layout of one model."""

    model: str
    workers: int
    stage: int
    dtype: str = "float32"
    checkpointing: bool = False

    @property
    def placement(self) -> TrainPlacement:
        """The placement of this layout."""
        return TrainPlacement.model_validate({
            "workers": self.workers, "zero_stage": self.stage, "activation_checkpointing": self.checkpointing,
            "micro_batch_tokens": EXAMPLES * LENGTH,
        })  # fmt: skip

    @property
    def recipe(self) -> TrainRecipe:
        """A recipe with three steps of two micro-batches per worker."""
        return TrainRecipe.model_validate({
            "steps": {"backward": STEPS}, "batch_examples": 2 * EXAMPLES * self.workers, "dtype": self.dtype,
            "dropout": 0.0, "max_length_tokens": LENGTH,
        })  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Bytes of one worker."""

    rest: int
    """Between two steps."""
    peak: int


def make_base(folder: Path, name: str) -> Path:
    """Write a Llama with random weights and a tokenizer with one token per letter."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = SHAPES[name]
    config = LlamaConfig(
        intermediate_size=shape["hidden_size"] * 11 // 4, num_attention_heads=shape["hidden_size"] // 32,
        num_key_value_heads=shape["hidden_size"] // 32, max_position_embeddings=512, bos_token_id=0, eos_token_id=1,
        **shape,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_examples(folder: Path) -> str:
    """Write examples of LENGTH tokens each, nearly all of them output."""
    marks = len("b\n") + len(["<s>", "</s>"])
    always = {"response": "b", "source": "seed", "score": None, "drop_reason": None}
    rows = [
        {"id": record_id("pair", n), "instruction": chr(65 + n % 26) * (LENGTH - marks), **always} for n in range(64)
    ]
    path = folder / "tokens.parquet"
    table = pa.Table.from_pylist(rows, schema=PAIR)
    pq.write_table(tokenise(table, make_tokenizer(), CHAT, "backward", LENGTH, "drop"), path)
    return str(path)


def planned(case: Case, base: Path) -> Memory:
    """Return the plan's memory."""
    shape = shape_of(json.loads((base / "config.json").read_text()))
    return memory(shape, Layout.of(case.placement, case.recipe, case.workers))


def measure(case: Case, folder: Path) -> Measured:
    """Run a case in its own processes; return the figures of the worker that held most."""
    base = folder / case.model
    if not base.exists():
        make_base(base, case.model)
    directory = Path(tempfile.mkdtemp(dir=folder))
    spawned(work, case.workers, directory, case, str(base), make_examples(folder), wait_s=3600)
    found = [json.loads((directory / f"{rank}.json").read_text()) for rank in range(case.workers)]
    return Measured(*max(found, key=lambda pair: pair[1]))


def work(rank: int, workers: int, directory: Path, case: Case, base: str, pairs: str) -> None:
    """Measure in one worker."""
    (directory / f"{rank}.json").write_text(json.dumps(one(case, base, pairs, str(directory), rank)))


def one(case: Case, base: str, pairs: str, directory: str, rank: int) -> tuple[int, int]:
    """Train three steps; return the bytes at rest and the highest."""
    from torch.profiler import ProfilerActivity, profile

    from humpback_ray.train import loop

    advance, at_rest, events = loop.advance, [], []

    def watched(run: Any, step: int) -> bool:
        if step == 1:
            advance(run, step)
            gc.collect()
            at_rest.append(living_bytes())
            return False
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            advance(run, step)
        events.append(highest(recorded))
        return False

    job = TrainJob("backward", "backward", base, (pairs,), case.recipe, CHAT, f"{directory}/model")
    session = loop.Session(rank, case.workers, f"{directory}/checkpoints", "0001", lambda figures: None)
    loop.advance, loop.export_model = (
        watched,
        lambda *arguments: ([], []),
    )  # patched in this process, which does nothing else
    loop.train(job, case.placement, session)
    return at_rest[0], at_rest[0] + max(events)


def living_bytes() -> int:
    """Return the bytes of the storages of all Python tensors, each once."""
    import torch

    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def highest(recorded: Any) -> int:
    """Return the highest sum of allocations minus releases."""
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        most = max(most, total)
    return most


def report(case: Case, plan: Memory, found: Measured) -> float:
    """Print a case; return the difference between plan and measurement."""
    ratio, rest = plan.peak / found.peak, plan.parameters + plan.optimizer
    name = f"memory_{case.model}_workers{case.workers}_zero{case.stage}_{case.dtype}"
    name += "_checkpointing" if case.checkpointing else ""
    split = " ".join(f"{part}={getattr(plan, part) / 1e6:.1f}" for part in vars(plan))
    print(
        f"BENCH {name}_planned_over_measured value={ratio:.3f} goal=0.9..1.1 planned_mb={plan.peak / 1e6:.1f} "
        f"measured_mb={found.peak / 1e6:.1f} at_rest_mb={rest / 1e6:.1f}/{found.rest / 1e6:.1f} ({split})",
        flush=True,
    )
    return abs(ratio - 1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help=f"some of {', '.join(SHAPES)}; default: 3m 50m 300m")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--stages", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--dtypes", nargs="*", default=["bfloat16", "float32"])
    parser.add_argument("--checkpointing", action="store_true")
    arguments = parser.parse_args()
    models = arguments.models or ["3m", "50m", "300m"]
    if unknown := set(models) - set(SHAPES):
        parser.error(f"unknown models: {', '.join(unknown)}; the models are {', '.join(SHAPES)}")
    apart = []
    with tempfile.TemporaryDirectory(prefix="bench-memory-") as directory:
        folder = Path(directory)
        layouts: Any = itertools.product(models, arguments.workers, arguments.stages, arguments.dtypes)
        for model, workers, stage, dtype in layouts:
            case = Case(model, workers, stage, dtype, arguments.checkpointing)
            found = measure(case, folder)
            apart.append(report(case, planned(case, folder / case.model), found))
    print(f"BENCH memory_plan_apart value={max(apart):.3f} goal=<=0.1", flush=True)


if __name__ == "__main__":
    main()
