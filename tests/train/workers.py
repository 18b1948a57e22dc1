"""Training workers without Ray: processes joined by gloo that run the loop on one case after another."""

import itertools
import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from humpback_ray.placement import TrainPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.train.job import TrainingStopped, TrainJob
from humpback_ray.train.recipe import TrainRecipe

RECIPE = TrainRecipe(
    steps={"m0": 12}, learning_rate=6e-4, final_learning_rate=9e-6, dropout=0.0, dtype="float32", batch_examples=7
)
"""Seven examples do not divide by two workers: one of them has a smaller or an empty micro-batch."""

PRELOAD = [
    "pandas", "torch._inductor.compile_fx", "networkx", "deepspeed", "deepspeed.ops.op_builder.all_ops",
    "deepspeed.module_inject.auto_ep_config", "transformers.models.llama.modeling_llama", "peft",
    "humpback_ray.train.loop",
]  # fmt: skip
"""Modules that workers import until the end of their first step, most of them for DeepSpeed's engine."""


@dataclass(frozen=True)
class Case:
    """One call of the loop, which resumes from and saves to `checkpoints`; before it, rank 0 calls `first`.

    At step `warned` the last rank is told that its machine is about to be taken away.
    """

    name: str
    job: TrainJob
    placement: TrainPlacement
    checkpoints: Path | None = None
    first: Callable[[], None] | None = None
    warned: int | None = None


def job(base: Path, pairs: tuple[str, ...], export: Path, **changes: Any) -> TrainJob:
    recipe = RECIPE.model_copy(
        update={key: changes.pop(key) for key in list(changes) if key in TrainRecipe.model_fields}
    )
    values: dict[str, Any] = {"model": "m0", "direction": "forward", "chat": ChatRecipe()} | changes
    return TrainJob(base_uri=str(base), token_uris=pairs, recipe=recipe, export_uri=str(export), **values)


def run(cases: list[Case], workers: int, directory: Path, patience_s: float = 600) -> dict[str, dict[str, Any]]:
    """Run cases in `workers` processes; return rank 0's results by case, or `stopped` with the verdict."""
    directory.mkdir(parents=True, exist_ok=True)
    spawned(work, workers, directory, cases, wait_s=patience_s)
    return json.loads((directory / "results.json").read_text())


def spawned(target: Callable[..., None], workers: int, directory: Path, *arguments: Any, wait_s: float = 600) -> None:
    """Call `target(rank, workers, directory, *arguments)` in `workers` processes joined by gloo."""
    fork = multiprocessing.get_context("forkserver")  # of a process that has done the slow imports
    fork.set_forkserver_preload(PRELOAD)
    processes = [
        fork.Process(target=joined, args=(target, rank, workers, directory, *arguments)) for rank in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(wait_s)
        process.kill()


def warnings(step: int | None) -> Callable[[], bool]:
    """Return a function that reports one warning, at a given step: the loop calls it once per step."""
    steps = itertools.count(1)
    return lambda: next(steps) == step


def joined(target: Callable[..., None], rank: int, workers: int, directory: Path, *arguments: Any) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(workers))
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=workers)
    target(rank, workers, directory, *arguments)
    dist.barrier()


def work(rank: int, workers: int, directory: Path, cases: list[Case]) -> None:
    import torch.distributed as dist

    from humpback_ray.train.loop import Session, train

    results: dict[str, Any] = {}
    for case in cases:
        if case.first is not None and rank == 0:
            case.first()
        dist.barrier()
        session = Session(
            rank=rank,
            workers=workers,
            checkpoints=str(case.checkpoints or directory / case.name),
            attempt="0001",
            progress=lambda figures: None,
            leaving=warnings(case.warned if rank == workers - 1 else None),
        )
        try:
            results[case.name] = asdict(train(case.job, case.placement, session)) | {"at": str(directory)}
        except TrainingStopped as verdict:
            results[case.name] = {"stopped": str(verdict)}
    if rank == 0:
        (directory / "results.json").write_text(json.dumps(results))
