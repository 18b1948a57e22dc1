"""A stage: a directory that says by which recipe it was made, and a way to make what is missing in it.

`run` maps shards over a pool of actors until every shard has its commit; `once` does a whole step in one Ray task or
one training run, under a lease. Either ends with a manifest, and a stage that has one costs one read. A directory of
another recipe or other inputs is drift and refused, naming the field.

    recipe → plan → attempts → commits → manifest        (ledger.py has the files)

Given up: stages do not stream into each other; each ends before the next begins, so that each can be looked at, and
so that GPUs for the next are only asked for when its inputs are proven.
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
"""Commits that are read at once: object storage answers each in tens of milliseconds, and there may be thousands."""
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
        worker: Callable[..., Worker],
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
                progress.done = _total(rows, committed)  # other drivers' among them
            del pending
        return self._publish(self._commits([shard.name for shard in shards]))

    def _planned(self, source: "Manifest | Inventory", rows_per_shard: int) -> list[Shard]:
        """Return the shards of the plan, which is made here if it is not there yet."""
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
        """Try the quarantined rows of a finished stage again, if that is asked for, and publish what came of it."""
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
            check(done)  # the retry took its time
            manifest = replace(done, commits=commits, attempts=attempts, ended=ended, stated={})
            storage.write_bytes(self.ledger.at("manifest.json"), manifest.json())
        return manifest

    def _lost_shards(self, lost: Sequence[Commit], source: "Manifest | Inventory") -> list[tuple[Shard, Commit]]:
        """Return the shards of some commits with lost rows, each with its commit."""
        plan = {shard["name"]: shard for shard in storage.read_json(self.ledger.at("plan.json"))["shards"]}
        return [
            (Shard.of(plan[planned(commit.shard)]).located(source), commit)
            for commit in lost
            if self.ledger.last_commit_of(commit) is commit  # else a retry has ended before it could publish
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
        """Return a pool for shards of this stage, of which the progress line tells what takes long."""
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
        return self.leased(
            lambda attempt: GlobalStep(self.place.name, step, attempt, tuple(arguments), placement).run()
        )

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


def _total(rows: Mapping[str, int], shards: Collection[str]) -> int:
    """Add up the rows of some shards, of those that are known."""
    return sum(rows[name] for name in shards if name in rows)


def _weights(shards: Sequence[Shard], source: "Manifest | Inventory") -> dict[str, float]:
    return {shard.name: weight(shard, source) for shard in shards}


def _identity(value: "Manifest | Inventory") -> Any:
    return value.identity if isinstance(value, Inventory) else {"digest": value.digest}
