"""The training loop of one worker: examples in, an exported model out.

Every worker lays out the same schedule, takes its share of each global batch and runs the same number of micro-batches
(an empty one carries no loss). The loss of a step is the sum over the output tokens of the *global* batch divided by
their number, whatever the number of workers, the micro-batch or the accumulation: in float32 without dropout the
losses agree to about 1e-6. Dropout masks are seeded by (seed, step, rank), so that a resumed run draws the same ones.

A checkpoint is due every so many steps or minutes, or when a worker hears that it is about to be taken away. All
workers must save after the same step, so they tell each other in the reduction that sums the loss. That sum is known
before the last backward pass: a step with a bad loss is not applied, and the run stops or goes on by the recipe.

The loop knows nothing of Ray: a `Session` says which worker it is and where checkpoints and progress go.
"""

import json
import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from humpback_ray import storage
from humpback_ray.config import fingerprint
from humpback_ray.placement import TrainPlacement
from humpback_ray.records import seed_of
from humpback_ray.train import checkpoints, fragments, losses, zero
from humpback_ray.train.examples import Example, make_examples, read_pairs
from humpback_ray.train.export import export
from humpback_ray.train.job import StepMetrics, TrainingStopped, TrainJob, TrainResult
from humpback_ray.train.saver import Saver
from humpback_ray.train.schedule import Schedule, micro_batches, schedule, shares

T = TypeVar("T")

logger = logging.getLogger(__name__)

IGNORED = -100
"""Target of positions without loss, as in `torch.nn.functional.cross_entropy`."""


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


@dataclass
class Run:
    """A worker's state between steps."""

    job: TrainJob
    placement: TrainPlacement
    session: Session
    schedule: Schedule
    examples: list[Example]
    engine: Any
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
    gradient_norm: float
    asked: bool
    """A worker wants a checkpoint."""
    problem: str | None
    """Why it was not applied."""


def train(job: TrainJob, placement: TrainPlacement, session: Session) -> TrainResult:
    """Fine-tune and export one model; every worker calls it, rank 0's result counts.

    Raises:
        TrainingStopped: on every worker alike, where trying again would not help.
    """
    started = time.monotonic()
    base = storage.local_directory(job.base_uri)
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
    files = export(run.engine, run.tokenizer, base, job, session.rank)
    return TrainResult(
        model=job.model,
        metrics=run.history,
        files=files,
        examples=dict(counts),
        batch_examples=run.schedule.batch_examples,
        parameters=zero.parameter_count(run.engine.module),
        dropouts=dropouts,
        tokens=sum(row.tokens for row in run.history),
        output_tokens=sum(row.output_tokens for row in run.history),
        resumed_from=run.resumed_from,
        seconds=time.monotonic() - started,
    )


def prepare(
    job: TrainJob, placement: TrainPlacement, session: Session, base: Path
) -> tuple[Run, Counter[str], list[str]]:
    """Read the pairs, lay out the schedule, load the model."""
    zero.import_deepspeed(gpu=placement.gpus_per_worker > 0)
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    recipe = job.recipe
    context = getattr(AutoConfig.from_pretrained(base), "max_position_embeddings", None) or recipe.max_length_tokens
    pairs, dropped = read_pairs(job.pair_uris)
    limit = min(recipe.max_length_tokens, context)
    examples, counts = make_examples(pairs, tokenizer, job.chat, job.direction, limit, recipe.too_long)
    counts["dropped_before"] = dropped
    if not examples:
        raise TrainingStopped(
            f"{job.model} has no examples: {len(pairs)} pairs were kept by earlier stages and {counts['too_long']} of "
            f"them are longer than {limit} tokens; raise train.recipe.max_length_tokens or set too_long to truncate"
        )
    plan = schedule(recipe, job.model, len(examples))
    rounds = micro_batches(plan.batch_examples, session.workers, placement.micro_batch_examples)
    config = zero.engine_config(placement, recipe, rounds)
    model, dropouts = zero.load_model(base, recipe, config)
    engine = zero.start_engine(model, config, gpu=placement.gpus_per_worker > 0)
    identity = job.identity() | {
        "examples": fingerprint([[example.id, example.tokens.loss_start, example.tokens.ids] for example in examples]),
    }
    start = chosen(session.rank, lambda: secrets.token_hex(3))
    saver = Saver(storage.join(session.checkpoints, session.attempt), session.rank, placement.keep_checkpoints)
    return Run(job, placement, session, plan, examples, engine, tokenizer, identity, start, saver), counts, dropouts


def resume(run: Run) -> None:
    """Go on from the newest checkpoint, if there is one; nothing is read from it before all workers found it sound."""
    import torch.distributed as dist

    source = found(run)
    if source is None:
        return
    run.history = checkpoints.read_state(source.uri, run.identity)
    agree(source.problem())
    updates = sum(not row.skipped for row in run.history)
    if updates:
        fragments.start_optimizer(run.engine, updates)
    agree(source.fill(fragments.held(run.engine)))
    fragments.publish(run.engine)
    run.resumed_from = len(run.history)
    if run.session.rank == 0:
        logger.info("%s goes on from %s", run.job.model, source.uri)
    dist.barrier()
    source.forget()


def found(run: Run) -> checkpoints.Fetched | None:
    """Return the newest checkpoint, once every worker has what it needs of it on its machine."""
    held = fragments.held(run.engine)
    while uri := chosen(run.session.rank, lambda: checkpoints.newest(run.session.checkpoints)):
        source = checkpoints.fetch(uri, held)
        if all(gathered(source is not None)):
            return source
        if source is not None:
            source.forget()
    return None


def chosen(rank: int, choose: Callable[[], T]) -> T:
    """Let rank 0 choose, and tell every worker."""
    import torch.distributed as dist

    choice: list[Any] = [choose() if rank == 0 else None]
    dist.broadcast_object_list(choice)
    return choice[0]


def agree(problem: str | None) -> None:
    """Stop every worker if one of them has a problem; alone it would leave the others waiting."""
    problems = [text for text in gathered(problem) if text]
    if problems:
        raise TrainingStopped(problems[0])


def gathered(value: T) -> list[T]:
    """Return every worker's value, by rank."""
    import torch.distributed as dist

    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


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
    rate = run.schedule.rate(step)
    update = optimize(run, batch, step, rate)
    row = StepMetrics(
        step=step,
        loss=update.loss,
        learning_rate=rate,
        gradient_norm=update.gradient_norm,
        tokens=sum(example.length for example in batch),
        output_tokens=sum(example.output_tokens for example in batch),
        seconds=time.monotonic() - began,
        skipped=update.problem is not None,
    )
    if update.problem is not None:
        refuse(run, row, batch, update.problem)
    run.history.append(row)
    if run.session.rank == 0:
        told = {"steps": run.schedule.steps, "workers": run.session.workers, "resumed_from": run.resumed_from}
        run.session.progress(told | vars(row))
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


def optimize(run: Run, batch: list[Example], step: int, rate: float) -> Update:
    """Run this worker's micro-batches and one update, unless the global batch's mean loss or gradient forbids it."""
    import torch
    import torch.distributed as dist

    engine, session = run.engine, run.session
    torch.manual_seed(seed_of("dropout", run.schedule.seed, step, session.rank))
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    lengths = [example.length for example in batch]
    share = shares(lengths, session.workers, run.placement.micro_batch_examples)[session.rank]
    output_tokens = sum(example.output_tokens for example in batch)
    plain, norm = engine.zero_optimization_stage() == 0, 0.0
    scale = zero.loss_scale_of(session.workers, len(share), output_tokens)
    total = torch.tensor([0.0, run.asks()], dtype=torch.float64)
    mean, asked, problem = 0.0, False, None
    for turn, positions in enumerate(share, start=1):
        loss = summed_loss(engine, [batch[position] for position in positions], engine.device)
        total[0] += loss.detach().double().cpu()
        if turn == len(share):
            total = total.to(engine.device)
            dist.all_reduce(total)
            mean, asked = total[0].item() / output_tokens, total[1].item() > 0
            problem = losses.problem(mean, run.history, run.job.recipe.spike_factor)
            if problem and run.job.recipe.on_bad_loss == "stop":
                return Update(mean, math.nan, asked, problem)
            if problem:
                loss = loss * math.nan  # DeepSpeed drops an update whose gradient is no number
        engine.backward(loss * scale)
        norm = zero.gradient_norm(engine) if plain else 0.0
        if plain and turn == len(share) and not math.isfinite(norm):
            zero.drop_update(engine)
        else:
            engine.step()
    norm = norm if plain else zero.gradient_norm(engine)
    if problem is None and not math.isfinite(norm):
        problem = f"its loss is {mean:.4g} and its gradient norm {norm}"
    if problem:
        zero.forget_dropped(engine)
    return Update(mean, norm, asked, problem)


def summed_loss(model: Any, examples: list[Example], device: Any) -> Any:
    """Sum the cross-entropy over the output tokens of a micro-batch, float32 scalar; 0 (with a graph) if it is empty.

    Rows are padded on the right, where causal attention keeps padding out of every token's sight, so there is no
    mask; logits are computed from the first output token of the micro-batch on.
    """
    import torch
    from torch.nn.functional import cross_entropy

    width = max((example.length for example in examples), default=2)
    first = min((example.tokens.loss_start for example in examples), default=1) - 1
    ids = torch.zeros(max(len(examples), 1), width, dtype=torch.long)
    targets = torch.full((max(len(examples), 1), width), IGNORED, dtype=torch.long)
    for row, example in enumerate(examples):
        ids[row, : example.length] = torch.tensor(example.tokens.ids)
        start = example.tokens.loss_start
        targets[row, start : example.length] = ids[row, start : example.length]
    logits = model(input_ids=ids.to(device), use_cache=False, logits_to_keep=width - first).logits[:, :-1].float()
    wanted = targets[:, first + 1 :].to(device)
    if not examples:
        return logits.sum() * 0.0
    return cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum")
