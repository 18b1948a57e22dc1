"""The training loop of one worker: examples in, an exported model out.

Every worker lays out the same schedule, takes its share of each global batch (packing.py) and runs the same number of
micro-batches (an empty one carries no loss). The loss of a step is the sum over the output tokens of the *global* batch
divided by their number, whatever the number of workers, the packing or the accumulation: in float32 without dropout the
losses agree to about 1e-6. Dropout masks are seeded by (seed, step, rank), so that a resumed run draws the same ones.

The loop knows nothing of Ray: a `Session` says which worker it is and where checkpoints and progress go.
"""

import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from humpback_ray import storage
from humpback_ray.placement import TrainPlacement
from humpback_ray.records import seed_of
from humpback_ray.train import checkpoints, zero
from humpback_ray.train.attention import Layout, logits_of
from humpback_ray.train.attention import prepare as prepare_attention
from humpback_ray.train.examples import Example, Examples, read_examples
from humpback_ray.train.export import export
from humpback_ray.train.job import StepMetrics, TrainingStopped, TrainJob, TrainResult
from humpback_ray.train.packing import pack
from humpback_ray.train.schedule import Schedule, schedule

T = TypeVar("T")

logger = logging.getLogger(__name__)

LOGITS_AT_ONCE = 1 << 26
"""Logits of which the loss is taken at once: 256 MB in float32."""


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
    examples: Examples
    engine: Any
    layout: Layout
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
    """Read the examples, lay out the schedule, load the model."""
    zero.import_deepspeed(gpu=placement.gpus_per_worker > 0)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    examples, counts = read_examples(job.token_uris)
    if not examples:
        raise TrainingStopped(
            f"{job.model} has no examples: {counts['too_long']} of {counts.total()} pairs are longer than "
            f"{job.recipe.max_length_tokens} tokens or the model's context; raise train.recipe.max_length_tokens or "
            "set too_long to truncate"
        )
    plan = schedule(job.recipe, job.model, len(examples))
    config = zero.engine_config(placement, job.recipe)
    model, dropouts = zero.load_model(base, job.recipe, config)
    layout = prepare_attention(model, placement)
    engine = zero.start_engine(model, config, gpu=placement.gpus_per_worker > 0)
    identity = job.identity() | {
        "placement": {"workers": session.workers, "zero_stage": placement.zero_stage},
        "examples": examples.digest(),
    }
    start = chosen(session.rank, lambda: secrets.token_hex(3))
    return Run(job, placement, session, plan, examples, engine, layout, tokenizer, identity, start), counts, dropouts


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
    shares = pack(lengths, session.workers, run.placement.micro_batch_tokens, padded=run.layout == "padded")
    share = shares[session.rank]
    output_tokens = sum(example.output_tokens for example in batch)
    scale = zero.loss_scale_of(session.workers, output_tokens)
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    for turn, places in enumerate(share, start=1):
        engine.set_gradient_accumulation_boundary(turn == len(share))
        loss = summed_loss(engine, [batch[place] for place in places], run.layout, engine.device)
        engine.backward(loss * scale)
        total += loss.detach()
    plain = engine.zero_optimization_stage() == 0
    norm = zero.gradient_norm(engine) if plain else 0.0
    engine.step()
    dist.all_reduce(total)
    return total.item() / output_tokens, norm if plain else zero.gradient_norm(engine)


def summed_loss(model: Any, examples: Sequence[Example], layout: Layout, device: Any) -> Any:
    """Sum the cross-entropy over a micro-batch's output tokens, float32 scalar; 0 (with a graph) if it is empty."""
    logits, targets = logits_of(model, examples, layout, device)
    return summed_cross_entropy(logits, targets) if examples else logits.float().sum() * 0.0


def summed_cross_entropy(logits: Any, targets: Any, at_once: int = LOGITS_AT_ONCE) -> Any:
    """Sum the cross-entropy of logits [N, V] and targets [N] in float32.

    Logits become float32 a few rows at a time, and once more in the backward pass: a vocabulary of 128,000 would take
    two gigabytes for 4,096 tokens, several times over.
    """
    from torch.nn.functional import cross_entropy
    from torch.utils.checkpoint import checkpoint

    def part(some: Any, wanted: Any) -> Any:
        return cross_entropy(some.float(), wanted, reduction="sum")

    if logits.numel() <= at_once:
        return part(logits, targets)
    rows = max(at_once // logits.shape[1], 1)
    parts = zip(logits.split(rows), targets.split(rows), strict=True)
    return sum(checkpoint(part, some, wanted, use_reentrant=False) for some, wanted in parts)
