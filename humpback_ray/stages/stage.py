"""A stage: a directory that says by which recipe it was made, and a way to make what is missing in it.

`run` maps shards over a pool of actors until every shard has its commit; `once` does a whole step in one Ray task or
one training run, under a lease. Either ends with a manifest, and a stage that has one costs one read. A directory of
another recipe or other inputs is drift and refused, naming the field.

    recipe → plan → attempts → commits → manifest        (ledger.py has the files)

Given up: stages do not stream into each other; each ends before the next begins, so that each can be looked at, and
so that GPUs for the next are only asked for when its inputs are proven.
"""

import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from humpback_ray import storage
from humpback_ray.config import Config, ConfigError, difference, fingerprint
from humpback_ray.placement import PoolPlacement, TaskPlacement
from humpback_ray.records import NOT_PASSED_ON, QUARANTINED
from humpback_ray.stages.actor import conform
from humpback_ray.stages.drivers import Presence, waiting_uri
from humpback_ray.stages.lease import Lease
from humpback_ray.stages.ledger import (
    Attempt,
    Commit,
    DataFile,
    Ledger,
    Manifest,
    Shard,
    StageFailed,
    drop_counts,
    node,
    planned,
    requests_since_last,
    write_table,
)
from humpback_ray.stages.pool import Pool
from humpback_ray.stages.progress import Progress
from humpback_ray.stages.waiting import Waiting, Workers
from humpback_ray.stages.watch import Pace
from humpback_ray.storage import steps
from humpback_ray.storage.inventory import Inventory

logger = logging.getLogger(__name__)

READERS = 32
"""Commits that are read at once: object storage answers each in tens of milliseconds, and there may be thousands."""
PROGRESS = "progress.txt"
TRIES = 3
"""How often a global step is tried whose process is killed or whose node is lost."""
GB = 10**9
ALL = "all"
"""Name of the only shard of a global step."""


class Drift(ConfigError):
    """A stage directory was made by another recipe or from other inputs."""


@dataclass(frozen=True)
class Place:
    """Where a stage lives, and the submission on whose behalf it is worked on."""

    name: str
    uri: str
    submission: str
    check_unread: "Callable[[Manifest], None] | None" = None
    """Where quarantined rows are to be tried again: raises once a later stage has read the manifest."""


@dataclass(frozen=True)
class Model:
    """A model that a stage uses: its directory, and what identifies it in a fingerprint."""

    uri: str
    source: "Manifest | Inventory"

    @property
    def digest(self) -> str:
        """Identity of its files."""
        return self.source.digest

    @property
    def directory(self) -> storage.Directory:
        """The directory with the versions of its files: of the model that is loaded, as of the one that is hashed.

        What a stage of this run wrote to local storage is not hashed again each time it is loaded; `jobs.verify` does.
        """
        if isinstance(self.source, Inventory):
            return storage.Directory(self.uri, self.source.files)
        if not storage.is_s3(self.uri):
            return storage.Directory(self.uri)
        prefix = f"{self.source.extra['model']}/"
        named = [(file.name.removeprefix(prefix), file) for file in self.source.files]
        return storage.Directory(self.uri, tuple(
            storage.InputFile(storage.join(self.uri, name), name, file.bytes, f"sha256:{file.sha256}")
            for name, file in named
        ))  # fmt: skip

    @staticmethod
    def of(manifest: Manifest) -> "Model":
        """Return the model that a finished stage made."""
        return Model(storage.join(manifest.uri, manifest.extra["model"]), manifest)


class Stage:
    """One stage directory.

    Args:
        place: where.
        recipe: what is computed; hashed.
        inputs: by name, what it reads: manifests of other stages, or inventories of files from outside.
        schema: of its tables; None where it makes files of another kind (models).
        ids_of: the input whose kept ids each have one fate here, by its name; `run` knows it by itself.

    Raises:
        Drift: the directory holds another recipe or other inputs.
    """

    def __init__(
        self,
        place: Place,
        recipe: Config | Mapping[str, Any],
        inputs: Mapping[str, "Manifest | Inventory"],
        schema: pa.Schema | None = None,
        ids_of: str = "",
    ) -> None:
        self.place, self.schema, self.inputs, self.ids_of = place, schema, inputs, ids_of
        self.ledger = Ledger(place.uri, place.submission)
        self.identity = {
            "recipe": recipe.model_dump(mode="json") if isinstance(recipe, Config) else dict(recipe),
            "inputs": {name: _identity(value) for name, value in inputs.items()},
        }
        self.fingerprint = fingerprint(self.identity)
        self.done = self._open()

    def _open(self) -> Manifest | None:
        """Check the directory against this recipe, creating it if new, and return its manifest if it is finished."""
        manifest = read_manifest(self.place.uri)
        if manifest:
            found: dict[str, Any] = {"recipe": manifest.recipe, "inputs": manifest.inputs}
        else:
            mine = {"stage": self.place.name, "fingerprint": self.fingerprint, "started": time.time(), **self.identity}
            found = self.ledger.create_or_read("recipe.json", mine)
            steps.reach(1)
        parted = difference({"recipe": found["recipe"], "inputs": found["inputs"]}, self.identity)
        if parted:
            field, old, new = parted
            raise Drift(
                f"{self.place.uri} was made with {field} = {short(old)}, this run has {short(new)}; "
                "use another root (reuse: shares what is unchanged), or change it back"
            )
        return manifest

    def run(
        self,
        worker: type,
        arguments: Sequence[Any],
        placement: PoolPlacement,
        source: "Manifest | Inventory",
    ) -> Manifest:
        """Bring every shard of the source to its commit and return the manifest.

        Args:
            worker: a class; `worker(*arguments, resources)` in each actor, then, sync or async, called with a shard's
                rows (or file URI) it returns a table of the stage's schema.
            arguments: picklable.
            placement: the pool.
            source: what is cut into shards: the kept rows of a stage, or files, one by one. The plan of the first
                submission stays in force.

        Raises:
            StageFailed: a shard failed whatever rows it got, or no actor could be started.
        """
        if self.done:
            return self._retry(self.done, worker, arguments, placement, source)
        self.ids_of = "" if isinstance(source, Inventory) else self._name_of(source)
        plan = plan_files(source) if isinstance(source, Inventory) else plan_rows(source, placement.rows_per_shard)
        frozen = self.ledger.create_or_read("plan.json", {"shards": [asdict(shard) for shard in plan]})
        steps.reach(2)
        shards = [Shard.of(value) for value in frozen["shards"]]
        del plan, frozen
        committed = self.ledger.committed()
        counted = [shard.rows for shard in shards]
        rows = {shard.name: 1 if None in counted else shard.rows or 0 for shard in shards}
        begun = sum(rows[name] for name in committed if name in rows)
        unit = "files" if None in counted else "rows"
        progress = Progress(self.place.name, sum(rows.values()), begun, unit)
        pace = Pace(placement, {shard.name: weight(shard, source) for shard in shards})
        pool = self._pool(worker, arguments, placement, progress, rows, pace)
        with progress, Presence(self.place.uri, self.place.submission):
            while pending := [shard.located(source) for shard in shards if shard.name not in committed]:
                pool.work_on(pending)
                committed = self.ledger.committed()
                progress.done = sum(rows[name] for name in committed if name in rows)  # other drivers' among them
            del pending
        return self._publish(self._commits([shard.name for shard in shards]))

    def _retry(
        self,
        done: Manifest,
        worker: type,
        arguments: Sequence[Any],
        placement: PoolPlacement,
        source: "Manifest | Inventory",
    ) -> Manifest:
        """Try the quarantined rows of a finished stage again, if that is asked for, and publish what came of it."""
        check = self.place.check_unread
        lost = [commit for commit in done.commits if commit.quarantine]
        if check is None or not lost:
            return done
        with Lease(self.place.uri, self.place.submission):
            check(done)
            plan = {shard["name"]: shard for shard in storage.read_json(self.ledger.at("plan.json"))["shards"]}
            todo = [
                (Shard.of(plan[planned(commit.shard)]).located(source), commit)
                for commit in lost
                if self.ledger.last_commit_of(commit) is commit  # else a retry has ended before it could publish
            ]
            rows = {shard.name: commit.drops[QUARANTINED] for shard, commit in todo}
            progress = Progress(f"{self.place.name}, quarantine", sum(rows.values()))
            pace = Pace(placement, {shard.name: weight(shard, source) for shard, _ in todo})
            pool = self._pool(worker, arguments, placement, progress, rows, pace)
            began = time.monotonic()
            with progress:
                pool.retry(todo)
            last = {commit.shard: self.ledger.last_commit_of(commit) for commit in lost}
            commits = tuple(last.get(commit.shard, commit) for commit in done.commits)
            attempts, ended = self.ledger.attempts_made().total(), done.ended + time.monotonic() - began
            check(done)  # the retry took its time
            manifest = replace(done, commits=commits, attempts=attempts, ended=ended, stated={})
            storage.write_bytes(self.ledger.at("manifest.json"), manifest.json())
        return manifest

    def _pool(
        self,
        worker: type,
        arguments: Sequence[Any],
        placement: PoolPlacement,
        progress: Progress,
        rows: Mapping[str, int],
        pace: Pace,
    ) -> Pool:
        """Return a pool for shards of this stage, of which the progress line tells what takes long."""
        assert self.schema is not None, "shards become tables"
        pool = Pool(
            self.place.name, self.ledger, self.schema, worker, tuple(arguments), progress, rows, placement, pace
        )
        progress.concern = pool.concern
        return pool

    def _name_of(self, source: Manifest) -> str:
        """Return under which name a stage is among the inputs."""
        names = [name for name, value in self.inputs.items() if value is source]
        if not names:
            raise ValueError(f"{self.place.name} is cut into shards from {source.stage}, which is none of its inputs")
        return names[0]

    def _path(self, source: Manifest) -> str:
        """Return where a stage is: relative to the root where it is of the same run, so that a run can be moved."""
        root = f"{self.place.uri.removesuffix(f'/{self.place.name}')}/"
        return source.uri.removeprefix(root) if source.uri.startswith(root) else storage.located(source.uri)

    def _commits(self, shards: Sequence[str]) -> list[Commit]:
        """Read the commits of shards, many at a time, in their order."""
        found: list[Commit] = []
        with ThreadPoolExecutor(READERS) as readers:
            while len(found) < len(shards):  # in pieces: what waits in an executor costs kilobytes
                found += readers.map(self._commit_of, shards[len(found) : len(found) + 20 * READERS])
        return found

    def once(self, step: Callable[..., Commit], arguments: Sequence[Any], placement: TaskPlacement) -> Manifest:
        """Run `step(attempt, *arguments)` in one Ray task under the stage's lease; the rest is as in `leased`.

        A task whose node is lost, or whose process is killed, is tried again, `TRIES` times in all.

        Raises:
            StageFailed: that happened every time; or it could not start within the placement's time.
        """
        return self.leased(lambda attempt: GlobalStep(self, step, attempt, tuple(arguments), placement).run())

    def _words(self) -> str:
        """Return what a long step says of itself, in `progress.txt` of its directory; "" if nothing."""
        uri = self.ledger.at(PROGRESS)
        return f", {storage.read_bytes(uri).decode()}" if storage.exists(uri) else ""

    def leased(self, work: Callable[[Attempt], Commit]) -> Manifest:
        """Run `work(attempt)` in this process under the stage's lease and publish the commit it returns.

        Where an earlier driver ended its lease with a commit and died before the manifest, that commit is published
        and no work is done.

        Raises:
            LeaseHeld: another driver is at it.
            LeaseLost: another driver took over; nothing is published.
        """
        if self.done:
            return self.done
        with Lease(self.place.uri, self.place.submission) as lease:
            outcome = lease.outcome
            if outcome is None:
                with self.ledger.begin(ALL) as attempt:
                    outcome = json.loads(work(attempt).json())
                    lease.end(outcome)
                    steps.reach(11)
        return self._publish([self.ledger.commit(Commit.parse(outcome))])

    def _commit_of(self, shard: str) -> Commit:
        commit = self.ledger.commit_of(shard)
        if commit is None:
            raise StageFailed(f"{self.place.name}: the commit of shard {shard} was there and is gone; was it deleted?")
        return commit

    def _publish(self, commits: list[Commit]) -> Manifest:
        started = storage.read_json(self.ledger.at("recipe.json"))["started"]
        manifest = Manifest(
            uri=self.place.uri,
            stage=self.place.name,
            fingerprint=self.fingerprint,
            recipe=self.identity["recipe"],
            inputs=self.identity["inputs"],
            commits=tuple(commits),
            attempts=self.ledger.attempts_made().total(),
            started=started,
            ended=time.time(),
            driver_requests=requests_since_last(),
            sources={name: self._path(value) for name, value in self.inputs.items() if isinstance(value, Manifest)},
            ids_of=self.ids_of,
            agreed=self.ledger.agreed(),
            located={
                name: [file.uri for file in value.files]
                for name, value in self.inputs.items()
                if isinstance(value, Inventory)
            },
        )
        created = storage.create(self.ledger.at("manifest.json"), manifest.json())
        steps.reach(12)
        published = None if created else read_manifest(self.place.uri)
        return published or manifest


class GlobalStep:
    """One execution of `Stage.once`: a Ray task that Ray itself never retries.

    Ray would retry what its memory monitor kills without end, whatever `max_retries` says, unless that is 0.
    """

    def __init__(
        self,
        stage: Stage,
        step: Callable[..., Commit],
        attempt: Attempt,
        arguments: tuple[Any, ...],
        placement: TaskPlacement,
    ) -> None:
        self.stage, self.step, self.attempt, self.arguments = stage, step, attempt, arguments
        self.placement, self.name = placement, stage.place.name
        self.started: Started | None = None
        self.running: Any = None
        note = waiting_uri(stage.place.uri, stage.place.submission)
        limit = placement.give_up_waiting_minutes
        self.waiting = Waiting(self.name, placement.need(), self._workers, limit, self._cancel, note)

    def run(self) -> Commit:
        """Try until it succeeds, raises an error of its own, or was killed `TRIES` times.

        Raises:
            StageFailed: it was killed that often, or could not start in time.
        """
        from ray.exceptions import RayError, RayTaskError

        with Progress(self.stage.place.name, None, concern=self._concern), self.waiting:
            for number in range(1, TRIES + 1):
                try:
                    return self._try()
                except RayTaskError as error:
                    raise error.cause from None
                except KeyboardInterrupt:
                    self._cancel()
                    raise
                except RayError as error:
                    if self.waiting.gave_up:
                        raise StageFailed(self.waiting.gave_up) from None
                    self._killed(number, error)
        raise AssertionError("the last try returns or raises")

    def _try(self) -> Commit:
        import ray

        self.started = None
        streamed = {
            "num_returns": "streaming",
            "_generator_backpressure_num_objects": 1,
        }  # known before the step begins
        task = ray.remote(_in_attempt).options(**streamed, **self.placement.remote_arguments())
        self.running = task.remote(self.step, self.attempt, self.arguments)
        self.started = cast(Started, ray.get(next(self.running)))
        return cast(Commit, ray.get(next(self.running)))

    def _cancel(self) -> None:
        import ray

        if self.running is not None:
            ray.cancel(self.running, force=True)

    def _killed(self, number: int, error: Exception) -> None:
        """Say what killed the task, and raise if that was the last try."""
        where = f" on node {self.started.node}" if self.started else ""
        said = f"{self.name}: the task{where} {_end_of(error, self.started, self.placement)}"
        if number == TRIES:
            raise StageFailed(f"{said}; it was tried {TRIES} times") from None
        logger.warning("%s; trying once more", said)

    def _workers(self) -> Workers:
        return Workers(up=int(self.started is not None))

    def _concern(self) -> str:
        return self.stage._words() + self.waiting.words()


@dataclass(frozen=True)
class Started:
    """Where a global step runs."""

    node: str
    memory_bytes: int
    """What the node has, or the container that Ray runs in."""


def _in_attempt(step: Callable[..., Commit], attempt: Attempt, arguments: tuple[Any, ...]) -> Iterator[Any]:
    """Run a global step in a Ray worker, in an attempt that the driver has begun; yields where, and the commit."""
    from ray._common.utils import get_system_memory

    yield Started(node(), get_system_memory())
    yield step(attempt, *arguments)


def _end_of(error: Exception, started: Started | None, placement: TaskPlacement) -> str:
    """Say how a task ended that raised nothing of its own, and how much memory it had."""
    from ray.exceptions import OutOfMemoryError

    reserved = f"{placement.memory_bytes / GB:.1f} GB" if placement.memory_bytes else "none"
    has = f"its node has {started.memory_bytes / GB:.1f} GB, of which it" if started else "it"
    room = f"{has} had reserved {reserved} (memory_bytes of its placement)"
    if isinstance(error, OutOfMemoryError):
        used = re.search(r"was ([\d.]+ ?\w+)(?: used)? / ([\d.]+ ?\w+)", str(error))
        own = re.search(r"actual memory used=([\d.]+ ?\w+)", str(error))
        full = f"; {used[1]} of {used[2]} were in use on the node" if used else ""
        full += f", {own[1]} of them by the task" if own and used else ""
        return f"ran out of memory and was killed by Ray's memory monitor{full}; {room}"
    cause = "killed, for want of memory perhaps, or its node was lost"
    return f"ended without a word ({type(error).__name__}: {cause}); {room}"


def read_manifest(uri: str) -> Manifest | None:
    """Return a stage's manifest, or None where the stage is not finished."""
    return Manifest.read(uri)


def plan_rows(manifest: Manifest, rows_per_shard: int) -> list[Shard]:
    """Cut the kept rows of a stage, in order, into shards of `rows_per_shard`; the last one may be shorter."""
    shards: list[list[tuple[str, int, int]]] = []
    room = 0
    for file in manifest.files:
        first, kept = 0, file.kept or 0
        while first < kept:
            if not room:
                shards.append([])
                room = rows_per_shard
            last = min(kept, first + room)
            shards[-1].append((file.name, first, last))
            room, first = room - (last - first), last
    return [Shard(f"{index:06d}", slices=tuple(slices)) for index, slices in enumerate(shards)]


def plan_files(inventory: Inventory) -> list[Shard]:
    """One shard per input file."""
    return [Shard(f"{index:06d}", file=file.name) for index, file in enumerate(inventory.files)]


def weight(shard: Shard, source: "Manifest | Inventory") -> float:
    """Return what a shard's time is in proportion to: its rows, or the bytes of its file."""
    return source.files[int(shard.name)].bytes if isinstance(source, Inventory) else shard.rows or 0


def refuse_failures(manifest: Manifest, reasons: Collection[str], most: float, field: str) -> None:
    """Raise if a larger share of a stage's rows failed than its recipe allows; failing is not filtering.

    Rows that a chain of scorers did not pass on were not tried and do not count.

    Raises:
        StageFailed: with both numbers and the reasons.
    """
    failed = {reason: count for reason, count in manifest.drops.items() if reason in {*reasons, QUARANTINED}}
    tried = manifest.rows - manifest.drops.get(NOT_PASSED_ON, 0)
    if sum(failed.values()) > most * tried:
        raise StageFailed(
            f"{manifest.stage}: {sum(failed.values()):,} of {tried:,} rows failed ({short(failed)}), more than "
            f"{field} = {most:g} allows; look at the rows in {manifest.uri}, or raise it to go on with the others"
        )


class TableWriter:
    """Writes the tables of a global step one after another, and counts."""

    def __init__(self, attempt: Attempt, schema: pa.Schema) -> None:
        self.attempt, self.schema = attempt, schema
        self.files: list[DataFile] = []
        self.drops: Counter[str] = Counter()

    def write(self, table: pa.Table) -> None:
        """Write one table as one Parquet file of the attempt."""
        table = conform(table, self.schema)
        name = f"{self.attempt.directory}/{len(self.files):06d}.parquet"
        self.files.append(write_table(self.attempt.ledger, name, table))
        self.drops.update(drop_counts(table))

    def commit(self, extra: Mapping[str, Any] | None = None) -> Commit:
        """Describe what was written."""
        return self.attempt.describe(self.files, self.drops, extra=extra)


def upload_files(attempt: Attempt, local: Path) -> list[DataFile]:
    """Upload a directory of files that are no tables (a model, a web) as files of an attempt."""
    entries = storage.upload_directory(local, attempt.ledger.at(attempt.directory))
    return [DataFile(f"{attempt.directory}/{entry.name}", entry.bytes, entry.sha256) for entry in entries]


def _identity(value: "Manifest | Inventory") -> Any:
    return value.identity if isinstance(value, Inventory) else {"digest": value.digest}


def short(value: Any) -> str:
    """Write a value for an error message, cut to 80 characters."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
