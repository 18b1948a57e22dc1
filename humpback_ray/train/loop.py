"""The training loop of one worker: examples in, an exported model out.

Every worker lays out the same schedule, takes its share of each global batch and runs the same number of micro-batches
(an empty one carries no loss). The loss of a step is the sum over the output tokens of the *global* batch divided by
their number, whatever the number of workers, the micro-batch or the accumulation: in float32 without dropout the
losses agree to about 1e-6. Dropout masks are seeded by (seed, step, rank), so that a resumed run draws the same ones.

The loop knows nothing of Ray: a `Session` says which worker it is and where checkpoints and progress go. A single
worker needs no launcher either: `train(job, placement, Session.alone("checkpoints"))` is all there is to it.
"""

import contextlib
import logging
import math
import secrets
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from humpback_ray import storage
from humpback_ray.config import fingerprint
from humpback_ray.placement import TrainPlacement
from humpback_ray.records import seed_of
from humpback_ray.train import checkpoints, lora, metrics, validation, zero
from humpback_ray.train.card import model_card
from humpback_ray.train.examples import Example, make_examples, read_pairs
from humpback_ray.train.export import export, lacking_room
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
    examples: list[Example]
    held_out: list[Example]
    """Seed pairs that no step trains on; their loss is the validation loss."""
    engine: Any
    meter: metrics.Meter
    tokenizer: Any
    identity: dict[str, Any]
    start: str
    """Marks what these workers write, among earlier and later ones of the same attempt."""
    history: list[StepMetrics] = field(default_factory=list)
    resumed_from: int | None = None


def train(job: TrainJob, placement: TrainPlacement, session: Session) -> TrainResult:
    """Fine-tune and export one model; every worker calls it, rank 0's result counts.

    torch.distributed must be up, unless there is one worker: then it is started here and stays up.

    Raises:
        TrainingStopped: on every worker alike, where trying again would not help.
    """
    with joined(session.workers, gpu=placement.gpus_per_worker > 0):
        return trained(job, placement, session)


@contextlib.contextmanager
def joined(workers: int, gpu: bool) -> Iterator[None]:
    """Start torch.distributed for a single worker where nobody has, and give it what a launcher would."""
    import torch.distributed as dist
    from accelerate.utils import patch_environment

    if workers > 1 and not dist.is_initialized():
        raise RuntimeError(f"torch.distributed is not up, and {workers} workers cannot train without it (see fit.py)")
    if not dist.is_initialized():
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group("nccl" if gpu else "gloo", store=store, rank=0, world_size=1)
    with warnings.catch_warnings(), patch_environment(**({"local_rank": 0} if workers == 1 else {})):
        warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)  # DeepSpeed's calls
        yield


def trained(job: TrainJob, placement: TrainPlacement, session: Session) -> TrainResult:
    """Do what `train` promises, with torch.distributed up."""
    started = time.monotonic()
    base = storage.local_directory(job.base_uri)
    run, counts, dropouts = prepare(job, placement, session, base)
    resume(run)
    for step in range(len(run.history) + 1, run.schedule.steps + 1):
        advance(run, step)
        if step % placement.checkpoint_every_steps == 0 and step < run.schedule.steps:
            save(run)
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
    """Read the pairs, lay out the schedule, load the model."""
    zero.import_deepspeed(gpu=placement.gpus_per_worker > 0)
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    recipe = job.recipe
    context = getattr(AutoConfig.from_pretrained(base), "max_position_embeddings", None) or recipe.max_length_tokens
    pairs, dropped = read_pairs(job.pair_uris)
    limit = min(recipe.max_length_tokens, context)
    try:
        pairs, held = validation.split(pairs, recipe.validation_share)
    except ValueError as error:
        raise TrainingStopped(f"{job.model}: {error}") from error
    examples, counts = make_examples(pairs, tokenizer, job.chat, job.direction, limit, recipe.too_long)
    held_out, _ = make_examples(held, tokenizer, job.chat, job.direction, limit, recipe.too_long)
    counts["held_out"] = len(held)
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
    lora.attach(model, recipe)
    sizes = zero.parameter_count(model), zero.parameter_count(model, trainable=True)
    width_bytes = 2 if recipe.dtype == "bfloat16" else 4
    agree(lacking_room(job.export_uri, sizes[0] * width_bytes) if session.rank == 0 else None)
    engine = zero.start_engine(model, config, gpu=placement.gpus_per_worker > 0)
    meter = metrics.make_meter(model.config, *sizes, engine.device, recipe.dtype)
    identity = job.identity() | {
        "placement": {"workers": session.workers, "zero_stage": placement.zero_stage},
        "examples": fingerprint([[example.id, example.tokens.loss_start, example.tokens.ids] for example in examples]),
    }
    start = chosen(session.rank, lambda: secrets.token_hex(3))
    run = Run(job, placement, session, plan, examples, held_out, engine, meter, tokenizer, identity, start)
    return run, counts, dropouts


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
    waited = time.monotonic() - began
    rate = run.schedule.rate(step)
    loss, norm, positions = optimize(run, batch, step, rate)
    seconds = time.monotonic() - began
    lengths = [example.length for example in batch]
    device = run.engine.device
    memory, waited = metrics.most([metrics.memory_bytes(device), waited], device)
    row = StepMetrics(
        step=step,
        loss=loss,
        learning_rate=rate,
        gradient_norm=norm,
        tokens=sum(lengths),
        output_tokens=sum(example.output_tokens for example in batch),
        seconds=seconds,
        mfu=run.meter.mfu(lengths, seconds),
        memory_bytes=int(memory),
        padding_share=1 - sum(lengths) / positions,
        data_s=waited,
    )
    if not (math.isfinite(loss) and math.isfinite(norm)):
        ids = ", ".join(sorted({example.id for example in batch}))
        raise TrainingStopped(
            f"{run.job.model}: step {step} has loss {loss} and gradient norm {norm} at learning rate {rate:g}; "
            f"lower the learning rate or look at its rows: {ids}"
        )
    if run.held_out and (step % run.job.recipe.validate_every_steps == 0 or step == run.schedule.steps):
        row = replace(row, validation_loss=validate(run))
    run.history.append(row)
    if run.session.rank == 0:
        figures = {"step": step, "steps": run.schedule.steps, "resumed_from": run.resumed_from} | row.figures()
        run.session.progress(figures)


def optimize(run: Run, batch: list[Example], step: int, rate: float) -> tuple[float, float, int]:
    """Run this worker's micro-batches and one update.

    Returns:
        The global mean loss, the gradient's norm, and the positions that all workers computed, padding included.
    """
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
    total = torch.zeros(2, dtype=torch.float64)
    for places in share:
        micro = [batch[place] for place in places]
        loss = summed_loss(engine, micro, engine.device)
        engine.backward(loss * scale)
        norm = zero.gradient_norm(engine) if plain else 0.0
        engine.step()
        total += torch.tensor([loss.item(), computed_positions(micro)], dtype=torch.float64)
    total = total.to(engine.device)
    dist.all_reduce(total)
    return total[0].item() / output_tokens, norm if plain else zero.gradient_norm(engine), int(total[1].item())


def validate(run: Run) -> float:
    """Return the mean loss over the output tokens of the held-out pairs, without dropout; every worker calls it."""
    import torch
    import torch.distributed as dist

    engine, session = run.engine, run.session
    lengths = [example.length for example in run.held_out]
    share = shares(lengths, session.workers, run.placement.micro_batch_examples)[session.rank]
    total = torch.zeros(1, dtype=torch.float64)
    engine.eval()
    with torch.no_grad():
        for places in share:
            loss = summed_loss(engine, [run.held_out[place] for place in places], engine.device)
            total += loss.double().cpu()
    engine.train()
    total = total.to(engine.device)
    dist.all_reduce(total)
    return total.item() / sum(example.output_tokens for example in run.held_out)


def computed_positions(examples: list[Example]) -> int:
    """Return how many positions a micro-batch takes: the padded rectangle that `summed_loss` lays out."""
    return max(len(examples), 1) * max((example.length for example in examples), default=2)


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
