"""Estimate a run before anything starts: memory, steps, hours and dollars, without a GPU or weights.

    python -m jobs.plan configs/llama-7b.yaml
    python -m jobs.plan configs/llama-65b.yaml plan.machine=H200 train.placement.workers=16
    python -m jobs.plan configs/llama-7b.yaml --json

Every assumption is printed with its source. If `<root>-pilot` holds a pilot (`python -m jobs.pipeline CONFIG
pilot=0.001`), its measured rates are used. Exits 0; 1 if something does not fit; 2 if the configuration is unusable.
"""

import dataclasses
import json
import math
import sys

from humpback_ray.config import ConfigError, load
from humpback_ray.operate.plan import Measured, Plan, measured, plan_run
from humpback_ray.operate.plan.training import Step
from humpback_ray.runconfig import RunConfig, pilot_root
from humpback_ray.stages.progress import duration
from jobs.console import Table, arguments, console, guarded, say

PARTS = ("parameters", "gradients", "optimizer", "activations", "logits", "working", "buffers")


def main(argv: list[str] | None = None) -> int:
    """Plan CONFIG."""
    found = arguments(argv, str(__doc__), {"json": "print the whole plan as JSON"})

    def work() -> int:
        config = load(RunConfig, found.config, found.overrides)
        try:
            pilot = measured(config, pilot_root(config.root))
        except OSError as error:
            raise ConfigError(f"cannot look for a pilot in {pilot_root(config.root)}: {error}") from error
        try:
            made = plan_run(config, pilot)
            if found.json:
                say(json.dumps(as_json(made), indent=1))
            else:
                show(made, config, pilot)
        except ArithmeticError as error:
            raise ConfigError(
                f"plan: its figures are so large or small that nothing can be computed: {error}"
            ) from error
        return 1 if made.problems else 0

    return guarded(work)


def as_json(made: Plan) -> dict[str, object]:
    """Return a plan as JSON values, totals and peaks included."""
    values = dataclasses.asdict(made)
    for training, written in zip(made.trainings, values["trainings"], strict=True):
        written["step"]["fits"] = training.step.fits
        written["step"]["memory"]["peak"] = training.step.memory.peak
        written["checkpoints"]["seconds"] = training.checkpoints.seconds
        written["seconds"] = training.seconds
    return values | {"parameters": made.shape.parameters, "seconds": made.seconds, "dollars": made.dollars}


def show(made: Plan, config: RunConfig, pilot: Measured | None) -> None:
    """Print a plan."""
    rates = config.plan
    machine, row = rates.on(made.layout.gpu)
    layout = made.layout
    options = {"optimizer offloaded": layout.offload_optimizer, "weights offloaded": layout.offload_parameters,
               "activation checkpointing": layout.checkpointing}  # fmt: skip
    say(
        f"{made.size}: {made.shape.parameters:,} parameters; training on {layout.workers} x {machine}, ZeRO "
        f"{layout.stage}, {layout.dtype}, {layout.micro_batch_tokens:,} tokens per micro-batch"
        + "".join(f", {name}" for name, on in options.items() if on)
    )
    if config.train.recipe.method.kind == "lora":
        say(
            "planned as a full fine-tune: with adapters, gradients, master weights, moments, their traffic and "
            "checkpoints are far smaller", "yellow",
        )  # fmt: skip
    if tightest := made.tightest:
        step = tightest.step
        split = ", ".join(f"{name} {gb(getattr(step.memory, name))}" for name in PARTS)
        host = f"; offloaded {gb(step.memory.host)} to the host" if step.memory.host else ""
        say(f"memory of a worker ({tightest.model}): {split} (only the larger of logits and working counts)")
        say(
            f"at the update, {gb(step.memory.update)} beside parameters and optimizer; peak "
            f"{gb(step.memory.peak)} of {gb(rates.usable(row))} usable{host}: {'fits' if step.fits else 'DOES NOT FIT'}"
        )
    trainings(made)
    storing(made, config)
    counts(made, row.dollars_per_hour)
    stages(made)
    for field, value, source in made.sources:
        say(f"  {field} = {short(value)}   ({source})", "dim")
    if pilot is None:
        say("no pilot: all rates are assumed; `python -m jobs.pipeline CONFIG pilot=0.001` measures them")
    for problem in made.problems:
        say(f"does not fit: {problem}", "red")


def trainings(made: Plan) -> None:
    """Print a line per fine-tune."""
    out = Table("training", "examples", "batch", "steps", "tokens", "FLOPs", "s/step", "bound by")
    for column in out.columns[1:7]:
        column.justify = "right"
    for one in made.trainings:
        out.add_row(
            one.model, f"{one.examples:,}", str(one.batch_examples), f"{one.steps:,}", f"{one.tokens / 1e6:.1f} M",
            f"{one.flops:.1e}", f"{one.step.seconds:.2f}", bound(one.step),
        )  # fmt: skip
    console.print(out)


def storing(made: Plan, config: RunConfig) -> None:
    """Print the parts of the last fine-tune's time, and what its checkpoints take."""
    if not made.trainings:
        return
    last, every = made.trainings[-1], made.trainings
    one, step_s = last.checkpoints, last.step.seconds
    say(
        f"{last.model}: {duration(last.start_s)} until the first step, {duration(last.steps * step_s)} of steps, "
        f"{duration(one.seconds)} for {one.count} checkpoint{'s' * (one.count > 1)}, {duration(last.export_s)} for "
        "export and its check"
    )
    kept = sum(training.checkpoints.kept_bytes for training in every)
    say(
        f"a checkpoint: {gb(one.bytes)}; copied in {one.copy_s:.1f} s, while training waits, to "
        f"{gb(one.node_copy_bytes)} of a node's memory; stored in {duration(one.store_s)}, beside "
        f"{duration(one.apart_s)} of steps; those of all {len(every)} models take {gb(kept)} until jobs.gc"
    )
    if one.count > 1 and one.store_s > one.apart_s:
        placement = config.train.placement
        needed = {"checkpoint_every_steps": one.store_s / step_s, "checkpoint_every_minutes": one.store_s / 60}
        low = [
            f"train.placement.{name} to {math.ceil(least)} or more (it is {now:g})"
            for name, least in needed.items()
            if (now := getattr(placement, name)) is not None and now < least
        ]
        say(
            "training waits for its checkpoints, since storing one takes longer than the steps between two; set "
            f"{' and '.join(low)}",
            "yellow",
        )


def counts(made: Plan, dollars_per_hour: float) -> None:
    """Print the last training's step for several numbers of workers; mark the notable ones."""
    if not made.trainings:
        return
    last = made.trainings[-1]
    names = {"configured": last.step, "smallest that fits": last.smallest, "sensible": last.sensible}
    out = Table(f"{last.model} on", "memory", "fits", "compute s", "traffic s", "s/step", "$ per step", "")
    for column in out.columns[:7]:
        column.justify = "right"
    for step in last.options:
        marks = ", ".join(name for name, one in names.items() if one is not None and one.workers == step.workers)
        dollars = step.worker_seconds * dollars_per_hour / 3600
        out.add_row(
            str(step.workers), gb(step.memory.peak), "yes" if step.fits else "no", f"{step.compute_s:.2f}",
            f"{step.traffic_s:.2f}", f"{step.seconds:.2f}", f"{dollars:.3f}", marks,
        )  # fmt: skip
    console.print(out)


def stages(made: Plan) -> None:
    """Print a line per stage, and the total."""
    out = Table("stage", "on", "rows", "tokens", "time", "dollars", "rate")
    for column in out.columns[2:6]:
        column.justify = "right"
    for stage in made.stages:
        out.add_row(
            stage.name, f"{stage.devices:g} x {stage.machine}", f"{stage.rows:,}", f"{stage.tokens / 1e6:,.1f} M",
            duration(stage.seconds), f"{stage.dollars:,.2f}", stage.source,
        )  # fmt: skip
    out.add_row("total", "", "", "", duration(made.seconds), f"{made.dollars:,.2f}", "")
    console.print(out)
    say(f"not counted because they take minutes: {', '.join(made.others) or 'none'}")


def bound(step: Step) -> str:
    """Name the part of a step that takes longest."""
    parts = {"compute": step.compute_s, "traffic": step.traffic_s, "update": step.update_s}
    return max(parts, key=lambda name: parts[name])


def gb(count: float) -> str:
    """Format bytes for people."""
    if count >= 1e12:
        return f"{count / 1e12:.1f} TB"
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def short(value: object) -> str:
    """Format an assumption's value."""
    return f"{value:,.6g}" if isinstance(value, int | float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
