"""The training loop of one worker: examples in, an exported model out.

Every worker lays out the same schedule, takes its share of each global batch and runs the same number of micro-batches
(an empty one carries no loss). The loss of a step is the sum over the output tokens of the *global* batch divided by
their number, whatever the number of workers, the micro-batch or the accumulation: in float32 without dropout the
losses agree to about 1e-6. Dropout masks are seeded by (seed, step, rank), so that a resumed run draws the same ones.

The loop knows nothing of Ray: a `Session` says which worker it is and where checkpoints and progress go.
"""

import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from humpback_ray import storage
from humpback_ray.config import fingerprint
from humpback_ray.placement import TrainPlacement
from humpback_ray.records import seed_of
from humpback_ray.train import checkpoints, zero
from humpback_ray.train.examples import Example, make_examples, read_pairs
from humpback_ray.train.export import export
from humpback_ray.train.job import StepMetrics, TrainingStopped, TrainJob, TrainResult
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
    history: list[StepMetrics] = field(default_factory=list)
    resumed_from: int | None = None


def train(job: TrainJob, placement: TrainPlacement, session: Session) -> TrainResult:
    """Fine-tune and export one model; every worker calls it, rank 0's result counts.

    Raises:
        TrainingStopped: on every worker alike, where trying again would not help.
    """
    started = time.monotonic()
    base = storage.local_directory(job.base_uri)
    run, counts, dropouts = prepare(job, placement, session, base)
    resume(run)
    for step in range(len(run.history) + 1, run.schedule.steps + 1):
        advance(run, step)
        if step % placement.checkpoint_every_steps == 0 and step < run.schedule.steps:
            save(run)
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
    model, dropouts = zero.load_model(base, recipe, config, placement.activation_checkpointing)
    engine = zero.start_engine(model, config, gpu=placement.gpus_per_worker > 0)
    identity = job.identity() | {
        "placement": {"workers": session.workers, "zero_stage": placement.zero_stage},
        "examples": fingerprint([[example.id, example.tokens.loss_start, example.tokens.ids] for example in examples]),
    }
    start = chosen(session.rank, lambda: secrets.token_hex(3))
    return Run(job, placement, session, plan, examples, engine, tokenizer, identity, start), counts, dropouts


def resume(run: Run) -> None:
    """Go on from the newest checkpoint, if there is one; nothing is unpickled before all workers found it sound."""
    import torch.distributed as dist

    uri, directory = found(run.session)
    if uri is None or directory is None:
        return
    run.history = checkpoints.read_state(directory, run.identity)
    problem = checkpoints.problem(directory, run.session.rank)
    agree(f"{uri}: {problem}; delete this checkpoint to go on from an earlier one" if problem else None)
    checkpoints.load(run.engine, directory)
    run.resumed_from = len(run.history)
    if run.session.rank == 0:
        logger.info("%s goes on from %s", run.job.model, uri)
    dist.barrier()
    checkpoints.forget(uri, directory)


def found(session: Session) -> tuple[str | None, Path | None]:
    """Return the newest checkpoint and where its files are on this machine, once every worker has them."""
    while uri := chosen(session.rank, lambda: checkpoints.newest(session.checkpoints)):
        directory = checkpoints.fetch(uri)
        if all(gathered(directory is not None)):
            return uri, directory
    return None, None


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
    """Write a checkpoint, every worker its part; once it is whole, rank 0 deletes old ones."""
    import torch.distributed as dist

    mine = storage.join(run.session.checkpoints, run.session.attempt)
    with TemporaryDirectory(prefix="humpback-checkpoint-") as name:
        directory = Path(name)
        checkpoints.save(run.engine, directory, run.session.rank, run.identity, run.history)
        uri = storage.join(mine, f"step-{len(run.history):06d}-{run.start}")
        checkpoints.upload(directory, run.session.rank, uri)
    dist.barrier()
    if run.session.rank == 0:
        checkpoints.prune(mine)


def advance(run: Run, step: int) -> None:
    """Take one optimizer step, note its metrics, and stop on a loss that is no number."""
    began = time.monotonic()
    batch = [run.examples[index] for index in run.schedule.batch(step)]
    rate = run.schedule.rate(step)
    loss, norm = optimize(run, batch, step, rate)
    row = StepMetrics(
        step=step,
        loss=loss,
        learning_rate=rate,
        gradient_norm=norm,
        tokens=sum(example.length for example in batch),
        output_tokens=sum(example.output_tokens for example in batch),
        seconds=time.monotonic() - began,
    )
    if not (math.isfinite(loss) and math.isfinite(norm)):
        ids = ", ".join(sorted({example.id for example in batch}))
        raise TrainingStopped(
            f"{run.job.model}: step {step} has loss {loss} and gradient norm {norm} at learning rate {rate:g}; "
            f"lower the learning rate or look at its rows: {ids}"
        )
    run.history.append(row)
    if run.session.rank == 0:
        run.session.progress({"step": step, "steps": run.schedule.steps, "resumed_from": run.resumed_from} | vars(row))


def optimize(run: Run, batch: list[Example], step: int, rate: float) -> tuple[float, float]:
    """Run this worker's micro-batches and one update; return the global mean loss and the gradient's norm."""
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
    total = torch.zeros(1, dtype=torch.float64)
    for positions in share:
        loss = summed_loss(engine, [batch[position] for position in positions], engine.device)
        engine.backward(loss * scale)
        norm = zero.gradient_norm(engine) if plain else 0.0
        engine.step()
        total += loss.detach().double().cpu()
    total = total.to(engine.device)
    dist.all_reduce(total)
    return total.item() / output_tokens, norm if plain else zero.gradient_norm(engine)


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
