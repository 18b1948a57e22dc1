"""A stage: a directory that records the recipe it was made with, and the code that computes what is missing in it.

`run` maps shards over a pool of actors until every shard has its commit. `once` does a whole step in one Ray task,
`leased` in this process, both under a lease. Each ends with a manifest; a stage that already has one costs one read.
A directory made from another recipe or other inputs is refused as drift, and the error names the field.

    recipe → plan → attempts → commits → manifest        (ledger.py has the files)

`steps.reach(n)` does nothing in a run; fault tests kill the process there (storage/steps.py lists the steps).

Stages do not stream into each other: each ends before the next begins. That costs time, but every result can be
inspected, and a stage asks for GPUs only once its inputs are complete.
"""

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from humpback_ray import storage
from humpback_ray.config import Config, ConfigError, difference, fingerprint, short
from humpback_ray.placement import PoolPlacement, TaskPlacement
from humpback_ray.records import QUARANTINED
from humpback_ray.stages.actor import Worker
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.drivers import Presence
from humpback_ray.stages.errors import StageFailed
from humpback_ray.stages.globalstep import GlobalStep
from humpback_ray.stages.lease import Lease
from humpback_ray.stages.ledger import Attempt, Ledger
from humpback_ray.stages.manifest import Manifest, read_manifest
from humpback_ray.stages.pace import Pace
from humpback_ray.stages.passes import Work
from humpback_ray.stages.pool import Pool
from humpback_ray.stages.progress import Progress
from humpback_ray.stages.provenance import requests_since_last
from humpback_ray.stages.shards import Shard, plan_files, plan_rows, planned, weight
from humpback_ray.storage import steps
from humpback_ray.storage.inventory import Inventory

READERS = 32
"""Commits read in parallel: object storage takes tens of milliseconds for each, and there may be thousands."""
ALL = "all"
"""Name of a global step's only shard."""


class Drift(ConfigError):
    """A stage directory was made with another recipe or from other inputs."""


@dataclass(frozen=True)
class Place:
    """Where a stage lives, and the submission that works on it."""

    name: str
    uri: str
    submission: str
    check_unread: "Callable[[Manifest], None] | None" = None
    """Raises if a later stage has read the manifest. Set only where quarantined rows should be tried again."""


class Stage:
    """One stage directory.

    Args:
        place: the directory and the submission.
        recipe: what the stage computes; hashed.
        inputs: what the stage reads, by name: manifests of other stages, or inventories of external files.
        schema: of its tables; None if it writes other files (models).
        ids_of: name of the input whose every kept id must appear here exactly once; the method `run` sets it itself.

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
        """Check the directory against this recipe, create it if new, and return its manifest if it is finished."""
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
                f"{self.place.uri} was made with {field} = {short(old)}, but this run has {short(new)}; "
                "use another root (reuse: shares what is unchanged), or change it back"
            )
        return manifest

    def run(
        self,
        worker: Callable[..., Worker],
        arguments: Sequence[Any],
        placement: PoolPlacement,
        source: "Manifest | Inventory",
    ) -> Manifest:
        """Commit every shard of the source and return the manifest.

        Args:
            worker: a class. Each actor builds `worker(*arguments, resources)` and calls it, sync or async, with a
                shard's rows (or input file); it returns a table of the stage's schema.
            arguments: picklable.
            placement: the pool.
            source: what to cut into shards: the kept rows of a stage, or files, one shard each. The plan of the first
                submission stays in force.

        Raises:
            StageFailed: a shard fails and no single row is to blame, or no actor could be started.
        """
        if self.done:
            return self._retry(self.done, worker, arguments, placement, source)
        self.ids_of = "" if isinstance(source, Inventory) else self._name_of(source)
        shards = self._planned(source, placement.rows_per_shard)
        committed = self.ledger.committed()
        unit = "files" if isinstance(source, Inventory) else "rows"
        rows = {shard.name: 1 if shard.rows is None else shard.rows for shard in shards}
        progress = Progress(self.place.name, sum(rows.values()), _total(rows, committed), unit)
        pool = self._pool(worker, arguments, placement, progress, rows, _weights(shards, source))
        with progress, Presence(self.place.uri, self.place.submission):
            while pending := [shard.located(source) for shard in shards if shard.name not in committed]:
                pool.work_on(pending)
                committed = self.ledger.committed()
                progress.done = _total(rows, committed)  # includes the shards of other drivers
            del pending
        return self._publish(self._commits([shard.name for shard in shards]))

    def _planned(self, source: "Manifest | Inventory", rows_per_shard: int) -> list[Shard]:
        """Return the shards of the plan; make the plan if it does not exist yet."""
        plan = plan_files(source) if isinstance(source, Inventory) else plan_rows(source, rows_per_shard)
        frozen = self.ledger.create_or_read("plan.json", {"shards": [asdict(shard) for shard in plan]})
        steps.reach(2)
        return [Shard.of(value) for value in frozen["shards"]]

    def _retry(
        self,
        done: Manifest,
        worker: Callable[..., Worker],
        arguments: Sequence[Any],
        placement: PoolPlacement,
        source: "Manifest | Inventory",
    ) -> Manifest:
        """Try the quarantined rows of a finished stage again, if requested, and publish the result."""
        check = self.place.check_unread
        lost = [commit for commit in done.commits if commit.quarantine]
        if check is None or not lost:
            return done
        with Lease(self.place.uri, self.place.submission):
            check(done)
            todo = self._lost_shards(lost, source)
            rows = {shard.name: commit.drops[QUARANTINED] for shard, commit in todo}
            progress = Progress(f"{self.place.name}, quarantine", sum(rows.values()))
            weights = _weights([shard for shard, _ in todo], source)
            pool = self._pool(worker, arguments, placement, progress, rows, weights)
            began = time.monotonic()
            with progress:
                pool.retry(todo)
            last = {commit.shard: self.ledger.last_commit_of(commit) for commit in lost}
            commits = tuple(last.get(commit.shard, commit) for commit in done.commits)
            attempts, ended = self.ledger.attempts_made().total(), done.ended + time.monotonic() - began
            check(done)  # again: a stage may have read the manifest during the retry
            manifest = replace(done, commits=commits, attempts=attempts, ended=ended, stated={})
            storage.write_bytes(self.ledger.at("manifest.json"), manifest.json())
        return manifest

    def _lost_shards(self, lost: Sequence[Commit], source: "Manifest | Inventory") -> list[tuple[Shard, Commit]]:
        """Return the shards of commits with lost rows, each with its commit."""
        plan = {shard["name"]: shard for shard in storage.read_json(self.ledger.at("plan.json"))["shards"]}
        return [
            (Shard.of(plan[planned(commit.shard)]).located(source), commit)
            for commit in lost
            if self.ledger.last_commit_of(commit) is commit  # else an earlier retry committed but did not publish
        ]

    def _pool(
        self,
        worker: Callable[..., Worker],
        arguments: Sequence[Any],
        placement: PoolPlacement,
        progress: Progress,
        rows: Mapping[str, int],
        weights: Mapping[str, float],
    ) -> Pool:
        """Return a pool for shards of this stage; the progress line names the shards that take long."""
        assert self.schema is not None, "shards become tables"
        pace = Pace(placement, weights)
        pool = Pool(
            Work(
                self.place.name, self.ledger, self.schema, worker, tuple(arguments), placement, progress, rows, pace
            )
        )  # fmt: skip
        progress.concern = pool.concern
        return pool

    def _name_of(self, source: Manifest) -> str:
        """Return the name of a stage among the inputs."""
        names = [name for name, value in self.inputs.items() if value is source]
        if not names:
            raise ValueError(f"{self.place.name} is cut into shards from {source.stage}, which is not an input")
        return names[0]

    def _path(self, source: Manifest) -> str:
        """Return where a stage is: relative to the root if it belongs to the same run, so a run can be moved."""
        root = f"{self.place.uri.removesuffix(f'/{self.place.name}')}/"
        return source.uri.removeprefix(root) if source.uri.startswith(root) else storage.located(source.uri)

    def _commits(self, shards: Sequence[str]) -> list[Commit]:
        """Read the commits of shards, many at a time, in order."""
        found: list[Commit] = []
        with ThreadPoolExecutor(READERS) as readers:
            while len(found) < len(shards):  # in batches: each call queued in an executor costs kilobytes
                found += readers.map(self._commit_of, shards[len(found) : len(found) + 20 * READERS])
        return found

    def once(self, step: Callable[..., Commit], arguments: Sequence[Any], placement: TaskPlacement) -> Manifest:
        """Run `step(attempt, *arguments)` in one Ray task under the stage's lease; otherwise as `leased`.

        A task is tried up to `TRIES` times if its node is lost or its process is killed.

        Raises:
            StageFailed: every try ended that way, or the task could not start within the placement's time.
        """
        return self.leased(
            lambda attempt: GlobalStep(self.place.name, step, attempt, tuple(arguments), placement).run()
        )

    def leased(self, work: Callable[[Attempt], Commit]) -> Manifest:
        """Run `work(attempt)` in this process under the stage's lease and publish the commit it returns.

        If an earlier driver ended its lease with a commit but died before the manifest, that commit is published and
        no work is done.

        Raises:
            LeaseHeld: another driver is working on the stage.
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
            raise StageFailed(f"{self.place.name}: the commit of shard {shard} existed and is gone; was it deleted?")
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


def _total(rows: Mapping[str, int], shards: Collection[str]) -> int:
    """Sum the rows of shards; unknown shards count as 0."""
    return sum(rows[name] for name in shards if name in rows)


def _weights(shards: Sequence[Shard], source: "Manifest | Inventory") -> dict[str, float]:
    return {shard.name: weight(shard, source) for shard in shards}


def _identity(value: "Manifest | Inventory") -> Any:
    return value.identity if isinstance(value, Inventory) else {"digest": value.digest}
