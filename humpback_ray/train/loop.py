"""The training loop of one worker: examples in, an exported model out.

Every worker computes the same schedule, takes its share of each global batch (packing.py) and runs the same number of
micro-batches (an empty one carries no loss). The loss of a step is the sum over the output tokens of the *global* batch
divided by their number, whatever the number of workers, the packing or the accumulation: in float32 without dropout the
losses agree to about 1e-6. Dropout masks are seeded by (seed, step, rank), so a run that resumes with the same number
of workers and the same `micro_batch_tokens` draws the same ones.

A checkpoint is due every few steps or minutes, after the last step, and when a worker is told that its node will be
taken away or that the run will grow. The last one is stored while the model is exported: a failed export repeats no
step. All workers must save after the same step, so each sends its wish along when they sum the step's loss, before the
last backward pass. If that loss or the gradient is bad, the update is not applied, and the recipe decides whether the
run stops.

The loop knows nothing of Ray: a `Session` (state.py) says which worker it is and where checkpoints and progress go. A
single worker needs no launcher: call `train(job, placement, Session.alone("checkpoints"))`.
"""

import json
import logging
import secrets
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from humpback_ray import storage
from humpback_ray.placement import TrainPlacement
from humpback_ray.train import outofmemory
from humpback_ray.train.base import Base, looked_at
from humpback_ray.train.checkpoint import fragments, store
from humpback_ray.train.checkpoint.saver import Saver
from humpback_ray.train.data.examples import Example
from humpback_ray.train.data.reading import examples_fault, read
from humpback_ray.train.data.schedule import schedule
from humpback_ray.train.engine import cpuadam, deepspeed_internals, group, lora, metrics, rope, zero
from humpback_ray.train.engine.attention import prepare as prepare_attention
from humpback_ray.train.engine.exhausted import doing
from humpback_ray.train.export import process
from humpback_ray.train.export.card import model_card
from humpback_ray.train.export.directory import export_model, lacking_room, served_unlike
from humpback_ray.train.job import StepMetrics, TrainingStopped, TrainJob, TrainResult
from humpback_ray.train.state import Data, Session, Training
from humpback_ray.train.step import optimize, validate

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

logger = logging.getLogger(__name__)


def train(job: TrainJob, placement: TrainPlacement, session: Session) -> TrainResult:
    """Fine-tune and export one model; every worker calls it, and rank 0's result counts.

    torch.distributed must be up, unless there is only one worker: then it is started here and stays up.

    Raises:
        TrainingStopped: trying again would not help; every worker raises it.
        OutOfMemory: trying again would not help; this worker's memory ran out, and the others may wait for it forever.
    """
    gpu = placement.gpus_per_worker > 0
    with outofmemory.explained(job, placement, session), group.joined(session.workers, gpu=gpu):
        return trained(job, placement, session)


def trained(job: TrainJob, placement: TrainPlacement, session: Session) -> TrainResult:
    """Do the work of `train` with torch.distributed up."""
    started = time.monotonic()
    if session.rank == 0:
        process.started(placement.gpus_per_worker > 0)  # its imports run beside the start
    else:
        process.ended()  # a warm worker has one
    base = storage.local_directory(job.base)
    with doing("while loading the model"):
        training = prepare(job, placement, session, base)
        resume(training)
    try:
        for step in range(len(training.history) + 1, training.schedule.steps + 1):
            asked = advance(training, step)
            if asked or step % placement.checkpoint_every_steps == 0 or step == training.schedule.steps:
                save(training)
        result = outcome(training)
        with doing("while exporting the model"):
            files, greedy = export_model(training, base, model_card(job, result), partial(settle, training))
    finally:
        training.saver.wait()
    return replace(result, files=files, greedy=greedy, seconds=time.monotonic() - started)


def prepare(job: TrainJob, placement: TrainPlacement, session: Session, base: Path) -> Training:
    """Read the examples, compute the schedule, load the model; a run that cannot succeed stops here on all workers."""
    gpu = placement.gpus_per_worker > 0
    zero.import_deepspeed(gpu)
    from transformers import AutoTokenizer

    known = group.chosen(
        session.rank, lambda: looked_at(storage.Directory(str(base)), job.recipe, f"{job.model}: its base model")
    )
    if not isinstance(known, Base):
        raise TrainingStopped(str(known))
    tokenizer = AutoTokenizer.from_pretrained(base)
    group.agree(served_unlike(tokenizer, base, job) if session.rank == 0 else None)
    data = read(job, known.context_tokens)
    group.agree(examples_fault(job, known, tokenizer, data) if session.rank == 0 else None)
    plan = schedule(job.recipe, job.model, len(data.examples))
    config = zero.engine_config(placement, job.recipe, cpuadam.agreed(placement, session.rank))
    model, dropouts = zero.load_model(base, job.recipe, config, placement.activation_checkpointing)
    refuse_positions(model.config, data, job.model)
    batching = prepare_attention(model, placement)
    chosen = lora.attach(model, job.recipe)
    if chosen is not None and session.rank == 0:
        logger.info("%s: %s", job.model, chosen.words())
    sizes = zero.parameter_count(model), zero.parameter_count(model, trainable=True)
    width_bytes = 2 if job.recipe.dtype == "bfloat16" else 4
    group.agree(lacking_room(job.export_uri, sizes[0] * width_bytes) if session.rank == 0 else None)
    engine = zero.start_engine(model, config, gpu)
    return Training(
        job=job,
        placement=placement,
        session=session,
        schedule=plan,
        data=data,
        engine=engine,
        batching=batching,
        dropouts=dropouts,
        meter=metrics.make_meter(model.config, *sizes, engine.device, job.recipe.dtype),
        tokenizer=tokenizer,
        identity=job.identity() | {"examples": data.examples.digest()},
        start=group.chosen(session.rank, lambda: secrets.token_hex(3)),
        saver=Saver(storage.join(session.checkpoints, session.attempt), session.rank, placement.keep_checkpoints),
        boundary=rope.boundary(model.config),
    )


def refuse_positions(config: "PreTrainedConfig", data: Data, name: str) -> None:
    """Stop if the loss of an example would depend on what else the model reads."""

    def longest() -> int:
        return max(example.length for examples in (data.examples, data.held_out) for example in examples)

    if said := rope.problem(config, longest):
        raise TrainingStopped(f"{name}: {said}")


def outcome(training: Training) -> TrainResult:
    """Describe a training after its last step, before the export."""
    module, history = training.engine.module, training.history
    return TrainResult(
        model=training.job.model,
        metrics=history,
        files=[],
        examples=training.data.counts,
        batch_examples=training.schedule.batch_examples,
        parameters=zero.parameter_count(module),
        trainable_parameters=zero.parameter_count(module, trainable=True),
        dropouts=training.dropouts,
        tokens=sum(row.tokens for row in history),
        output_tokens=sum(row.output_tokens for row in history),
        peak=training.meter.peak,
        greedy=[],
        resumed_from=training.resumed_from,
        seconds=0.0,
    )


def resume(training: Training) -> None:
    """Resume from the newest sound checkpoint, if any; no weights are loaded before all workers have found it sound."""
    import torch.distributed as dist

    source = found(training)
    if source is None:
        return
    training.history = list(source.contents.state.history)
    updates = sum(not row.skipped for row in training.history)
    if updates:
        deepspeed_internals.start_optimizer(training.engine, updates)
    source.fill(fragments.held(training.engine))
    deepspeed_internals.publish(training.engine)
    training.resumed_from = len(training.history)
    if training.session.rank == 0:
        logger.info("%s: resumed from %s", training.job.model, source.contents.uri)
    dist.barrier()
    source.forget()


def found(training: Training) -> store.Fetched | None:
    """Fetch each worker's files of the newest sound checkpoint; look again if one could not get them. None: none is.

    Raises:
        TrainingStopped: the newest one belongs to another run, or all that are complete have wrong bytes.
    """
    session, held, wrong = training.session, fragments.held(training.engine), training.saver.damaged
    while contents := group.chosen(session.rank, lambda: store.newest(session.checkpoints, wrong)):
        problem, source = store.altered(contents) if session.rank == 0 else None, None
        problem = next(filter(None, group.gathered(problem)), None)
        if problem is None:
            store.check_identity(contents, training.identity)
            source = store.fetch(contents, held)
            if not all(group.gathered(source is not None)):
                if source is not None:
                    source.forget()
                continue
            problem = next(filter(None, group.gathered(source and source.problem(held))), None)
        if problem is None:
            return source
        if source is not None:
            source.forget()
        wrong[contents.uri] = problem
        if session.rank == 0:
            logger.warning("ignoring checkpoint %s, which is damaged: %s", contents.uri, problem)
    if wrong:
        each = "; ".join(f"{uri}: {problem}" for uri, problem in wrong.items())
        raise TrainingStopped(
            f"{training.job.model}: every complete checkpoint is damaged ({each}); restore one from a copy, or delete "
            "them to train from the start"
        )
    if session.rank == 0 and store.listed(session.checkpoints):
        logger.warning("no checkpoint under %s can be used: training starts from step 1", session.checkpoints)
    return None


def save(training: Training) -> None:
    """Begin this worker's part of a checkpoint; it is stored while the next steps run."""
    session = training.session
    mine = fragments.owned(training.engine, session.rank, session.workers)
    state = store.state_of(training.identity, training.history, session.workers)
    training.saver.save(f"step-{len(training.history):06d}-{training.start}", mine, state)
    training.saved_at = time.monotonic()


def settle(training: Training) -> None:
    """Wait until every worker has stored its part of the last checkpoint, delete old ones, and end the engine."""
    import torch.distributed as dist

    training.saver.wait()
    dist.barrier()
    training.saver.prune()
    deepspeed_internals.end(training.engine)
    dist.barrier()


def advance(training: Training, step: int) -> bool:
    """Take one optimizer step and record its metrics; return whether a worker wants a checkpoint."""
    began = time.monotonic()
    batch = [training.data.examples[index] for index in training.schedule.batch(step)]
    waited_s = time.monotonic() - began
    rate = training.schedule.rate(step)
    update = optimize(training, batch, step, rate, waited_s)
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
        mfu=training.meter.mfu(lengths, seconds),
        memory_bytes=update.memory_bytes,
        padding_share=1 - sum(lengths) / update.computed_tokens,
        data_s=update.waited_s,
    )
    if update.problem is not None:
        refuse(training, row, batch, update.problem)
    due = step % training.job.recipe.validate_every_steps == 0 or step == training.schedule.steps
    if training.data.held_out and due:
        row = replace(row, validation_loss=validate(training))
    training.history.append(row)
    session = training.session
    if session.rank == 0:
        whole = {"steps": training.schedule.steps, "workers": session.workers, "resumed_from": training.resumed_from}
        session.progress(whole | row.figures())
    return update.asked


def refuse(training: Training, row: StepMetrics, batch: list[Example], problem: str) -> None:
    """Store the row ids of a step whose update was not applied; stop, unless the recipe skips bad steps.

    Raises:
        TrainingStopped: the recipe stops at bad steps, or too many steps were skipped.
    """
    recipe, session = training.job.recipe, training.session
    uri = storage.join(session.checkpoints, session.attempt, f"refused-{row.step:06d}-{training.start}.json")
    if session.rank == 0:
        ids = sorted({example.id for example in batch})
        try:
            storage.write_bytes(uri, json.dumps({"problem": problem, **vars(row), "rows": ids}, indent=1).encode())
        except OSError as error:
            logger.warning("could not store %s; training continues by its recipe: %s", uri, error)
    before = sum(earlier.skipped for earlier in training.history)
    said = (
        f"{training.job.model}: the update of step {row.step} was not applied: {problem}; learning rate "
        f"{row.learning_rate:g}, its rows are listed in {uri}"
    )
    if recipe.on_bad_loss == "stop":
        raise TrainingStopped(
            f"{said}; look at these rows, lower the learning rate, or set train.recipe.on_bad_loss=skip to continue "
            "without this step"
        )
    if before >= recipe.max_skipped_steps:
        raise TrainingStopped(
            f"{said}; {before} steps were skipped before it, and train.recipe.max_skipped_steps allows "
            f"{recipe.max_skipped_steps}: lower the learning rate, or raise the limit"
        )
    if session.rank == 0:
        logger.warning("%s; the step is skipped", said)
