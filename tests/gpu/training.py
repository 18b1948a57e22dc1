"""Parts that train: do all layouts give the same losses, how fast, in how much memory?

Runs called `exact` are small and in float32, where layouts only differ by rounding. The others measure speed and memory
of a layout: on a GPU they train a billion parameters or more in bfloat16.
"""

import contextlib
import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

from humpback_ray.train.engine import attention, zero
from tests.gpu.material import Check
from tests.gpu.report import installed
from tests.gpu.runs import Runs, Size, apart, faster, too_far

EXACT = 1e-4
"""Largest relative difference of two layouts' losses in float32; 1.5e-7 on CPUs after 20 steps (performance.md)."""
ROUNDED = 2e-2
"""The same in bfloat16, which has 8 bits of precision: sums in another order differ in the third digit."""
GOALS = {"mfu_of_measured": 0.5}
"""Least figures of speed at 1B."""
COMPILE_S = 45.0
"""Seconds to compile the layers of a model, assumed."""

TINY = Size("tiny", steps=4, micro=128, batch=6, length=64, rate=3e-3)


def figures_size(check: Check) -> Size:
    """Return the size that is measured: about 39,000 tokens per step on a GPU."""
    return Size("1b", steps=6, micro=8192, batch=32, length=2048, rate=1e-4) if check.gpu else TINY


def exact_size(check: Check) -> Size:
    """Return the size at which layouts are compared: about 2,500 tokens per step on a GPU."""
    return Size("100m", steps=6, micro=1024, batch=8, length=512, rate=3e-4) if check.gpu else TINY


def part_train(check: Check) -> None:
    """Run every ZeRO stage and layout in bfloat16."""
    runs = Runs(check, figures_size(check))
    name = f"train-{runs.size.shape}"
    first = runs.run(f"{name}-zero2", 2, exported=True, profiled=True, goals=GOALS)
    runs.longest_s /= 2  # the others export nothing
    stages = {stage: runs.run(f"{name}-zero{stage}", stage) for stage in (3, 1)}
    agree: dict[Any, Any] = {stage: apart(first, rows) for stage, rows in stages.items()}
    check.report.judge("train-stages", too_far(agree, ROUNDED), agree=agree)
    runs.run(f"{name}-checkpointing", 2, activation_checkpointing=True)
    runs.run(f"{name}-dropout", 2, dropout=0.1, profiled=True)
    small = apart(first, runs.run(f"{name}-small-micro", 2, micro_batch_tokens=runs.size.micro // 4))
    check.report.judge("train-layouts", too_far({"small-micro": small}, ROUNDED), agree=small)
    if check.gpu and not shutil.which("cc") and not shutil.which("gcc"):
        check.report.say("compile", skipped="this machine has no C compiler")
    elif check.report.fits("compile", (runs.longest_s + COMPILE_S) * check.gpu):
        compare_compiled(runs, name, first)


def compare_compiled(runs: Runs, name: str, first: Any) -> None:
    """Train with compiled decoder layers; report whether that wins."""
    graphs: dict[str, Any] = {}
    context = partial(compiled_layers, "inductor" if runs.check.gpu else "eager", graphs)
    rows = runs.run(f"{name}-compiled", 2, around=context)
    agree = apart(first, rows)
    runs.check.report.judge(
        "compile", too_far({"compiled": agree}, ROUNDED), agree=agree, speedup=faster(first, rows), **graphs,
        first_step_s=rows and round(rows[0]["seconds"], 1),
    )  # fmt: skip


@contextlib.contextmanager
def compiled_layers(backend: str, graphs: dict[str, Any]) -> Iterator[None]:
    """Let each decoder layer be compiled before DeepSpeed wraps a model; count the graphs.

    Attention stays as it is: it is a kernel already. The lengths of a packed row are hidden from the compiler, which
    would make a graph for each number of examples.

    Args:
        backend: compiler; "eager" only divides the code into graphs, and needs none.
        graphs: receives the number of graphs.
    """
    import torch
    from torch._dynamo.utils import counters
    from transformers import AttentionInterface

    start, inputs = zero.start_engine, attention.inputs

    def attend(*tensors: Any, packed_lengths: Any = None, **others: Any) -> Any:
        return attention.packed_attention(*tensors, packed_lengths=packed_lengths and packed_lengths.value, **others)

    def hidden(*arguments: Any) -> Any:
        found, targets = inputs(*arguments)
        if "packed_lengths" in found:
            found["packed_lengths"] = Hidden(found["packed_lengths"])
        return found, targets

    def compiled(model: Any, *others: Any) -> Any:
        AttentionInterface.register(attention.NAME, torch.compiler.disable(attend))
        for layer in model.model.layers:
            layer.compile(backend=backend, dynamic=True)
        return start(model, *others)

    counters.clear()
    patched = [mock.patch.object(zero, "start_engine", compiled), mock.patch.object(attention, "inputs", hidden)]
    try:
        with patched[0], patched[1]:
            yield
    finally:
        AttentionInterface.register(attention.NAME, attention.packed_attention)
        graphs["graphs"] = counters["stats"]["unique_graphs"]
        torch.compiler.reset()


class Hidden:
    """A value that the compiler does not look into."""

    def __init__(self, value: Any) -> None:
        self.value = value


def part_exact(check: Check) -> None:
    """Compare the losses of all layouts, and of a run that resumes under another stage, in float32."""
    runs = Runs(check, exact_size(check), {"dtype": "float32"})
    name = f"exact-{runs.size.shape}"
    first = runs.run(f"{name}-zero2", 2)
    others = {f"zero{stage}": runs.run(f"{name}-zero{stage}", stage, exported=stage == 3) for stage in (0, 1, 3)}
    others["small-micro"] = runs.run(f"{name}-small-micro", 2, micro_batch_tokens=runs.size.micro // 2)
    agree: dict[Any, Any] = {label: apart(first, rows) for label, rows in others.items()}
    check.report.judge("exact", too_far(agree, EXACT), agree=agree)
    half = runs.size.steps // 2
    runs.run("interrupted", 2, stop=runs.size.steps - 1, folder="resume", checkpoint_every_steps=half)
    again = runs.run("resumed-under-zero3", 3, folder="resume", checkpoint_every_steps=runs.size.steps)
    if again is not None:
        source, difference = again[0]["resumed_from"], apart(first, again)
        problems = [] if source == half else [f"it resumed from step {source}, but step {half} was saved"]
        problems += too_far({"resumed": difference}, EXACT)
        check.report.judge("resume", problems, resumed_from=source, agree=difference)


def part_lora(check: Check) -> None:
    """Train adapters of a large model."""
    size = Size("7b", steps=5, micro=4096, batch=16, length=2048, rate=1e-3) if check.gpu else TINY
    Runs(check, size).run(f"lora-{size.shape}", 2, method={"kind": "lora"}, profiled=True)


def part_offload(check: Check) -> None:
    """Offload optimizer and weights to the host: for a model that needs it, and a small one to compare losses."""
    size = offload_size(check)
    Runs(check, size).run(f"offload-{size.shape}", 2, offload_optimizer=True, activation_checkpointing=True)
    runs = Runs(check, exact_size(check), {"dtype": "float32"})
    name = f"offload-exact-{runs.size.shape}"
    plain = runs.run(f"{name}-none", 2)
    agree: dict[Any, Any] = {
        "optimizer": apart(plain, runs.run(f"{name}-optimizer", 2, offload_optimizer=True)),
        "parameters": apart(plain, runs.run(f"{name}-parameters", 3, offload_optimizer=True, offload_parameters=True)),
    }
    check.report.judge("offload", too_far(agree, EXACT), agree=agree)


def offload_size(check: Check) -> Size:
    """Return the largest size whose optimizer fits into this host's memory."""
    import psutil

    shape = "7b" if psutil.virtual_memory().available > 150e9 else "3b"
    return Size(shape, steps=4, micro=4096, batch=16, length=2048, rate=1e-4) if check.gpu else TINY


def part_liger(check: Check) -> None:
    """Compare Liger's kernels with the model's own; they patch the process, so nothing else runs in it afterwards."""
    version = installed("liger-kernel")
    if check.gpu and version is None:
        check.report.say("liger", skipped="liger-kernel is not installed")
        return
    runs = Runs(check, figures_size(check))
    name = f"liger-{runs.size.shape}"
    plain = runs.run(f"{name}-plain", 2)
    liger = runs.run(f"{name}-zero2", 2, kernels="auto")
    agree = apart(plain, liger)
    check.report.judge(
        "liger", too_far({"liger": agree}, ROUNDED), version=version, agree=agree, speedup=faster(plain, liger)
    )
    Runs(check, exact_size(check)).run("liger-exported", 2, kernels="auto", exported=True)
