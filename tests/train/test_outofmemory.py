"""A worker without enough memory ends the run at once, with a verdict that says where and what to change."""

import errno
import functools
import multiprocessing
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from humpback_ray.placement import TrainPlacement
from humpback_ray.train import fit
from humpback_ray.train.engine import zero
from humpback_ray.train.engine.exhausted import doing, exhausted
from humpback_ray.train.fit import launch
from humpback_ray.train.job import OutOfMemory, TrainingStopped
from humpback_ray.train.loop import Session, train
from humpback_ray.train.outofmemory import explained
from humpback_ray.train.recipe import Lora
from tests.train.conftest import examples_of
from tests.train.workers import job

CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which 1.2 GiB is free."
)
CPU = (
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate {}"
)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(CUDA), RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("NCCL error: unhandled cuda error\nLast error:\nFailed to CUDA calloc async 608 bytes"),
        RuntimeError("NCCL WARN Cuda failure 2 'out of memory'"), RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA driver error: out of memory"), RuntimeError("cuda runtime error (2) : out of memory at x:3"),
        RuntimeError("CUDA_ERROR_OUT_OF_MEMORY"), RuntimeError("cudaErrorMemoryAllocation"),
        RuntimeError("cudaMalloc failed: out of memory"), RuntimeError("Failed to CUDA host alloc 1024 bytes"),
        RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"), RuntimeError("HIP out of memory. Tried to allocate"),
        RuntimeError(CPU.format("64 bytes. Error code 12 (Cannot allocate memory)")), MemoryError(),
        RuntimeError("std::bad_alloc"), OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)  # fmt: skip
def test_errors_that_say_that_memory_ran_out_are_known_by_their_types_and_texts(error: Exception) -> None:
    wrapped = RuntimeError("the optimizer failed")
    wrapped.__cause__ = error
    in_cleanup = ValueError("the cleanup failed")
    in_cleanup.__context__ = error
    for one in (error, wrapped, in_cleanup):
        found = exhausted(one)
        assert found is not None
        assert found.cause is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"), OSError(errno.ENOSPC, "No space left"),
        RuntimeError("NCCL communicator was aborted: watchdog timeout"), ValueError("CUDA out of memory"),
        TrainingStopped("the export cannot be loaded: CUDA out of memory"),
        RuntimeError("out of resource: shared memory, Required: 180224, Hardware limit: 101376"), KeyError("memory"),
        RuntimeError("CUDA error: device-side assert triggered\nthe ids are out of memory's range: out of memory"),
        RuntimeError("CUDA process ran out of time waiting for the out of memory killer"),
    ],
)  # fmt: skip
def test_other_errors_pass_unchanged(error: Exception, base: Path, tmp_path: Path) -> None:
    session = Session.alone(str(tmp_path))
    with (
        pytest.raises(type(error)) as raised,
        explained(job(base, (), tmp_path), TrainPlacement(), session),
        doing("x"),
    ):
        raise error
    assert raised.value is error


def test_an_allocation_that_fails_in_training_ends_it_with_the_step_the_micro_batch_and_the_fixes(
    base: Path, pairs: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zero, "load_model", functools.partial(load_greedy, zero.load_model, calls=3))
    this = job(base, pairs, tmp_path / "model", steps={"m0": 3}, batch_examples=8)
    with pytest.raises(OutOfMemory) as error:
        train(this, TrainPlacement(micro_batch_tokens=300), Session.alone(str(tmp_path / "checkpoints")))
    said = str(error.value)
    assert "m0: worker 0 of 1 on " in said
    assert "ran out of host memory at step 1, in a micro-batch of " in said
    assert "it asked for 65536.00 GiB; this process holds " in said
    assert "the plan expects 0." in said
    assert re.search(r"lower micro_batch_tokens to 1\d\d \(it is 300\), set activation_checkpointing to true, ", said)
    assert "zero_stage" not in said, "a single worker shares nothing"
    assert "offload" not in said, "a CPU worker's optimizer is on the host already"


def limited(base: Path, told: Path) -> None:
    """Ask for more memory than this process may have, and write down the verdict."""
    limit = psutil.Process().memory_info().vms + (1 << 28)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        with explained(job(base, (), base), TrainPlacement(), Session.alone("checkpoints")), doing("while loading"):
            torch.empty(1 << 30, dtype=torch.uint8)
    except OutOfMemory as verdict:
        told.write_text(str(verdict))


def test_the_limit_of_a_process_is_named(base: Path, tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=limited, args=(base, tmp_path / "told"))
    process.start()
    process.join()
    said = (tmp_path / "told").read_text()
    assert "ran out of host memory while loading: it asked for 1.00 GiB; this process has " in said
    assert " of addresses, and its limit (ulimit -v) is " in said
    assert "micro_batch_tokens" not in said
    assert "use nodes with more memory" in said


def load_greedy(load: Callable[..., Any], *arguments: Any, calls: int) -> Any:
    """Load a model whose forward pass asks for 64 TiB the given time it is called."""
    model, dropouts = load(*arguments)
    left = iter([False] * (calls - 1) + [True])

    def ask(*_: Any) -> None:
        if next(left):
            torch.empty(1 << 46, dtype=torch.uint8)

    model.register_forward_pre_hook(ask)
    return model, dropouts


def verdict(base: Path, placement: TrainPlacement, lengths: list[int], error: Exception, **recipe: Any) -> str:
    """Return the verdict on an error of rank 1 of 2 in a micro-batch; without lengths, in the update."""
    session = Session(1, 2, "checkpoints", "0001", lambda figures: None)
    micro = examples_of(lengths)
    at = doing(micro=micro) if lengths else doing("in the update")
    with pytest.raises(OutOfMemory) as raised, explained(job(base, (), base, **recipe), placement, session):  # noqa: SIM117
        with doing("at step 12"), at:
            raise error
    return str(raised.value)


def test_the_fixes_are_those_that_are_not_used_yet(base: Path) -> None:
    gpu: dict[str, Any] = {"workers": 2, "gpus_per_worker": 1, "micro_batch_tokens": 4096}
    cuda = torch.OutOfMemoryError(CUDA)
    plain = verdict(base, TrainPlacement(**gpu), [2000, 1500, 500], cuda)
    assert "m0: worker 1 of 2" in plain
    assert (
        "ran out of GPU memory at step 12, in a micro-batch of 3 examples with 4,000 tokens, the longest with 2,000: "
        "it asked for 2.00 GiB; " in plain
    )
    assert (
        "In train.placement, lower micro_batch_tokens to 2048 (it is 4096), set activation_checkpointing to true, "
        "set zero_stage to 3 (it is 2), set offload_optimizer to true, use more workers (there are 2)" in plain
    )
    low = TrainPlacement(**gpu, zero_stage=1)
    assert "set offload_optimizer to true with zero_stage 2 or 3" in verdict(base, low, [3000, 96], cuda)
    assert "lower micro_batch_tokens to 3000 (it is 4096)" in verdict(base, low, [3000, 96], cuda)
    alone = verdict(base, TrainPlacement(**gpu, activation_checkpointing=True), [2000], cuda)
    assert "lower train.recipe.max_length_tokens to 1024 (it is 2048, and" in alone
    assert "a lower micro_batch_tokens does not help since the example is alone" in alone
    assert "activation_checkpointing" not in alone
    all_on = TrainPlacement(
        **gpu, zero_stage=3, activation_checkpointing=True, offload_optimizer=True, offload_parameters=True
    )
    last = verdict(base, all_on, [], cuda)
    assert "at step 12, in the update: " in last
    assert "In train.placement, use more workers (there are 2), since" in last
    assert ", or use GPUs with more memory; then submit the run again" in last
    assert "micro_batch_tokens" not in last, "no micro-batch is computed in the update"


def test_activations_are_not_blamed_where_no_backward_pass_keeps_them(base: Path, tmp_path: Path) -> None:
    session, micro = Session(1, 2, "checkpoints", "0001", lambda figures: None), examples_of([2000, 1500])
    this, placement = job(base, (), tmp_path), TrainPlacement(workers=2, gpus_per_worker=1)
    with pytest.raises(OutOfMemory) as raised, explained(this, placement, session):  # noqa: SIM117
        with doing("in the validation after step 3", backward=False), doing(micro=micro):
            raise torch.OutOfMemoryError(CUDA)
    said = str(raised.value)
    assert "in the validation after step 3, in a micro-batch of 2 examples" in said
    assert "lower micro_batch_tokens to 2048 (it is " in said
    assert "activation_checkpointing" not in said


def test_memory_of_the_host_is_told_from_that_of_the_gpu(base: Path) -> None:
    offloading = TrainPlacement(workers=2, gpus_per_worker=1, offload_optimizer=True)
    said = verdict(base, offloading, [], RuntimeError(CPU.format("1073741824 bytes")))
    assert "ran out of host memory at step 12, in the update: it asked for 1.00 GiB; this process holds " in said
    assert "set offload_optimizer and offload_parameters to false" in said
    assert "or use nodes with more memory" in said


def test_the_plan_is_only_quoted_for_models_and_methods_that_it_knows(base: Path, tmp_path: Path) -> None:
    placement, error = TrainPlacement(workers=2), MemoryError("Unable to allocate 1.5 GiB for an array")
    assert "it asked for 1.5 GiB; " in verdict(base, placement, [9], error)
    assert "the plan expects" in verdict(base, placement, [9], error)
    assert "the plan" not in verdict(base, placement, [9], error, method=Lora())
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    assert "the plan" not in verdict(tmp_path, placement, [9], error)
    assert "the plan" not in verdict(tmp_path / "gone", placement, [9], error)


def starved_worker(last: int, tries: str, config: dict[str, Any]) -> Any:
    """Train as one worker of Ray Train; the last rank's second forward pass asks for 64 TiB."""
    import ray.train

    if ray.train.get_context().get_world_rank() == last:
        with Path(tries).open("a") as file:
            file.write(f"{time.time()}\n")
        zero.load_model = functools.partial(load_greedy, zero.load_model, calls=2)
    return fit.worker(config)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("failures", [3, pytest.param(0, marks=pytest.mark.chaos)])
def test_if_one_of_two_workers_lacks_memory_the_run_ends_after_one_try_although_the_other_waits(
    base: Path,
    pairs: tuple[str, ...],
    tmp_path: Path,
    local_ray: None,
    monkeypatch: pytest.MonkeyPatch,
    failures: int,
) -> None:
    tries = tmp_path / "tries"
    monkeypatch.setattr(fit, "worker", functools.partial(starved_worker, 1, str(tries)))
    placement = TrainPlacement(workers=2, cpus_per_worker=0.5, micro_batch_tokens=300, max_failures=failures)
    this = job(base, pairs, tmp_path / "model", batch_examples=16)
    with pytest.raises(TrainingStopped, match=r"m0: worker 1 of 2 .* ran out of host memory at step 1") as error:
        launch(this, placement, "0001", str(tmp_path / "runs"))
    assert "lower micro_batch_tokens to " in str(error.value)
    assert "set zero_stage to 3 (it is 2)" in str(error.value)
    (began,) = map(float, tries.read_text().split())
    assert time.time() - began < 60, "loading, two micro-batches and the end of the other worker take a few seconds"
