"""Ray on one machine: do a pool's actors share its GPU, and does a worker of Ray Train train on it?

Both run the product's own code: the stage that predicts instructions, with two actors of half a GPU each, and a
fine-tune with one worker, whose losses must equal those of a run without Ray. A machine that lacks Ray or another
package of the pipeline skips the part.
"""

import contextlib
import importlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.gpu.material import Check, base, examples, let_go, writer

if TYPE_CHECKING:
    from humpback_ray.stages.ledger import Attempt
    from humpback_ray.stages.manifest import Manifest

REPOSITORY = Path(__file__).parents[2]
NEEDED = ("ray.data", "ray.train.torch", "humpback_ray.augment", "humpback_ray.train.fit")
ACTORS = 2
CPUS = 4
"""CPUs that this Ray hands out: one for each actor or worker, and room for its own."""

STORE_BYTES = 1 << 28
"""Ray's object store, which holds only descriptions of shards; by default it would take a third of the memory."""


def part_ray(check: Check) -> None:
    """Run a pool and a training run on a Ray of its own."""
    try:
        for name in NEEDED:
            importlib.import_module(name)
    except ImportError as error:
        check.report.say("ray", skipped=f"a package is missing: {error}")
        return
    pool_ready, trained_alone = prepared(check)
    with local_ray(check):
        check.report.attempt("ray-pool", lambda: run_pool(check, *pool_ready))
        if trained_alone is not None:
            check.report.attempt("ray-train", lambda: run_training(check, trained_alone))


def prepared(check: Check) -> tuple[Any, Any]:
    """Make what both need before Ray starts: the pool's model and segments, and a run without Ray."""
    from tests.gpu.replies import Load
    from tests.gpu.runs import Runs
    from tests.gpu.training import exact_size

    name, rows, part = ("1b", 64, 1) if check.gpu else ("tiny", 8, 10)
    where = writer(check, name)
    runs = Runs(check, exact_size(check), {"dtype": "float32"})
    alone = runs.run("ray-train-alone", 2)
    let_go(check)
    return (where, [one.prompt for one in Load(check, name, rows, part).requests]), alone


@contextlib.contextmanager
def local_ray(check: Check) -> Iterator[None]:
    """Start a Ray of this process's own, and stop it."""
    import ray

    from jobs.local import LOCAL_RAY

    for variable, value in LOCAL_RAY.items():
        os.environ.setdefault(variable, value)
    known = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(known)  # Ray's processes look for this repository too
    began = time.monotonic()
    ray.init(
        address="local", num_cpus=CPUS, num_gpus=int(check.gpu), object_store_memory=STORE_BYTES,
        include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
    )  # fmt: skip
    try:
        check.report.say("ray-started", version=ray.__version__, seconds=round(time.monotonic() - began, 1))
        yield
    finally:
        ray.shutdown()


def run_pool(check: Check, where: Any, texts: list[str]) -> None:
    """Predict instructions with two actors that share the GPU; report whether all rows came back, and who wrote them.

    The model never ends a reply, so each row must have the recipe's number of tokens.
    """
    from humpback_ray.augment import AugmentRecipe
    from humpback_ray.engines import TransformersEngine
    from humpback_ray.inputs.contamination import NOTHING
    from humpback_ray.placement import PoolPlacement
    from humpback_ray.prompts.chat import ChatRecipe
    from humpback_ray.records import CANDIDATE
    from humpback_ray.stages.ledger import Ledger
    from humpback_ray.stages.stage import Place, Stage
    from tests.gpu.together import Together

    most = 32 if check.gpu else 8
    recipe = AugmentRecipe(engine=TransformersEngine(dtype="bfloat16"), max_new_tokens=most, max_failed_share=1.0)
    placement = PoolPlacement(
        min_replicas=ACTORS, cpus_per_replica=1, gpus_per_replica=1 / ACTORS if check.gpu else 0, rows_per_shard=2,
        shards_in_flight=1,
    )  # fmt: skip
    corpus, place = segments(check, texts), Place("candidates", str(check.room / "candidates"), "check")
    arguments = (str(check.room / "meeting"), ACTORS, recipe, ChatRecipe(), str(where), NOTHING)
    began = time.monotonic()
    made = Stage(place, recipe, {"corpus": corpus}, CANDIDATE).run(Together, arguments, placement, corpus)
    seconds = time.monotonic() - began
    rows = [row for table in made.tables(kept=False) for row in table.to_pylist()]
    ledger = Ledger(place.uri, place.submission)
    attempts = [attempt for commit in made.commits for attempt in ledger.attempts(commit.shard)]
    actors = len({attempt["pid"] for attempt in attempts})
    check.report.judge(
        "ray-pool", pool_problems(rows, len(texts), most, actors), rows=len(rows), actors=actors,
        gpus_per_actor=placement.gpus_per_replica, attempts=len(attempts), shards=len(made.commits),
        seconds=round(seconds, 1), tokens_per_s=round(sum(row["completion_tokens"] for row in rows) / seconds),
    )  # fmt: skip


def pool_problems(rows: list[dict[str, Any]], expected: int, most: int, actors: int) -> list[str]:
    """Return what is wrong with the rows of a pool."""
    said = []
    if len({row["id"] for row in rows}) != expected or len(rows) != expected:
        said.append(f"{expected} segments went in, and {len(rows)} rows came out")
    if wrong := [row for row in rows if (row["finish_reason"], row["completion_tokens"]) != ("length", most)]:
        said.append(f"{len(wrong)} replies do not have {most} tokens; the first is {wrong[0]}")
    if actors != ACTORS:
        said.append(f"{actors} processes worked on the shards instead of {ACTORS}")
    return said


def segments(check: Check, texts: list[str]) -> "Manifest":
    """Write texts as the corpus of a run."""
    import pyarrow as pa

    from humpback_ray.records import SEGMENT
    from humpback_ray.stages.outputs import TableWriter
    from humpback_ray.stages.stage import Place, Stage

    def write(attempt: "Attempt") -> Any:
        rows = [{"id": f"{number:04d}", "url": "", "text": text} for number, text in enumerate(texts)]
        writer = TableWriter(attempt, SEGMENT)
        writer.write(pa.Table.from_pylist(rows, schema=SEGMENT))
        return writer.commit()

    return Stage(Place("corpus", str(check.room / "corpus"), "check"), {}, {}, SEGMENT).leased(write)


def run_training(check: Check, alone: list[dict[str, Any]]) -> None:
    """Train with one worker of Ray Train; report whether its losses equal those of a run without Ray."""
    import dataclasses

    from humpback_ray.placement import TrainPlacement
    from humpback_ray.prompts.chat import ChatRecipe
    from humpback_ray.train.fit import launch
    from humpback_ray.train.job import TrainJob
    from humpback_ray.train.recipe import TrainRecipe
    from tests.gpu.runs import apart, too_far
    from tests.gpu.training import EXACT, exact_size

    size = exact_size(check)
    recipe = TrainRecipe(
        steps={"m0": size.steps}, batch_examples=size.batch, max_length_tokens=size.length, dropout=0.0,
        learning_rate=size.rate, final_learning_rate=size.rate / 10, dtype="float32",
    )  # fmt: skip
    placement = TrainPlacement(
        workers=1, gpus_per_worker=int(check.gpu), zero_stage=2, micro_batch_tokens=size.micro, kernels="plain",
        max_failures=0,
    )  # fmt: skip
    tokens = examples(check.room, 4 * size.batch, size.length)
    where = str(base(check, size.shape))
    job = TrainJob("m0", "forward", where, (tokens,), recipe, ChatRecipe(), str(check.room / "ray-model"))
    result = launch(job, placement, "check", str(check.room / "ray-checkpoints"))
    rows = [dataclasses.asdict(row) for row in result.metrics]
    besides_s = result.seconds - sum(row["seconds"] for row in rows)
    difference = apart(alone, rows)
    check.report.judge(
        "ray-train", too_far({"with Ray": difference}, EXACT), agree=difference, steps=len(rows),
        backend="nccl" if check.gpu else "gloo", losses=[round(row["loss"], 4) for row in rows], peak=result.peak,
        seconds=round(result.seconds, 1), besides_steps_s=round(besides_s, 1),
    )  # fmt: skip
