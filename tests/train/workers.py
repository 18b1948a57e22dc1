"""Training workers without Ray: processes of their own, joined by gloo, that run the loop on one case after another."""

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from humpback_ray.placement import TrainPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.train.job import TrainingStopped, TrainJob
from humpback_ray.train.recipe import TrainRecipe

RECIPE = TrainRecipe(
    steps={"m0": 12}, learning_rate=6e-4, final_learning_rate=9e-6, dropout=0.0, dtype="float32", batch_examples=7
)
"""Seven examples divide by neither two workers nor micro-batches of three: some are empty or short."""


@dataclass(frozen=True)
class Case:
    """One call of the loop: it resumes from and saves to `checkpoints`; `first` is called before, by rank 0."""

    name: str
    job: TrainJob
    placement: TrainPlacement
    checkpoints: Path | None = None
    first: Callable[[], None] | None = None


def job(base: Path, pairs: tuple[str, ...], export: Path, **changes: Any) -> TrainJob:
    recipe = RECIPE.model_copy(
        update={key: changes.pop(key) for key in list(changes) if key in TrainRecipe.model_fields}
    )
    values: dict[str, Any] = {"model": "m0", "direction": "forward", "chat": ChatRecipe()} | changes
    return TrainJob(base_uri=str(base), pair_uris=pairs, recipe=recipe, export_uri=str(export), **values)


def run(cases: list[Case], workers: int, directory: Path) -> dict[str, dict[str, Any]]:
    """Run cases in `workers` processes; return rank 0's results by case, or `stopped` with the verdict."""
    directory.mkdir(parents=True, exist_ok=True)
    spawned(work, workers, directory, cases)
    return json.loads((directory / "results.json").read_text())


def spawned(target: Callable[..., None], workers: int, directory: Path, *arguments: Any, wait_s: float = 240) -> None:
    """Call `target(rank, workers, directory, *arguments)` in so many processes, joined by gloo."""
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(target=joined, args=(target, rank, workers, directory, *arguments)) for rank in range(workers)
    ]
    for rank, process in enumerate(processes):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": workers}.items():
                patch.setenv(name, str(value))
            process.start()
    for process in processes:
        process.join(wait_s)
        process.kill()


def joined(target: Callable[..., None], rank: int, workers: int, directory: Path, *arguments: Any) -> None:
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
        )
        try:
            results[case.name] = asdict(train(case.job, case.placement, session)) | {"at": str(directory)}
        except TrainingStopped as verdict:
            results[case.name] = {"stopped": str(verdict)}
    if rank == 0:
        (directory / "results.json").write_text(json.dumps(results))
