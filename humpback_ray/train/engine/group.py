"""Messages between the workers of a fine-tune; every worker must make each call, or the others would wait."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from humpback_ray.train.job import TrainingStopped

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@contextlib.contextmanager
def joined(workers: int, gpu: bool) -> Iterator[None]:
    """Start torch.distributed for a single worker if it is not up, and set what a launcher would set."""
    import torch.distributed as dist
    from accelerate.utils import patch_environment

    if workers > 1 and not dist.is_initialized():
        raise RuntimeError(f"torch.distributed is not up, and {workers} workers need it; start them as fit.py does")
    if not dist.is_initialized():
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group("nccl" if gpu else "gloo", store=store, rank=0, world_size=1)
    with warnings.catch_warnings(), patch_environment(**({"local_rank": 0} if workers == 1 else {})):
        warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)  # DeepSpeed's calls
        yield


def chosen(rank: int, choose: Callable[[], T]) -> T:
    """Let rank 0 choose, and return its choice on every worker."""
    import torch.distributed as dist

    choice: list[Any] = [choose() if rank == 0 else None]
    dist.broadcast_object_list(choice)
    return choice[0]


def agree(problem: str | None) -> None:
    """Stop every worker if one of them has a problem; if only that one stopped, the others would wait."""
    problems = [text for text in gathered(problem) if text]
    if problems:
        raise TrainingStopped(problems[0])


def gathered(value: T) -> list[T]:
    """Return every worker's value, by rank."""
    import torch.distributed as dist

    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def every(values: Sequence[float], device: "torch.device") -> list[tuple[float, ...]]:
    """Return, for each value, a tuple with every worker's, by rank; faster than `gathered`."""
    import torch
    import torch.distributed as dist

    mine = torch.tensor(values, dtype=torch.float64, device=device)
    together = torch.empty(dist.get_world_size() * len(values), dtype=torch.float64, device=device)
    dist.all_gather_into_tensor(together, mine)
    return list(zip(*together.view(-1, len(values)).tolist(), strict=True))
