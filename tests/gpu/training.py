"""Fine-tunes with the product's training loop: do all layouts give the same losses, how fast, in how much memory?

Runs called `exact` are small and in float32, where layouts only differ by rounding. The others measure speed and memory
of a layout: on a GPU they train a billion parameters in bfloat16. Two of them export their model, which takes longer
than their steps.
"""

import logging
import re
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from humpback_ray.operate.plan.training import Batch, step
from humpback_ray.placement import TrainPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.train.job import TrainJob, TrainResult
from humpback_ray.train.loop import Session, train
from humpback_ray.train.memory import Layout, memory
from humpback_ray.train.recipe import TrainRecipe
from tests.gpu.material import SHAPES, Check, base, examples, let_go, rates
from tests.gpu.report import installed

EXACT = 1e-4
"""Largest relative difference of two layouts' losses in float32; 1.5e-7 on CPUs after 20 steps (performance.md)."""
ROUNDED = 2e-2
"""The same in bfloat16, which has 8 bits of precision: sums in another order differ in the third digit."""


@dataclass(frozen=True)
class Size:
    """A model, and the size of its training."""

    shape: str
    steps: int
    micro: int
    """Tokens of a micro-batch."""
    batch: int
    """Examples of a step."""
    length: int
    """Tokens of the longest example."""
    rate: float
    """The learning rate."""


TINY = Size("tiny", steps=4, micro=128, batch=6, length=64, rate=3e-3)


def figures_size(check: Check) -> Size:
    """Return the size that is measured: about 39,000 tokens per step on a GPU."""
    return Size("1b", steps=8, micro=8192, batch=32, length=2048, rate=1e-4) if check.gpu else TINY


def exact_size(check: Check) -> Size:
    """Return the size at which layouts are compared: about 2,500 tokens per step on a GPU."""
    return Size("100m", steps=8, micro=1024, batch=8, length=512, rate=3e-4) if check.gpu else TINY


class Enough(Exception):
    """Ends a run after a step."""


@dataclass
class Runs:
    """The runs of one part.

    Args:
        check: the check.
        size: size of all runs.
        recipe: recipe fields of all runs.
    """

    check: Check
    size: Size
    recipe: dict[str, Any] = field(default_factory=dict)
    longest_s: float = 0.0
    """Seconds of the longest run so far; the next one is expected to take as long."""
    exports: list[float] = field(default_factory=list)
    """Difference between each exported model's logits in a fresh process and the trained model's in this one."""

    def __post_init__(self) -> None:
        logging.getLogger("humpback_ray.train.export.reload").addFilter(self._note)

    def _note(self, record: logging.LogRecord) -> bool:
        self.exports += map(float, re.findall(r"logits differ by ([\d.e+-]+)", record.getMessage()))
        return True

    def run(
        self, label: str, stage: int, *, exported: bool = False, stop: int | None = None, folder: str | None = None,
        dropout: float = 0.0, method: str = "full", **placement: Any,
    ) -> list[dict[str, Any]] | None:  # fmt: skip
        """Train, and report speed and memory.

        Args:
            label: name of the line.
            stage: ZeRO stage.
            exported: whether the run exports its model; else it ends after its last step.
            stop: step after which the run ends without a line; None: no such step.
            folder: name of the directory of model and checkpoints, from which another run can resume; None: `label`.
            dropout: dropout of the recipe.
            method: method of the recipe.
            placement: fields of the placement.

        Returns:
            The figures of each step; None if the run failed or there was no time for it.
        """
        if not self.check.report.fits(label, self.longest_s):
            return None
        size, began, rows = self.size, time.monotonic(), []
        recipe = TrainRecipe.model_validate({
            "steps": {"m0": size.steps}, "batch_examples": size.batch, "max_length_tokens": size.length,
            "learning_rate": size.rate, "final_learning_rate": size.rate / 10, "dropout": dropout,
            "method": {"kind": method}, **self.recipe,
        })  # fmt: skip
        place = TrainPlacement.model_validate({
            "zero_stage": stage, "micro_batch_tokens": size.micro, "gpus_per_worker": int(self.check.gpu),
            "checkpoint_every_minutes": None, "checkpoint_every_steps": size.steps, "kernels": "plain", **placement,
        })  # fmt: skip
        ends = stop or (None if exported else size.steps)
        held = let_go(self.check)
        done = self.check.report.attempt(label, lambda: [self._train(recipe, place, folder or label, rows, ends)])
        self.longest_s = max(self.longest_s, time.monotonic() - began)
        if done is None:
            return None
        if stop is None:
            self._say(label, recipe, place, rows, done[0], time.monotonic() - began, held)
        return rows

    def _train(
        self, recipe: TrainRecipe, place: TrainPlacement, name: str, rows: list[dict[str, Any]], ends: int | None
    ) -> TrainResult | None:
        import torch

        def progress(figures: dict[str, Any]) -> None:
            rows.append(figures)
            if figures["step"] == ends:
                raise Enough

        folder = self.check.room / name
        tokens = examples(self.check.room, 4 * self.size.batch, self.size.length)
        where = str(base(self.check, self.size.shape))
        job = TrainJob("m0", "forward", where, (tokens,), recipe, ChatRecipe(), str(folder / "model"))
        if self.check.gpu:
            torch.cuda.reset_peak_memory_stats()
        try:
            return train(job, place, Session.alone(str(folder / "checkpoints"), progress))
        except Enough:
            return None
        finally:
            shutil.rmtree(folder / "model", ignore_errors=True)

    def _say(
        self, label: str, recipe: TrainRecipe, place: TrainPlacement, rows: Sequence[dict[str, Any]],
        result: TrainResult | None, seconds: float, held: float,
    ) -> None:  # fmt: skip
        import psutil

        losses = [round(row["loss"], 4) for row in rows]
        middle = sorted(rows[2:] or rows, key=lambda row: row["seconds"])[len(rows[2:] or rows) // 2]
        falls = losses[-1] < losses[0]
        planned = self._planned(recipe, place, middle) if recipe.method.kind == "full" else {}
        self.check.report.judge(
            label, [] if falls else [f"the loss went from {losses[0]} to {losses[-1]}; it should decrease"],
            stage=place.zero_stage, losses=losses[:: max(1, self.size.steps // 6)], mfu=round(middle["mfu"], 4),
            s_per_step=round(middle["seconds"], 3), tokens_per_s=round(middle["tokens_per_s"]),
            peak_gb=round(max(row["memory_bytes"] for row in rows) / 1e9, 2), held_gb=held, **reserved(self.check.gpu),
            **planned,
            host_gb=round(psutil.Process().memory_info().rss / 1e9, 1), resumed_from=rows[0]["resumed_from"],
            greedy=result and result.greedy, peak=result and result.peak, seconds=round(seconds, 1),
            export_apart=result and self.exports[-1],
            export_and_load_s=result and round(result.seconds - sum(row["seconds"] for row in rows), 1),
        )  # fmt: skip

    def _planned(self, recipe: TrainRecipe, place: TrainPlacement, row: dict[str, Any]) -> dict[str, Any]:
        """Return the plan's memory, and its seconds for such a step."""
        shape, layout = SHAPES[self.size.shape], Layout.of(place, recipe, 1)
        held = memory(shape, layout)
        deviation = self.size.length / 4
        batch = Batch(self.size.batch, row["tokens"] / self.size.batch, deviation, self.size.length)
        seconds = step(shape, layout, batch, rates()).seconds
        return {
            "planned_gb": round(held.peak / 1e9, 2), "planned_host_gb": round(held.host / 1e9, 1),
            "planned_s_per_step": round(seconds, 3),
        }  # fmt: skip


def reserved(gpu: bool) -> dict[str, Any]:
    """Return the peak memory that torch's allocator reserved on a GPU, and how often it retried an allocation."""
    import torch

    held = torch.cuda.memory_stats() if gpu else {}
    most = held.get("reserved_bytes.all.peak")
    return {"reserved_gb": most and round(most / 1e9, 2), "alloc_retries": held.get("num_alloc_retries")}


Rows = list[dict[str, Any]] | None


def apart(left: Rows, right: Rows) -> float | None:
    """Return the largest relative difference of two runs' losses per step; None if one did not run."""
    if left is None or right is None:
        return None
    losses = {row["step"]: row["loss"] for row in left}
    return max(abs(row["loss"] - losses[row["step"]]) / losses[row["step"]] for row in right)


def too_far(agree: dict[Any, float | None], most: float) -> list[str]:
    """Return which runs differ by more than the limit."""
    far = {name: value for name, value in agree.items() if value is not None and not value <= most}
    return [f"{name}: losses differ by {value:.2g}, but the limit is {most:g}" for name, value in far.items()]


def part_train(check: Check) -> None:
    """Run every ZeRO stage and layout in bfloat16."""
    runs = Runs(check, figures_size(check))
    name = f"train-{runs.size.shape}"
    first = runs.run(f"{name}-zero2", 2, exported=True)
    stages = {2: first, 3: runs.run(f"{name}-zero3", 3, exported=True), 1: runs.run(f"{name}-zero1", 1)}
    agree: dict[Any, Any] = {stage: apart(first, rows) for stage, rows in stages.items()}
    check.report.judge("train-stages", too_far(agree, ROUNDED), agree=agree)
    small = apart(first, runs.run(f"{name}-small-micro", 2, micro_batch_tokens=runs.size.micro // 4))
    check.report.judge("train-layouts", too_far({"small-micro": small}, ROUNDED), agree=small)
    runs.run(f"{name}-checkpointing", 2, activation_checkpointing=True)
    runs.run(f"{name}-dropout", 2, dropout=0.1)
    runs.run(f"{name}-lora", 2, method="lora")


def part_exact(check: Check) -> None:
    """Compare the losses of all layouts, and of a run that resumes under another stage, in float32."""
    runs = Runs(check, exact_size(check), {"dtype": "float32"})
    name = f"exact-{runs.size.shape}"
    first = runs.run(f"{name}-zero2", 2)
    others = {f"zero{stage}": runs.run(f"{name}-zero{stage}", stage) for stage in (0, 1, 3)}
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


def part_offload(check: Check) -> None:
    """Offload optimizer and weights to the host: for a model that needs it, and a small one to compare losses."""
    runs = Runs(check, exact_size(check), {"dtype": "float32"})
    name = f"offload-{runs.size.shape}"
    plain = runs.run(f"{name}-none", 2)
    agree: dict[Any, Any] = {
        "optimizer": apart(plain, runs.run(f"{name}-optimizer", 2, offload_optimizer=True)),
        "parameters": apart(plain, runs.run(f"{name}-parameters", 3, offload_optimizer=True, offload_parameters=True)),
    }
    check.report.judge("offload", too_far(agree, EXACT), agree=agree)
    size = offload_size(check)
    Runs(check, size).run(f"offload-{size.shape}", 2, offload_optimizer=True, activation_checkpointing=True)


def offload_size(check: Check) -> Size:
    """Return the largest size whose optimizer fits into this host's memory."""
    import psutil

    shape = "7b" if psutil.virtual_memory().available > 150e9 else "3b"
    return Size(shape, steps=4, micro=4096, batch=16, length=2048, rate=1e-4) if check.gpu else TINY


def part_liger(check: Check) -> None:
    """Compare Liger's kernels with the model's own; they patch the process, so nothing else runs in it afterwards."""
    runs = Runs(check, figures_size(check))
    name = f"liger-{runs.size.shape}"
    plain = runs.run(f"{name}-plain", 2)
    liger = runs.run(f"{name}-zero2", 2, kernels="auto")
    if plain is not None and liger is not None:
        agree, version = apart(plain, liger), installed("liger-kernel")
        problems = too_far({"liger": agree}, ROUNDED)
        if check.gpu and version is None:
            problems.append("liger-kernel is not installed: nothing was measured")
        speed = [statistics.median(row["seconds"] for row in rows[2:]) for rows in (plain, liger)]
        check.report.judge("liger", problems, version=version, agree=agree, speedup=round(speed[0] / speed[1], 3))
    # The export is loaded in a fresh process, since this one is patched.
    Runs(check, exact_size(check)).run("liger-exported", 2, kernels="auto", exported=True)
