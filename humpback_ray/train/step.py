"""One optimizer step of one worker: a batch in, an update out, unless the loss or the gradient is bad.

Workers know the mean loss of the global batch before the last backward pass, and the norm of its gradient before the
update. A step with a bad loss or gradient changes neither weights nor optimizer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from humpback_ray.records import seed_of
from humpback_ray.train.data.examples import Example
from humpback_ray.train.engine import deepspeed_internals, group, losses, metrics, zero
from humpback_ray.train.engine.exhausted import doing
from humpback_ray.train.state import Training


@dataclass(frozen=True)
class Update:
    """The outcome of one step's forward and backward passes."""

    loss: float
    asked: bool
    """Whether a worker wants a checkpoint."""
    computed_tokens: int
    """Tokens that all workers computed, padding included."""
    waited_s: float
    """How long the slowest worker waited for the batch."""
    memory_bytes: int
    """Memory of the worker that uses most."""
    problem: str | None
    """Why the update was not applied; None if it was."""
    gradient_norm: float = math.nan


def optimize(training: Training, batch: Sequence[Example], step: int, rate: float, waited_s: float) -> Update:
    """Run this worker's micro-batches and the update, unless the global batch's mean loss or gradient is bad."""
    with doing(f"at step {step}"):
        return _optimize(training, batch, step, rate, waited_s)


def _optimize(training: Training, batch: Sequence[Example], step: int, rate: float, waited_s: float) -> Update:
    engine, recipe = training.engine, training.job.recipe
    begin_step(training, step, rate)
    micros, computed = training.micros(batch)
    output_tokens = sum(example.output_tokens for example in batch)
    scale = zero.loss_scale_of(training.session.workers, output_tokens)
    mine, last = losses.accumulate(engine, micros, training.batching, scale)
    update = tell_each_other(training, mine, output_tokens, computed, waited_s)
    if update.problem and recipe.on_bad_loss == "stop":
        return update
    if update.problem:
        last = last * math.nan  # DeepSpeed drops an update whose gradient is not finite
    with doing(micro=micros[-1]):
        norm = zero.finish_step(engine, last * scale)
    if update.problem is None and not math.isfinite(norm):
        update = replace(update, problem=f"its loss is {update.loss:.4g} and its gradient norm {norm}")
    if update.problem:
        deepspeed_internals.forget_dropped(engine)
    return replace(update, gradient_norm=norm)


def begin_step(training: Training, step: int, rate: float) -> None:
    """Seed the step's dropout masks and set its learning rate."""
    import torch

    torch.manual_seed(seed_of("dropout", training.schedule.seed, step, training.session.rank))
    for parameters in training.engine.optimizer.param_groups:
        parameters["lr"] = rate


def tell_each_other(training: Training, mine: float, output_tokens: int, computed: int, waited_s: float) -> Update:
    """Combine the workers' figures before the update; every worker calls it, and all reach the same verdict."""
    device = training.engine.device
    figures = [mine, training.asks(), waited_s, metrics.memory_bytes(device)]
    sums, asked, waits_s, memory_bytes = group.every(figures, device)
    mean = sum(sums) / output_tokens
    return Update(
        loss=mean,
        asked=any(asked),
        computed_tokens=computed,
        waited_s=max(waits_s),
        memory_bytes=int(max(memory_bytes)),
        problem=losses.problem(mean, training.history, training.job.recipe.spike_factor),
    )


def validate(training: Training) -> float:
    """Return the mean loss over the output tokens of the held-out pairs, without dropout; every worker calls it."""
    held_out = training.data.held_out
    micros, _ = training.micros(held_out)
    with doing(f"in the validation after step {len(training.history) + 1}", backward=False):
        mine = losses.measured(training.engine, micros, training.batching)
    (sums,) = group.every([mine], training.engine.device)
    return sum(sums) / sum(example.output_tokens for example in held_out)
