"""The verdict on a training whose memory ran out: where, how much of it was used, and what to change.

The same batch would not fit the next time either, so the run ends at once. Only the worker that ran out raises
`OutOfMemory`: the others may wait for it in a collective, so whoever started them must end them (fit.py does).
"""

import contextlib
import json
import re
import resource
import socket
from collections.abc import Iterator, Sequence

from humpback_ray import storage
from humpback_ray.placement import TrainPlacement
from humpback_ray.train.engine.exhausted import Exhausted, exhausted, on_host
from humpback_ray.train.job import OutOfMemory, TrainJob
from humpback_ray.train.memory import Layout, memory
from humpback_ray.train.sizes import shape_of
from humpback_ray.train.state import Session

_ASKED = re.compile(r"(?:tried|unable) to allocate ([\d.]+) ?(bytes|[KMGT]?i?B)", re.IGNORECASE)


@contextlib.contextmanager
def explained(job: TrainJob, placement: TrainPlacement, session: Session) -> Iterator[None]:
    """Turn an error of the block that says that memory ran out into a verdict.

    Raises:
        OutOfMemory: memory ran out on this worker.
    """
    try:
        yield
    except Exception as error:
        found = exhausted(error)
        if found is None:
            raise
        raise OutOfMemory(_verdict(job, placement, session, found)) from found.cause


def _verdict(job: TrainJob, placement: TrainPlacement, session: Session, error: Exhausted) -> str:
    gpu = placement.gpus_per_worker > 0 and not on_host(error.cause)
    figures = [_asked(str(error.cause)), _held(gpu), _planned(job, placement, session.workers, error.lengths, gpu)]
    where = ", ".join(error.where) or "before its first step"
    return (
        f"{job.model}: worker {session.rank} of {session.workers} on {socket.gethostname()} ran out of "
        f"{'GPU' if gpu else 'host'} memory {where}: {'; '.join(filter(None, figures))}. The same would happen again. "
        f"{_remedies(job, placement, session.workers, error, gpu)}; then submit the run again"
    )


def _asked(said: str) -> str:
    """Return the amount of memory that an allocator's message names."""
    match = _ASKED.search(said)
    if match is None:
        return f"the error is {' '.join(said.split())[:200]!r}" if said.strip() else ""
    amount, unit = match.groups()
    return f"it asked for {_gib(float(amount)) if unit == 'bytes' else f'{amount} {unit}'}"


def _held(gpu: bool) -> str:
    """Return what this process holds of the memory that ran out, and how much there is."""
    if not gpu:
        return _held_on_host()
    import torch

    with contextlib.suppress(RuntimeError, AssertionError):  # after an error, CUDA may answer nothing more
        free, total = torch.cuda.mem_get_info()
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        others = max(total - free - torch.cuda.memory_reserved(), 0)
        return (
            f"PyTorch allocated up to {_gib(allocated)} and reserved up to {_gib(reserved)} of the GPU's "
            f"{_gib(total)}, while CUDA itself and other processes hold {_gib(others)}"
        )
    return ""


def _held_on_host() -> str:
    import psutil

    limit, total = resource.getrlimit(resource.RLIMIT_AS)[0], psutil.virtual_memory().total
    process = psutil.Process().memory_info()
    if limit != resource.RLIM_INFINITY:
        return f"this process has {_gib(process.vms)} of addresses, and its limit (ulimit -v) is {_gib(limit)}"
    return (
        f"this process holds {_gib(process.rss)}, all processes {_gib(psutil.virtual_memory().used)} of {_gib(total)}"
    )


def _planned(job: TrainJob, placement: TrainPlacement, workers: int, lengths: Sequence[int], gpu: bool) -> str:
    """Return what the plan expects of such a worker; "" for models and methods that it does not know."""
    if job.recipe.method.kind != "full":
        return ""
    tokens = max(placement.micro_batch_tokens, *lengths, 0)
    used = placement.model_copy(update={"micro_batch_tokens": tokens})
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        config = storage.local_directory(job.base) / "config.json"
        shape = shape_of(json.loads(config.read_text(encoding="utf-8")))
        expected = memory(shape, Layout.of(used, job.recipe, workers))
        on_host = expected.host if placement.gpus_per_worker else expected.host + expected.peak
        return f"the plan expects {_gib(expected.peak if gpu else on_host)} at most, without what the allocator wastes"
    return ""


def _remedies(job: TrainJob, placement: TrainPlacement, workers: int, error: Exhausted, gpu: bool) -> str:
    """Say which settings would lower the need: only those that are not at their lowest yet."""
    found, more = list(_smaller_batch(job, placement, error.lengths)), f"more workers (there are {workers})"
    if error.lengths and error.backward and not placement.activation_checkpointing:
        found.append("set activation_checkpointing to true")
    if workers > 1 and placement.zero_stage < 3:
        found.append(f"set zero_stage to 3 (it is {placement.zero_stage})")
    if gpu and not placement.offload_optimizer:
        stage = "" if placement.zero_stage >= 2 else " with zero_stage 2 or 3"
        found.append(f"set offload_optimizer to true{stage}")
    elif gpu and not placement.offload_parameters:
        stage = "" if placement.zero_stage == 3 else " with zero_stage 3"
        found.append(f"set offload_parameters to true{stage}")
    if not gpu and placement.gpus_per_worker and placement.offload_optimizer:
        found.append("set offload_optimizer and offload_parameters to false")
    if placement.zero_stage > 0:
        more += ", since each holds a share of the optimizer's state"
    found += [f"use {more}", f"or use {'GPUs' if gpu else 'nodes'} with more memory"]
    return f"In train.placement, {', '.join(found)}"


def _smaller_batch(job: TrainJob, placement: TrainPlacement, lengths: Sequence[int]) -> Iterator[str]:
    """Say how to make a micro-batch smaller: by fewer examples, or by a shorter one if it is alone."""
    if not lengths:
        return
    lower = 1 << (3 * sum(lengths) // 4).bit_length() - 1  # the largest power of 2 that makes a difference
    if len(lengths) > 1:
        yield f"lower micro_batch_tokens to {max(lower, *lengths)} (it is {placement.micro_batch_tokens})"
    elif lengths[0] > 1:
        yield (
            f"lower train.recipe.max_length_tokens to {lower} (it is {job.recipe.max_length_tokens}, and a lower "
            "micro_batch_tokens does not help since the example is alone)"
        )


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"
