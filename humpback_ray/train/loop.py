"""The training loop of one worker: examples in, an exported model out.

Every worker lays out the same schedule, takes its share of each global batch (packing.py) and runs the same number of
micro-batches (an empty one carries no loss). The loss of a step is the sum over the output tokens of the *global* batch
divided by their number, whatever the number of workers, the packing or the accumulation: in float32 without dropout the
losses agree to about 1e-6. Dropout masks are seeded by (seed, step, rank), so that a resumed run draws the same ones.

A checkpoint is due every so many steps or minutes, or when a worker hears that it is about to be taken away. All
workers must save after the same step, so they tell each other when they add up the loss. That sum is known
before the last backward pass: a step with a bad loss is not applied, and the run stops or goes on by the recipe.

The loop knows nothing of Ray: a `Session` says which worker it is and where checkpoints and progress go. A single
worker needs no launcher either: `train(job, placement, Session.alone("checkpoints"))` is all there is to it.
"""

import json
import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from humpback_ray import storage
from humpback_ray.placement import TrainPlacement
from humpback_ray.records import seed_of
from humpback_ray.train.checkpoint import checkpoints, fragments
from humpback_ray.train.checkpoint.saver import Saver
from humpback_ray.train.data import validation
from humpback_ray.train.data.examples import Example, Examples, read_examples
from humpback_ray.train.data.packing import computed_tokens, pack
from humpback_ray.train.data.schedule import Schedule, schedule
from humpback_ray.train.engine import group, lora, losses, metrics, zero
from humpback_ray.train.engine.attention import Layout
from humpback_ray.train.engine.attention import prepare as prepare_attention
from humpback_ray.train.export.card import model_card
from humpback_ray.train.export.export import export, lacking_room, served_unlike
from humpback_ray.train.job import StepMetrics, TrainingStopped, TrainJob, TrainResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """What surrounds a worker."""

    rank: int
    workers: int
    checkpoints: str
    """Directory of the checkpoints of all attempts; the newest complete one is gone on from."""
    attempt: str
    """Name of the directory in it where this attempt's are written."""
    progress: Callable[[dict[str, Any]], None]
    """Told about every step, on rank 0; decides itself how often to pass it on."""
    leaving: Callable[[], bool] = lambda: False
    """Tells, once for each word heard from outside, that a checkpoint is wanted now."""

    @staticmethod
    def alone(checkpoints: str, progress: Callable[[dict[str, Any]], None] = lambda figures: None) -> "Session":
        """Return the session of a single worker, without Ray and without a launcher."""
        return Session(rank=0, workers=1, checkpoints=checkpoints, attempt="0001", progress=progress)


@dataclass
class Run:
    """A worker's state between steps."""

    job: TrainJob
    placement: TrainPlacement
    session: Session
    schedule: Schedule
    examples: Examples
    held_out: Examples
    """Seed pairs that no step trains on; their loss is the validation loss."""
    engine: Any
    layout: Layout
    meter: metrics.Meter
    tokenizer: Any
    identity: dict[str, Any]
    start: str
    """Marks what these workers write, among earlier and later ones of the same attempt."""
    saver: Saver
    saved_at: float = field(default_factory=time.monotonic)
    """When the last checkpoint was begun."""
    history: list[StepMetrics] = field(default_factory=list)
    resumed_from: int | None = None

    def asks(self) -> bool:
        """Tell whether this worker wants a checkpoint after this step; the clock is rank 0's."""
        minutes = self.placement.checkpoint_every_minutes
        due = self.session.rank == 0 and minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes
        return self.session.leaving() or due


class Update(NamedTuple):
    """What came of one step's forward and backward passes."""

    loss: float
    asked: bool
    """A worker wants a checkpoint."""
    computed_tokens: int
    """By all workers, padding included."""
    waited_s: float
    """For the batch, by the worker that waited longest."""
    memory_bytes: int
    """Of the worker with most."""
    problem: str | None
    """Why it was not applied."""
    gradient_norm: float = math.nan


def train(job: TrainJob, placement: TrainPlacement, session: Session) -> TrainResult:
    """Fine-tune and export one model; every worker calls it, rank 0's result counts.

    torch.distributed must be up, unless there is one worker: then it is started here and stays up.

    Raises:
        TrainingStopped: on every worker alike, where trying again would not help.
    """
    with group.joined(session.workers, gpu=placement.gpus_per_worker > 0):
        return trained(job, placement, session)


def trained(job: TrainJob, placement: TrainPlacement, session: Session) -> TrainResult:
    """Do what `train` promises, with torch.distributed up."""
    started = time.monotonic()
    base = storage.local_directory(job.base)
    run, counts, dropouts = prepare(job, placement, session, base)
    resume(run)
    try:
        for step in range(len(run.history) + 1, run.schedule.steps + 1):
            asked = advance(run, step)
            if step < run.schedule.steps and (asked or step % placement.checkpoint_every_steps == 0):
                save(run)
    finally:
        run.saver.wait()
    prune(run)
    result = TrainResult(
        model=job.model,
        metrics=run.history,
        files=[],
        examples=dict(counts),
        batch_examples=run.schedule.batch_examples,
        parameters=zero.parameter_count(run.engine.module),
        trainable_parameters=zero.parameter_count(run.engine.module, trainable=True),
        dropouts=dropouts,
        tokens=sum(row.tokens for row in run.history),
        output_tokens=sum(row.output_tokens for row in run.history),
        peak=run.meter.peak,
        greedy=[],
        resumed_from=run.resumed_from,
        seconds=0.0,
    )
    files, greedy = export(run.engine, run.tokenizer, base, job, session.rank, model_card(job, result))
    return replace(result, files=files, greedy=greedy, seconds=time.monotonic() - started)


def prepare(
    job: TrainJob, placement: TrainPlacement, session: Session, base: Path
) -> tuple[Run, Counter[str], list[str]]:
    """Read the examples, lay out the schedule, load the model."""
    zero.import_deepspeed(gpu=placement.gpus_per_worker > 0)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    group.agree(served_unlike(tokenizer, base, job) if session.rank == 0 else None)
    found, counts = read_examples(job.token_uris)
    try:
        examples, held_out = validation.split(found, job.recipe.validation_share)
    except ValueError as error:
        raise TrainingStopped(f"{job.model}: {error}") from error
    counts["kept"], counts["held_out"] = len(examples), len(held_out)
    if not examples:
        raise TrainingStopped(
            f"{job.model} has no examples: {counts['too_long']} of {counts.total()} pairs are longer than "
            f"{job.recipe.max_length_tokens} tokens or the model's context; raise train.recipe.max_length_tokens or "
            "set too_long to truncate"
        )
    plan = schedule(job.recipe, job.model, len(examples))
    config = zero.engine_config(placement, job.recipe)
    model, dropouts = zero.load_model(base, job.recipe, config, placement.activation_checkpointing)
    layout = prepare_attention(model, placement)
    lora.attach(model, job.recipe)
    sizes = zero.parameter_count(model), zero.parameter_count(model, trainable=True)
    width_bytes = 2 if job.recipe.dtype == "bfloat16" else 4
    group.agree(lacking_room(job.export_uri, sizes[0] * width_bytes) if session.rank == 0 else None)
    engine = zero.start_engine(model, config, gpu=placement.gpus_per_worker > 0)
    meter = metrics.make_meter(model.config, *sizes, engine.device, job.recipe.dtype)
    identity = job.identity() | {
        "examples": examples.digest(),
    }
    start = group.chosen(session.rank, lambda: secrets.token_hex(3))
    saver = Saver(storage.join(session.checkpoints, session.attempt), session.rank, placement.keep_checkpoints)
    run = Run(
        job, placement, session, plan, examples, held_out, engine, layout, meter, tokenizer, identity, start, saver
    )
    return run, counts, dropouts


def resume(run: Run) -> None:
    """Go on from the newest checkpoint, if there is one; nothing is read from it before all workers found it sound."""
    import torch.distributed as dist

    source = found(run)
    if source is None:
        return
    run.history = checkpoints.read_state(source.uri, run.identity)
    group.agree(source.problem())
    updates = sum(not row.skipped for row in run.history)
    if updates:
        fragments.start_optimizer(run.engine, updates)
    group.agree(source.fill(fragments.held(run.engine)))
    fragments.publish(run.engine)
    run.resumed_from = len(run.history)
    if run.session.rank == 0:
        logger.info("%s goes on from %s", run.job.model, source.uri)
    dist.barrier()
    source.forget()


def found(run: Run) -> checkpoints.Fetched | None:
    """Return the newest checkpoint, once every worker has what it needs of it on its machine."""
    held = fragments.held(run.engine)
    while uri := group.chosen(run.session.rank, lambda: checkpoints.newest(run.session.checkpoints)):
        source = checkpoints.fetch(uri, held)
        if all(group.gathered(source is not None)):
            return source
        if source is not None:
            source.forget()
    return None


def save(run: Run) -> None:
    """Begin a checkpoint, every worker its part; it is stored while the next steps run."""
    session = run.session
    mine = fragments.owned(run.engine, session.rank, session.workers)
    state = checkpoints.state_of(run.identity, run.history, session.workers)
    run.saver.save(f"step-{len(run.history):06d}-{run.start}", mine, state)
    run.saved_at = time.monotonic()


def prune(run: Run) -> None:
    """Delete old checkpoints, once every worker has stored what it began."""
    import torch.distributed as dist

    dist.barrier()
    run.saver.prune()


def advance(run: Run, step: int) -> bool:
    """Take one optimizer step and note its metrics; return whether a worker wants a checkpoint."""
    began = time.monotonic()
    batch = [run.examples[index] for index in run.schedule.batch(step)]
    waited_s = time.monotonic() - began
    rate = run.schedule.rate(step)
    update = optimize(run, batch, step, rate, waited_s)
    seconds = time.monotonic() - began
    lengths = [example.length for example in batch]
    row = StepMetrics(
        step=step,
        loss=update.loss,
        learning_rate=rate,
        gradient_norm=update.gradient_norm,
        tokens=sum(lengths),
        output_tokens=sum(example.output_tokens for example in batch),
        seconds=seconds,
        skipped=update.problem is not None,
        mfu=run.meter.mfu(lengths, seconds),
        memory_bytes=update.memory_bytes,
        padding_share=1 - sum(lengths) / update.computed_tokens,
        data_s=update.waited_s,
    )
    if update.problem is not None:
        refuse(run, row, batch, update.problem)
    if run.held_out and (step % run.job.recipe.validate_every_steps == 0 or step == run.schedule.steps):
        row = replace(row, validation_loss=validate(run))
    run.history.append(row)
    if run.session.rank == 0:
        told = {"steps": run.schedule.steps, "workers": run.session.workers, "resumed_from": run.resumed_from}
        run.session.progress(told | row.figures())
    return update.asked


def refuse(run: Run, row: StepMetrics, batch: list[Example], problem: str) -> None:
    """Write down the rows of a step that was not applied; stop there, unless the recipe skips it.

    Raises:
        TrainingStopped: the recipe says stop, or too many steps were skipped.
    """
    recipe, session = run.job.recipe, run.session
    uri = storage.join(session.checkpoints, session.attempt, f"refused-{row.step:06d}-{run.start}.json")
    if session.rank == 0:
        ids = sorted({example.id for example in batch})
        storage.write_bytes(uri, json.dumps({"problem": problem, **vars(row), "rows": ids}, indent=1).encode())
    before = sum(earlier.skipped for earlier in run.history)
    said = f"{run.job.model}: step {row.step} was not applied, {problem}; rate {row.learning_rate:g}, rows {uri}"
    if recipe.on_bad_loss == "stop":
        raise TrainingStopped(
            f"{said}; look at the rows, lower the learning rate, or set train.recipe.on_bad_loss=skip to go on without"
        )
    if before >= recipe.max_skipped_steps:
        raise TrainingStopped(
            f"{said}; {before} steps were skipped before it and train.recipe.max_skipped_steps is "
            f"{recipe.max_skipped_steps}: lower the learning rate, or raise that number"
        )
    if session.rank == 0:
        logger.warning("%s; it is skipped", said)


def optimize(run: Run, batch: list[Example], step: int, rate: float, waited_s: float) -> Update:
    """Run this worker's micro-batches and one update, unless the global batch's mean loss or gradient forbids it."""
    import torch

    engine, session = run.engine, run.session
    torch.manual_seed(seed_of("dropout", run.schedule.seed, step, session.rank))
    for parameters in engine.optimizer.param_groups:
        parameters["lr"] = rate
    lengths = [example.length for example in batch]
    shares = pack(lengths, session.workers, run.placement.micro_batch_tokens, padded=run.layout == "padded")
    output_tokens = sum(example.output_tokens for example in batch)
    scale = zero.loss_scale_of(session.workers, output_tokens)

    def loss_of(places: list[int]) -> Any:
        return losses.summed_loss(engine, [batch[place] for place in places], run.layout, engine.device)

    *others, last = shares[session.rank]
    summed = torch.zeros((), dtype=torch.float64, device=engine.device)
    engine.set_gradient_accumulation_boundary(False)
    for places in others:
        loss = loss_of(places)
        summed += loss.detach()
        engine.backward(loss * scale)
    engine.set_gradient_accumulation_boundary(True)
    loss = loss_of(last)
    figures = [(summed + loss.detach()).item(), run.asks(), waited_s, metrics.memory_bytes(engine.device)]
    sums, asked, waits_s, memory_bytes = group.every(figures, engine.device)
    mean = sum(sums) / output_tokens
    update = Update(
        loss=mean,
        asked=any(asked),
        computed_tokens=computed_tokens(shares, lengths, padded=run.layout == "padded"),
        waited_s=max(waits_s),
        memory_bytes=int(max(memory_bytes)),
        problem=losses.problem(mean, run.history, run.job.recipe.spike_factor),
    )
    if update.problem and run.job.recipe.on_bad_loss == "stop":
        return update
    if update.problem:
        loss = loss * math.nan  # DeepSpeed drops an update whose gradient is no number
    engine.backward(loss * scale)
    plain = engine.zero_optimization_stage() == 0
    norm = zero.gradient_norm(engine) if plain else 0.0
    if plain and not math.isfinite(norm):
        zero.drop_update(engine)
    else:
        engine.step()
    norm = norm if plain else zero.gradient_norm(engine)
    if update.problem is None and not math.isfinite(norm):
        update = update._replace(problem=f"its loss is {mean:.4g} and its gradient norm {norm}")
    if update.problem:
        zero.forget_dropped(engine)
    return update._replace(gradient_norm=norm)


def validate(run: Run) -> float:
    """Return the mean loss over the output tokens of the held-out pairs, without dropout; every worker calls it."""
    import torch

    engine, session = run.engine, run.session
    lengths = [example.length for example in run.held_out]
    shares = pack(lengths, session.workers, run.placement.micro_batch_tokens, padded=run.layout == "padded")
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    engine.eval()
    with torch.no_grad():
        for places in shares[session.rank]:
            total += losses.summed_loss(engine, [run.held_out[place] for place in places], run.layout, engine.device)
    engine.train()
    (sums,) = group.every([total.item()], engine.device)
    return sum(sums) / sum(example.output_tokens for example in run.held_out)
