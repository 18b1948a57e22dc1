"""A stage: a directory that says by which recipe it was made, and a way to make what is missing in it.

`run` maps shards over a pool of actors until every shard has its commit; `once` does a whole step in one Ray task or
one training run, under a lease. Either ends with a manifest, and a stage that has one costs one read. A directory of
another recipe or other inputs is drift and refused, naming the field.

    recipe → plan → attempts → commits → manifest        (ledger.py has the files)

Given up: stages do not stream into each other; each ends before the next begins, so that each can be looked at, and
so that GPUs for the next are only asked for when its inputs are proven.
"""

import asyncio
import inspect
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from humpback_ray import storage
from humpback_ray.config import Config, ConfigError, difference, fingerprint
from humpback_ray.inventory import Inventory
from humpback_ray.lease import Lease
from humpback_ray.ledger import (
    Attempt,
    Commit,
    DataFile,
    Ledger,
    Manifest,
    Shard,
    ShardExhausted,
    drop_counts,
    last_words,
    write_table,
)
from humpback_ray.placement import PoolPlacement, TaskPlacement
from humpback_ray.progress import Progress

logger = logging.getLogger(__name__)

NODE_WAIT_S = 4 * 3600
"""How long a pass may go without progress before Ray Data gives up: GPU nodes can take hours to come."""
STUCK_AFTER_S = 600.0
ALL = "all"
"""Name of the only shard of a global step."""


class Drift(ConfigError):
    """A stage directory was made by another recipe or from other inputs."""


class StageFailed(RuntimeError):
    """A stage cannot be finished; the message says why, with numbers."""


@dataclass(frozen=True)
class Place:
    """Where a stage lives, and the submission on whose behalf it is worked on."""

    name: str
    uri: str
    submission: str


@dataclass(frozen=True)
class Model:
    """A model that a stage uses: its directory, and what identifies it in a fingerprint."""

    uri: str
    source: "Manifest | Inventory"

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

    Raises:
        Drift: the directory holds another recipe or other inputs.
    """

    def __init__(
        self, place: Place, recipe: Config | Mapping[str, Any], inputs: Mapping[str, "Manifest | Inventory"],
        schema: pa.Schema | None = None,
    ) -> None:  # fmt: skip
        self.place, self.schema, self.inputs = place, schema, inputs
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
        parted = difference({"recipe": found["recipe"], "inputs": found["inputs"]}, self.identity)
        if parted:
            field, old, new = parted
            raise Drift(
                f"{self.place.uri} was made with {field} = {short(old)}, this run has {short(new)}; "
                "use another root (reuse: shares what is unchanged), or change it back"
            )
        return manifest

    def run(self, worker: type, arguments: Sequence[Any], placement: PoolPlacement, plan: list[Shard]) -> Manifest:
        """Bring every shard to its commit and return the manifest.

        Args:
            worker: a class; `worker(*arguments, resources)` in each actor, then, sync or async, called with a shard's
                rows (or file URI) it returns a table of the stage's schema.
            arguments: picklable.
            placement: the pool.
            plan: the shards; the plan of the first submission stays in force.

        Raises:
            StageFailed: a shard failed as often as the placement allows.
        """
        if self.done:
            return self.done
        frozen = self.ledger.create_or_read("plan.json", {"shards": [json.loads(shard.json()) for shard in plan]})
        shards = [Shard.parse(json.dumps(value)) for value in frozen["shards"]]
        logger.info("%s: %d shards", self.place.name, len(shards))
        committed = self.ledger.committed()
        with Progress(self.place.name, len(shards), len(committed), "shards", self._stuck) as progress:
            idle = 0
            while pending := [shard for shard in shards if shard.name not in committed]:
                self._pass(pending, worker, arguments, placement, progress)
                before, committed = committed, self.ledger.committed()
                self._refuse_exhausted([shard.name for shard in pending if shard.name not in committed], placement)
                idle = idle + 1 if committed == before else 0
                if idle >= placement.max_attempts:
                    raise StageFailed(f"{self.place.name}: {idle} passes committed no shard; the log has the errors")
        return self._publish([self._commit_of(shard.name) for shard in shards])

    def _pass(
        self, pending: list[Shard], worker: type, arguments: Sequence[Any], placement: PoolPlacement, progress: Progress
    ) -> None:
        """Map the uncommitted shards over the pool once; what fails is left for the next pass."""
        import ray.data

        context = ray.data.DataContext.get_current().copy()
        context.max_errored_blocks = -1
        context.max_consecutive_actor_init_deaths = 2
        context.execution_no_progress_timeout_s = NODE_WAIT_S
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
        with ray.data.DataContext.current(context):
            shards = ray.data.from_items(
                [{"shard": shard.json()} for shard in pending], override_num_blocks=len(pending)
            )
            results = shards.map_batches(
                ShardActor,
                fn_constructor_args=(self.ledger, self.schema, placement, worker, tuple(arguments)),
                **placement.map_arguments(),
            )
            for row in results.iter_rows():
                progress.advance(int(row["committed"]), row["tokens"])

    def _refuse_exhausted(self, missing: list[str], placement: PoolPlacement) -> None:
        worst = []
        for shard in missing:
            ours = [a for a in self.ledger.attempts(shard) if a["submission"] == self.place.submission]
            if len(ours) >= placement.max_attempts:
                worst.append(f"shard {shard} failed {len(ours)} times, last: {last_words(ours)}")
        if worst:
            raise StageFailed(
                f"{self.place.name}: {len(worst)} shards failed {placement.max_attempts} times each, all others are "
                f"committed; {worst[0]}. Mend the cause and run the same command again."
            )

    def _stuck(self) -> str:
        """Name the oldest attempt in flight, with its node, once it is older than ten minutes."""
        committed, now = self.ledger.committed(), time.time()
        open_shards = {name.split("/")[0] for name in storage.list_names(self.ledger.at("attempts"))} - committed
        started = [attempts[-1] for shard in sorted(open_shards) if (attempts := self.ledger.attempts(shard))]
        oldest = min(started, key=lambda attempt: attempt["started"], default=None)
        if oldest is None or now - oldest["started"] < STUCK_AFTER_S:
            return ""
        return f"; shard {oldest['shard']} has run for {now - oldest['started']:.0f} s on {oldest['node']}"

    def once(self, step: Callable[..., "Commit"], arguments: Sequence[Any], placement: TaskPlacement) -> Manifest:
        """Run `step(attempt, *arguments)` in one Ray task under the stage's lease and publish the commit it returns.

        Raises:
            LeaseHeld: another driver is at it.
        """

        def remote(attempt: Attempt) -> Commit:
            import ray

            task = ray.remote(_in_attempt).options(**placement.remote_arguments())
            with Progress(self.place.name, None):
                return ray.get(task.remote(step, attempt, tuple(arguments)))

        return self.leased(remote)

    def leased(self, work: Callable[[Attempt], "Commit"]) -> Manifest:
        """Run `work(attempt)` in this process under the stage's lease and publish the commit it returns."""
        if self.done:
            return self.done
        with Lease(self.place.uri, self.place.submission) as lease:
            if (manifest := read_manifest(self.place.uri)) is not None:
                return manifest
            with self.ledger.begin(ALL, max_attempts=1_000_000) as attempt:
                commit = work(attempt)
                lease.check()
                return self._publish([self.ledger.commit(commit)])

    def _commit_of(self, shard: str) -> Commit:
        commit = self.ledger.commit_of(shard)
        if commit is None:
            raise StageFailed(f"{self.place.name}: the commit of shard {shard} was there and is gone; was it deleted?")
        return commit

    def _publish(self, commits: list[Commit]) -> Manifest:
        started = json.loads(storage.read_bytes(self.ledger.at("recipe.json")))["started"]
        attempts = sum(name.count(".") == 1 for name in storage.list_names(self.ledger.at("attempts")))
        manifest = Manifest(
            uri=self.place.uri,
            stage=self.place.name,
            fingerprint=self.fingerprint,
            recipe=self.identity["recipe"],
            inputs=self.identity["inputs"],
            commits=tuple(commits),
            attempts=attempts,
            started=started,
            ended=time.time(),
        )
        storage.create(self.ledger.at("manifest.json"), manifest.json())
        return Manifest.parse(self.place.uri, storage.read_bytes(self.ledger.at("manifest.json")))


def _in_attempt(step: Callable[..., Commit], attempt: Attempt, arguments: tuple[Any, ...]) -> Commit:
    """Run a global step in a Ray worker, as part of an attempt that the driver has begun."""
    return step(attempt, *arguments)


class ShardActor:
    """What Ray Data runs: the ledger around a stage's worker. Several shards at a time, on one event loop."""

    def __init__(
        self, ledger: Ledger, schema: pa.Schema, placement: PoolPlacement, worker: type, arguments: tuple[Any, ...]
    ) -> None:
        self.ledger, self.schema, self.placement = ledger, schema, placement
        self.worker = worker(*arguments, placement.resources)

    async def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Work on the one shard of a batch; returns what the driver's progress wants to know."""
        commit = await self._work(Shard.parse(str(batch["shard"][0])))
        return {"committed": [commit is not None], "tokens": [commit.tokens if commit else 0]}

    async def _work(self, shard: Shard) -> Commit | None:
        commit = await asyncio.to_thread(self.ledger.commit_of, shard.name)
        if commit:
            return commit
        try:
            attempt = await asyncio.to_thread(self.ledger.begin, shard.name, self.placement.max_attempts)
        except ShardExhausted as exhausted:
            logger.error("%s", exhausted)
            return None
        with attempt:
            loaded = await asyncio.to_thread(shard.load)
            table = conform(await self._call(loaded), self.schema)
            if isinstance(loaded, pa.Table):
                check_same_ids(shard.name, loaded, table)
            return await asyncio.to_thread(attempt.write, table)

    async def _call(self, loaded: "str | pa.Table") -> pa.Table:
        if inspect.iscoroutinefunction(type(self.worker).__call__):
            return await self.worker(loaded)
        return await asyncio.to_thread(self.worker, loaded)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Cast a table to a stage's schema; a missing or surplus column is an error that names it."""
    missing, surplus = set(schema.names) - set(table.column_names), set(table.column_names) - set(schema.names)
    if missing or surplus:
        raise ValueError(f"worker returned columns that differ from the schema: {missing=} {surplus=}")
    return table.select(schema.names).cast(schema)


def check_same_ids(shard: str, loaded: pa.Table, made: pa.Table) -> None:
    """Raise unless every id that went in came out exactly as often (P1)."""
    went, came = Counter(loaded["id"].to_pylist()), Counter(made["id"].to_pylist())
    if went != came:
        lost, surplus = (went - came).total(), (came - went).total()
        raise ValueError(f"shard {shard}: {lost} of {went.total()} ids lost and {surplus} made up by the worker")


def read_manifest(uri: str) -> Manifest | None:
    """Return a stage's manifest, or None where the stage is not finished."""
    try:
        return Manifest.parse(uri, storage.read_bytes(storage.join(uri, "manifest.json")))
    except FileNotFoundError:
        return None


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
            shards[-1].append((storage.join(manifest.uri, file.name), first, last))
            room, first = room - (last - first), last
    return [Shard(f"{index:06d}", slices=tuple(slices)) for index, slices in enumerate(shards)]


def plan_files(inventory: Inventory) -> list[Shard]:
    """One shard per input file."""
    return [Shard(f"{index:06d}", file=file.uri) for index, file in enumerate(inventory.files)]


def refuse_failures(manifest: Manifest, reasons: Collection[str], most: float, field: str) -> None:
    """Raise if a larger share of a stage's rows failed than its recipe allows; failing is not filtering.

    Raises:
        StageFailed: with both numbers and the reasons.
    """
    failed = {reason: count for reason, count in manifest.drops.items() if reason in reasons}
    if manifest.rows and sum(failed.values()) > most * manifest.rows:
        raise StageFailed(
            f"{manifest.stage}: {sum(failed.values()):,} of {manifest.rows:,} rows failed ({short(failed)}), more than "
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
        name = f"data/{self.attempt.shard}.{self.attempt.number}/{len(self.files):06d}.parquet"
        self.files.append(write_table(self.attempt.ledger, name, table))
        self.drops.update(drop_counts(table))

    def commit(self, extra: Mapping[str, Any] | None = None) -> Commit:
        """Describe what was written."""
        return self.attempt.describe(self.files, self.drops, extra=extra)


def upload_files(attempt: Attempt, local: Path) -> list[DataFile]:
    """Upload a directory of files that are no tables (a model, a web) as files of an attempt."""
    directory = f"data/{attempt.shard}.{attempt.number}"
    entries = storage.upload_directory(local, attempt.ledger.at(directory))
    return [DataFile(f"{directory}/{entry.name}", entry.bytes, entry.sha256) for entry in entries]


def _identity(value: "Manifest | Inventory") -> Any:
    return value.identity if isinstance(value, Inventory) else {"digest": value.digest}


def short(value: Any) -> str:
    """Write a value for an error message, cut to 80 characters."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
