"""The part that all jobs share: arguments, logging, Ray, the table at the end, the exit code.

Exit codes: 0 done · 1 a stage failed, a check found a difference, or an unexpected error (printed above) · 2 the
configuration or an input is unusable and nothing was started · 3 another driver holds a lease that this one needs · 4
`max_hours` or `max_dollars` is reached · 129 the terminal was closed · 130 interrupted · 143 terminated (`ray job
stop`).
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import rich.table
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from humpback_ray import pipeline, storage
from humpback_ray.config import ConfigError, load
from humpback_ray.graph import Graph
from humpback_ray.miniature.truth import judge
from humpback_ray.operate.limits import LimitReached, Limits
from humpback_ray.operate.pilot import as_pilot
from humpback_ray.report import canary_sentences, failure_sentences, judged_sentences, register, write_report
from humpback_ray.run import Run
from humpback_ray.runconfig import RunConfig
from humpback_ray.stages.errors import StageFailed
from humpback_ray.stages.lease import LeaseHeld, LeaseLost
from humpback_ray.stages.manifest import Manifest
from jobs.cluster import check_gcs, one_line, stop_own_job
from jobs.ending import Ending
from jobs.local import start_local_ray
from jobs.printable import printable

console = Console(width=None if sys.stdout.isatty() else 160)


def arguments(
    argv: Sequence[str] | None, story: str, flags: Mapping[str, str] | None = None, **extra: str
) -> argparse.Namespace:
    """Parse `CONFIG [key=value ...]`; `extra` are this job's own keys with their defaults, `flags` its switches."""
    keys = "".join(f"\n  {key}={value or 'NAME'}  (a key of this job)" for key, value in extra.items())
    parser = argparse.ArgumentParser(
        description=story,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="keys that most runs set:\n  root=out/mine  corpus.recipe.inputs='[pages/*.warc.gz]'  "
        "seed.recipe.inputs='[trees.jsonl]'\n  base_model=PATH  augment.placement.max_replicas=8  "
        "train.placement.workers=8" + keys,
    )
    parser.add_argument("config", help="a YAML file; see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys that replace settings of CONFIG")
    for flag, meaning in (flags or {}).items():
        parser.add_argument(f"--{flag}", action="store_true", help=meaning)
    found = parser.parse_intermixed_args(argv)
    for key, value in extra.items():
        mine = [text for text in found.overrides if text.startswith(f"{key}=")]
        found.overrides = [text for text in found.overrides if text not in mine]
        setattr(found, key, mine[-1].partition("=")[2] if mine else value)
    return found


register(judge)  # reports of runs on the toy web compare them with its truth

Last = Callable[[argparse.Namespace, RunConfig], str | None]
"""Names the last stage that a job makes; None: all stages, and a report."""


def run_until(argv: Sequence[str] | None, story: str, last: Last, **extra: str) -> int:
    """Run the pipeline up to the stage that `last` names and print its table."""
    return guarded(lambda: work_until(arguments(argv, story, None, **extra), last))


def work_until(found: argparse.Namespace, last: Last) -> int:
    """Do the work of `run_until` for arguments already parsed."""
    config = load(RunConfig, found.config, found.overrides)
    until = last(found, config)
    if config.pilot is not None:
        config = as_pilot(config)
    run = opened(config, until)
    done = worked(run, until)
    table(done)
    if until is not None and done and done[-1].quarantined:
        say(f"to retry the quarantined rows: python -m jobs.retry {run.root} {until}")
    made = {manifest.stage: manifest for manifest in done}
    for line in [*failure_sentences(made), *canary_sentences(made)]:
        say(line)
    if until is None:
        for line in judged_sentences({manifest.stage: manifest for manifest in run.finished()}):
            say(line)
        say(f"report: {write_report(run.root, made)}")
    if config.pilot is not None:
        say(f"`python -m jobs.plan {found.config}` with the same root now plans with the pilot's rates")
    return 0


def opened(config: RunConfig, until: str | None, also: Sequence[str] = ()) -> Run:
    """Open a run up to a stage, and start or join Ray for it.

    Args:
        config: of the run.
        until: the last stage to make; None: all.
        also: other stages that the job makes, which are not part of the run.

    Raises:
        ConfigError: the run has no such stage, a library is missing, an input is unusable, the cluster cannot be
            reached, or this machine has less than a placement asks for.
    """
    graph = Graph(config)
    made = graph.until(until)
    graph.check_packages([*made, *also])
    if address := cluster_address():
        check_gcs(address)  # before anything is written or a gigabyte is hashed
    trains = any(node.name in made and node.kind.writes == "model" for node in graph.to_make())
    run = Run(config, submission_id(), begin=False, trains=trains)
    ending.state = run.state
    run.begin(start_ray(config, trains))
    if storage.is_s3(run.root):
        storage.be_patient(60 * config.storage_patience_minutes)
    return run


def worked(run: Run, until: str | None) -> list[Manifest]:
    """Run the stages up to `until` within the run's limits and return their manifests."""
    with Limits(run) as limits:
        ending.stopping = lambda: bool(limits.problem())
        return list(shown(run, until))


def shown(run: Run, until: str | None) -> Iterator[Manifest]:
    """Yield the stages as they finish, up to `until`."""
    for manifest in pipeline.stages(run):
        logging.getLogger("jobs").info("%s: done, %s", manifest.stage, fates(manifest))
        yield manifest
        if manifest.stage == until:
            return


def say(text: str, style: str | None = None) -> None:
    """Print a line without markup: rich might read parts of paths and errors as markup."""
    console.print(printable(text), style=style, markup=False, highlight=False, soft_wrap=True)


class Table(rich.table.Table):
    """A table of plain text: no cell is read as markup by rich or as a command by the terminal."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Add a row."""
        super().add_row(*(Text(printable(cell)) if isinstance(cell, str) else cell for cell in cells), **options)


ending = Ending(say)


def guarded(work: Callable[[], int]) -> int:
    """Run a job; an error that the user can fix becomes one line and an exit code."""
    code = outcome(work)
    if str(code) in os.environ.get("HUMPBACK_STOP_CODES", "").split(",") and (submission := submission_id()):
        say(f"exit code {code} needs a person: {submission} stops itself, so it is not retried")
        ending.leave_to_ray()
        stop_own_job(submission)
    return code


def outcome(work: Callable[[], int]) -> int:
    """Run a job and return its exit code."""
    logs()
    try:
        with ending.answered():
            return work()
    except ConfigError as error:
        say(f"error: {error}", "red")
        return 2
    except (LeaseHeld, LeaseLost) as error:
        say(f"error: {error}", "red")
        return 3
    except StageFailed as error:
        say(f"error: {error}", "red")
        return 1
    except OSError as error:
        say(f"error: {storage.words(error)}; {ending.left()}; the same command resumes from here", "red")
        return 1
    except LimitReached as error:
        say(f"stopped: {error}", "red")
        return 4
    except KeyboardInterrupt:
        ending.interrupted()
        return 130


def submission_id() -> str | None:
    """Return the id that `ray job submit` gave this job; `ray job stop` and `ray job logs` take it."""
    given = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return given.get("metadata", {}).get("job_submission_id")


def start_ray(config: RunConfig, trains: bool = True) -> str:
    """Join the cluster of RAY_ADDRESS (set by `ray job submit`), or start Ray here; return Ray's id of this job.

    Args:
        config: of the run.
        trains: whether the job may train a model.
    """
    import ray.data

    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # A node that just died still counts for some seconds; workers that wait for it are placed again after this time.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    address = cluster_address()
    if address:
        join(address)
    else:
        start_local_ray(config, trains)
    ending.take_sigterm()
    return ray.get_runtime_context().get_job_id()


def cluster_address() -> str | None:
    """Return the address in RAY_ADDRESS; None if Ray is to start on this machine."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in ("", "local") else address


def join(address: str) -> None:
    """Join a cluster.

    Raises:
        ConfigError: it cannot be reached or joined.
    """
    import ray
    from ray.exceptions import RayError

    check_gcs(address)
    try:
        ray.init(address=address, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        causes = [cause for cause in (error.__cause__, error) if cause is not None]
        raise ConfigError(f"Ray at {address} (RAY_ADDRESS) cannot be joined: {one_line(causes[0])}") from error


def logs() -> None:
    """Log a line every 30 s; on a terminal, draw a live bar per stage instead."""
    handler: logging.Handler
    if console.is_terminal:
        handler = LiveHandler()
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    handler.addFilter(lambda record: record.levelno > logging.DEBUG or hasattr(record, "progress"))
    handler.addFilter(_without_controls)
    for name in ("humpback_ray", "jobs"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.DEBUG if console.is_terminal else logging.INFO)


def _without_controls(record: logging.LogRecord) -> bool:
    """Make a record's message printable."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True


class LiveHandler(RichHandler):
    """Draws progress records as one bar and prints all other records."""

    def __init__(self) -> None:
        super().__init__(console=console, show_path=False, show_level=False, markup=False)
        self.bars = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"), console=console
        )
        self.tasks: dict[str, TaskID] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Update the stage's bar, or print the record above the bars."""
        figures = getattr(record, "progress", None)
        if figures is None:
            super().emit(record)
            return
        if not self.bars.live.is_started:
            self.bars.start()
        stage = figures["stage"]
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(stage, total=figures["total"], words="")
        words = record.getMessage().removeprefix(f"{stage}: ")
        self.bars.update(self.tasks[stage], completed=figures["done"], total=figures["total"], words=words)
        if figures.get("ended"):
            self.bars.remove_task(self.tasks.pop(stage))
            if not self.tasks:
                self.bars.stop()


def fates(manifest: Manifest) -> str:
    """Say how many rows a stage kept, and how many it dropped by reason."""
    extra = manifest.extra
    if extra.get("losses"):
        held_out = f", held out {extra['validation_losses'][-1]:.3f}" if extra.get("validation_losses") else ""
        return f"{extra['steps']} steps, loss {extra['losses'][-1]:.3f}{held_out}"
    if manifest.files and all(file.rows is None for file in manifest.files):
        return f"{len(manifest.files)} files"
    drops = ", ".join(f"{reason} {count:,}" for reason, count in manifest.drops.items())
    return f"{manifest.rows:,} rows, {manifest.kept:,} kept" + (f", dropped: {drops}" if drops else "")


def table(manifests: Sequence[Manifest]) -> None:
    """Print a line per stage: rows in, kept, dropped, by reason, seconds."""
    out = Table("stage", "rows in", "kept", "dropped", "by reason", "seconds", "rows/s")
    for column in (1, 2, 3, 5, 6):
        out.columns[column].justify = "right"
    for manifest in manifests:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest.drops.items())
        counts = (
            (f"{manifest.rows:,}", f"{manifest.kept:,}", f"{manifest.rows - manifest.kept:,}")
            if manifest.rows
            else ("", "", "")
        )
        rate = f"{manifest.rows / manifest.wall_s:.1f}" if manifest.rows and manifest.wall_s else ""
        out.add_row(
            manifest.stage,
            *counts,
            reasons or ("" if manifest.rows else fates(manifest)),
            f"{manifest.wall_s:.1f}",
            rate,
        )
    console.print(out)
