"""Fine-tunes with the product's training loop, each with a line of figures: losses, speed, memory, export."""

import contextlib
import logging
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from humpback_ray.operate.plan.training import Batch, host_bytes, step
from humpback_ray.placement import TrainPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.train.engine import metrics
from humpback_ray.train.job import TrainJob, TrainResult
from humpback_ray.train.loop import Session, train
from humpback_ray.train.memory import Layout, memory
from humpback_ray.train.recipe import TrainRecipe
from tests.gpu.ceilings import ceilings
from tests.gpu.material import SHAPES, Check, base, examples, let_go, rates
from tests.gpu.profiles import Profile

UNPLANNED = 0.1
"""Most that the measured peak of memory may differ from the plan's, as a share of it."""
WARM_UP = 2
"""Steps before those that are measured."""


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


class Enough(Exception):
    """Ends a run after a step."""


Rows = list[dict[str, Any]] | None


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
        listener = logging.Handler()
        listener.emit = self._note
        logging.getLogger("humpback_ray").addHandler(listener)

    def _note(self, record: logging.LogRecord) -> None:
        self.exports += map(float, re.findall(r"logits differ by ([\d.e+-]+)", record.getMessage()))

    def run(
        self, label: str, stage: int, *, exported: bool = False, profiled: bool = False, stop: int | None = None,
        folder: str | None = None, goals: dict[str, float] | None = None, around: Callable[[], Any] | None = None,
        **fields: Any,
    ) -> Rows:  # fmt: skip
        """Train, and report speed and memory.

        Args:
            label: name of the line.
            stage: ZeRO stage.
            exported: whether the run exports its model; else it ends after its last step.
            profiled: whether the last step is profiled; its speed does not count.
            stop: step after which the run ends without a line; None: no such step.
            folder: name of the directory of model and checkpoints, from which another run can resume; None: one that
                is deleted after the run.
            goals: least figures of speed.
            around: returns a context in which to train; the plan does not know it, so memory is not judged.
            fields: of the recipe (`dropout`, `method`) and of the placement.

        Returns:
            The figures of each measured step; None if the run failed or there was no time for it.
        """
        if not self.check.report.fits(label, self.longest_s):
            return None
        ceilings(self.check)
        began, held = time.monotonic(), let_go(self.check)
        run = Run(self, label, stage, exported, profiled, stop, folder, around is None, fields)
        with around() if around else contextlib.nullcontext():
            done = self.check.report.attempt(label, lambda: [run.train()])
        seconds = time.monotonic() - began
        self.longest_s = max(self.longest_s, seconds)
        if done is None:
            return None
        if stop is None:
            run.say(done[0], seconds, held, goals)
        return run.measured

    @cached_property
    def peak(self) -> float:
        """FLOP/s to which `mfu` compares."""
        import torch

        return metrics.peak_of(torch.device(self.check.device), self.recipe.get("dtype", "bfloat16"))[0]


class Run:
    """One run of a part; see `Runs.run`."""

    def __init__(
        self, runs: Runs, label: str, stage: int, exported: bool, profiled: bool, stop: int | None, folder: str | None,
        known: bool, fields: dict[str, Any],
    ) -> None:  # fmt: skip
        size, self.runs, self.check, self.label, self.known = runs.size, runs, runs.check, label, known
        self.kept, self.folder = folder is not None, runs.check.room / (folder or label)
        self.ends = stop or (None if exported else size.steps)
        self.profile = Profile(self.check.gpu) if profiled else None
        self.rows: list[dict[str, Any]] = []
        of_recipe = {name: fields.pop(name) for name in ("dropout", "method") if name in fields}
        self.recipe = TrainRecipe.model_validate({
            "steps": {"m0": size.steps}, "batch_examples": size.batch, "max_length_tokens": size.length,
            "learning_rate": size.rate, "final_learning_rate": size.rate / 10, "dropout": 0.0,
            **runs.recipe, **of_recipe,
        })  # fmt: skip
        self.placement = TrainPlacement.model_validate({
            "zero_stage": stage, "micro_batch_tokens": size.micro, "gpus_per_worker": int(self.check.gpu),
            "checkpoint_every_minutes": None, "checkpoint_every_steps": size.steps, "kernels": "plain", **fields,
        })  # fmt: skip

    @property
    def measured(self) -> list[dict[str, Any]]:
        """The steps whose speed counts."""
        return self.rows[:-1] if self.profile and len(self.rows) > 1 else self.rows

    def train(self) -> TrainResult | None:
        """Train in this process; return the result if the run exports its model."""
        import torch

        size = self.runs.size
        tokens = examples(self.check.room, 4 * size.batch, size.length)
        where = str(base(self.check, size.shape))
        job = TrainJob("m0", "forward", where, (tokens,), self.recipe, ChatRecipe(), str(self.folder / "model"))
        if self.check.gpu:
            torch.cuda.reset_peak_memory_stats()
        try:
            return train(job, self.placement, Session.alone(str(self.folder / "checkpoints"), self._progress))
        except Enough:
            return None
        finally:
            shutil.rmtree(self.folder / "model" if self.kept else self.folder, ignore_errors=True)

    def _progress(self, figures: dict[str, Any]) -> None:
        self.rows.append(figures)
        if self.profile and figures["step"] == self.runs.size.steps:
            self.profile.stop(1)
        if figures["step"] == self.ends:
            raise Enough
        if self.profile and figures["step"] == self.runs.size.steps - 1:
            self.profile.start()

    def say(self, result: TrainResult | None, seconds: float, held: float, goals: dict[str, float] | None) -> None:
        """Write the run's line."""
        import psutil

        losses = [round(row["loss"], 4) for row in self.rows]
        row, stage = self.middle, self.placement.zero_stage
        falls = losses[-1] < losses[0]
        peak = max(row["memory_bytes"] for row in self.rows) / 1e9
        planned = self.planned(row) if self.recipe.method.kind == "full" else {}
        problems = [] if falls else [f"the loss went from {losses[0]} to {losses[-1]}; it should decrease"]
        if self.check.gpu and planned and self.known and self.placement.kernels == "plain":
            problems += unlike_plan(peak, planned["planned_gb"])
        self.check.report.judge(
            self.label, problems, goals,
            stage=stage, losses=losses[:: max(1, self.runs.size.steps // 6)], **self.speed(row),
            peak_gb=round(peak, 2), held_gb=held, **reserved(self.check.gpu), **planned,
            host_gb=round(psutil.Process().memory_info().rss / 1e9, 1), resumed_from=self.rows[0]["resumed_from"],
            greedy=result and result.greedy, peak=result and result.peak, seconds=round(seconds, 1),
            export_apart=result and self.runs.exports[-1],
            export_and_load_s=result and round(result.seconds - sum(row["seconds"] for row in self.rows), 1),
            **self._profiled(),
        )  # fmt: skip

    @property
    def middle(self) -> dict[str, Any]:
        """The median of the measured steps after the warm-up."""
        warm = self.measured[WARM_UP:] or self.measured
        return sorted(warm, key=lambda row: row["seconds"])[len(warm) // 2]

    def speed(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a step's speed, also as a share of the measured rate of products; None in float32."""
        limit = ceilings(self.check).products.get(self.runs.size.shape)
        rounded = limit and self.recipe.dtype == "bfloat16"
        return {
            "mfu": round(row["mfu"], 4), "mfu_of_measured": round(row["mfu"] * self.runs.peak / limit, 4)
            if rounded and limit else None,
            "s_per_step": round(row["seconds"], 3), "tokens_per_s": round(row["tokens_per_s"]),
        }  # fmt: skip

    def planned(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the plan's memory, and its seconds for such a step."""
        size = self.runs.size
        shape, layout = SHAPES[size.shape], Layout.of(self.placement, self.recipe, 1)
        held = memory(shape, layout)
        deviation = size.length / 4
        batch = Batch(size.batch, row["tokens"] / size.batch, deviation, size.length)
        seconds = step(shape, layout, batch, rates()).seconds
        return {
            "planned_gb": round(held.peak / 1e9, 2), "planned_host_gb": round(held.host / 1e9, 1),
            "planned_s_per_step": round(seconds, 3), **self._link(layout, row),
        }  # fmt: skip

    def _link(self, layout: Layout, row: dict[str, Any]) -> dict[str, Any]:
        """Return the share of a step in which an offloaded run must at least wait for the link to the host."""
        if not layout.offload_optimizer:
            return {}
        rounds = -(-row["tokens"] // self.runs.size.micro)
        moved, speed = host_bytes(SHAPES[self.runs.size.shape], layout, rounds), ceilings(self.check).pinned
        return {"link_share": round(moved / speed / row["seconds"], 3) if speed else None}

    def _profiled(self) -> dict[str, Any]:
        """Return the figures of the profiled step, and write its table to a file."""
        if not self.profile:
            return {}
        title = f"One step of {self.label}; its speed does not count."
        file = self.profile.write(self.check.out / f"{self.label}-profile.txt", title)
        return {**self.profile.figures(), "attention": self.profile.attention(), "table": file}


def unlike_plan(peak: float, planned: float) -> list[str]:
    """Return that a measured peak is too far from the plan's, in GB."""
    if abs(peak / planned - 1) <= UNPLANNED:
        return []
    return [f"the peak is {peak:.2f} GB, but the plan has {planned:.2f}; they may differ by {UNPLANNED:.0%}"]


def reserved(gpu: bool) -> dict[str, Any]:
    """Return the peak memory that torch's allocator reserved on a GPU, and how often it retried an allocation."""
    import torch

    held = torch.cuda.memory_stats() if gpu else {}
    most = held.get("reserved_bytes.all.peak")
    return {"reserved_gb": most and round(most / 1e9, 2), "alloc_retries": held.get("num_alloc_retries")}


def apart(left: Rows, right: Rows) -> float | None:
    """Return the largest relative difference of two runs' losses per step; None if one did not run."""
    if left is None or right is None:
        return None
    losses = {row["step"]: row["loss"] for row in left}
    return max(abs(row["loss"] - losses[row["step"]]) / losses[row["step"]] for row in right if row["step"] in losses)


def faster(left: Rows, right: Rows) -> float | None:
    """Return how many times as fast the median step of the right run was; None if one did not run."""
    if left is None or right is None:
        return None
    first, second = (sorted(row["seconds"] for row in rows[WARM_UP:] or rows) for rows in (left, right))
    return round(first[len(first) // 2] / second[len(second) // 2], 3)


def too_far(agree: dict[Any, float | None], most: float) -> list[str]:
    """Return which runs differ by more than the limit."""
    far = {name: value for name, value in agree.items() if value is not None and not value <= most}
    return [f"{name}: losses differ by {value:.2g}, but the limit is {most:g}" for name, value in far.items()]
