"""How far a run is, from storage alone: needs neither Ray nor a driver, and works while a driver is active.

A finished stage costs one read, of its manifest. An unfinished one costs a listing of its directory and reads of its
plan, its lease, the progress of its training, and the commits of shards with quarantined rows. Counting commits needs
no reads.

Ages compare the store's times with this machine's clock, or with the newest file if it is ahead of the clock. On one
machine both are the same clock, and S3 refuses requests from a clock that is more than 15 minutes off.

Given up: failed attempts of a finished stage are not counted, since its manifest does not hold them.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from humpback_ray import storage
from humpback_ray.config import ConfigError
from humpback_ray.graph import Graph, stage_names
from humpback_ray.records import QUARANTINED
from humpback_ray.run import finished_stages, submissions
from humpback_ray.runconfig import RunConfig
from humpback_ray.stages.drivers import BEAT, FOLDER, WAITING
from humpback_ray.stages.globalstep import PROGRESS
from humpback_ray.stages.ledger import Ledger
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.parsing import read_as
from humpback_ray.stages.progress import duration
from humpback_ray.stages.shards import Shard
from humpback_ray.storage import Listed

READERS = 16
WINDOW_S = 600.0
"""Rates count the commits of the last ten minutes: several shards per actor, and recent enough for an ETA."""
QUIET_S = 900.0
"""A stage without heartbeats that has written nothing for this long may have no driver."""
BEAT_QUIET_S = 60.0
"""The same for a stage with a lease or a driver's heartbeat: both beat every few seconds."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class StageStatus:
    """The state of one stage according to storage; None if unknown or not applicable."""

    name: str
    state: str
    """waiting, running, `stopped?` (no manifest, and no sign of life for too long) or done."""
    reused: bool = False
    unit: str = ""
    """Unit of the counts: rows, files or steps."""
    done: int | None = None
    total: int | None = None
    per_s: float | None = None
    """Over the last WINDOW_S of a running stage; over the whole time of a finished one, including pauses."""
    eta_s: float | None = None
    attempts: int = 0
    again: int = 0
    """Attempts after the first of their shard."""
    failed: int | None = None
    """Attempts with a recorded failure, charged to their shard or not."""
    quarantined: int = 0
    quiet_s: float | None = None
    """Seconds since the newest file of the stage."""
    holder: str = ""
    words: str = ""
    """The progress that a long step reports."""
    waiting: str = ""
    """What it waits for (a kind of node, room, a constructor) and how long; "" while it works."""
    requests: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RunStatus:
    """A run: its latest submission and its stages, in order."""

    root: str
    submission: str
    started: float | None
    versions: dict[str, str]
    stages: tuple[StageStatus, ...]


def status(root: str) -> RunStatus:
    """Read how far a run is.

    Raises:
        ConfigError: the root is not a run.
    """
    if not storage.exists(storage.join(root, "run.json")):
        raise ConfigError(f"{root} is not a run: it has no run.json")
    submitted = submissions(root)
    latest, how = submitted[-1] if submitted else (None, {})
    finished = finished_stages(root, submitted)

    def look(name: str) -> StageStatus:
        uri = storage.join(root, name)
        if manifest := finished.get(name):
            return _finished(name, manifest, manifest.uri != uri)
        return Unfinished(name, uri, latest.modified if latest else 0.0).status()

    return RunStatus(
        root=root,
        submission=latest.name.removesuffix(".json") if latest else "",
        started=how.get("started"),
        versions=how.get("versions", {}),
        stages=tuple(_at_once(look, expected_stages(how.get("config", {})))),
    )


def _at_once(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(work, items))


def expected_stages(config: Mapping[str, Any]) -> list[str]:
    """Return the stages that a submission's configuration leads to; all possible stages if it cannot be read.

    Another version of this package may have written it.
    """
    try:
        return [node.name for node in Graph(RunConfig.model_validate(config))]
    except (ValidationError, ConfigError):
        return stage_names()


def _finished(name: str, manifest: Manifest, reused: bool) -> StageStatus:
    steps = manifest.extra.get("steps") if not manifest.rows else None
    done = manifest.rows or steps or None
    return StageStatus(
        name=name, state="done", reused=reused, unit="rows" if manifest.rows else "steps" if steps else "",
        done=done, total=done, per_s=done / manifest.wall_s if done and manifest.wall_s > 0 else None,
        attempts=manifest.attempts, again=max(manifest.attempts - len(manifest.commits), 0),
        quarantined=manifest.quarantined, requests=manifest.requests,
    )  # fmt: skip


class Unfinished:
    """A stage directory without a manifest: one listing and a few reads.

    Args:
        name: of the stage.
        uri: its directory.
        since: when the current submission started, by the store's clock.
    """

    def __init__(self, name: str, uri: str, since: float) -> None:
        self.name, self.since, self.ledger = name, since, Ledger(uri, "")
        self.files = {file.name: file for file in storage.listing(uri)}
        newest = max((file.modified for file in self.files.values()), default=0.0)
        self.now = max(time.time(), newest)
        work = [file.modified for file in self.files.values() if not file.name.startswith(f"{FOLDER}/")]
        self.newest = max(work, default=0.0)
        """Time of the newest file, drivers' heartbeats aside."""

    def status(self) -> StageStatus:
        """Say how far the stage is."""
        if "recipe.json" not in self.files:
            return StageStatus(self.name, "waiting")
        tried = [file.name.split("/")[1] for file in self.under("attempts/") if file.name.count(".") == 1]
        holder = self.holder()
        quiet_s = self.now - self.newest
        leased = any(self.under("lease/"))
        beats = [file.modified for file in self.under(f"{FOLDER}/") if file.name.endswith(BEAT)]
        if leased:
            lives = bool(holder) and quiet_s < BEAT_QUIET_S
        elif beats:
            lives = self.now - max(beats) < BEAT_QUIET_S
        else:
            lives = quiet_s < QUIET_S
        unit, done, total, per_s = self.progress()
        per_s = per_s if lives else None
        return StageStatus(
            name=self.name, state="running" if lives else "stopped?", unit=unit, done=done, total=total, per_s=per_s,
            eta_s=(total - done) / per_s if per_s and done is not None and total is not None else None,
            attempts=len(tried), again=len(tried) - len(set(tried)),
            failed=sum(file.name.endswith(".error.json") for file in self.under("attempts/")),
            quarantined=self.quarantined(), quiet_s=quiet_s, holder=holder,
            words=self.read(PROGRESS).decode() if PROGRESS in self.files else "",
            waiting=self.waiting() if lives else "",
        )  # fmt: skip

    def waiting(self) -> str:
        """Say what the drivers wait for, according to their newest note."""
        notes = [file for file in self.under(f"{FOLDER}/") if file.name.endswith(WAITING)]
        newest = max(notes, key=lambda file: file.modified, default=None)
        if newest is None or not (found := json.loads(self.read(newest.name) or b"{}")):
            return ""
        return f"waiting {duration(found['waited_s'] + self.now - newest.modified)} for {found['what']}"

    def under(self, folder: str) -> list[Listed]:
        """Return the files of a folder of the stage, except temporary ones."""
        found = [file for name, file in self.files.items() if name.startswith(folder)]
        return [file for file in found if not file.name.rsplit("/", 1)[-1].startswith(".")]

    def read(self, name: str) -> bytes:
        """Return the content of a file of the stage; b"" if it was deleted after the listing."""
        try:
            return storage.read_bytes(self.ledger.at(name))
        except FileNotFoundError:
            return b""

    def committed(self) -> dict[str, Listed]:
        """Return the commits by shard."""
        return {file.name.split("/")[1].removesuffix(".json"): file for file in self.under("commits/")}

    def progress(self) -> tuple[str, int | None, int | None, float | None]:
        """Return the unit, the count done, the total, and the rate per second."""
        if "plan.json" in self.files:
            return self.shards_done()
        pulses = [file for file in self.under("checkpoints/") if file.name.endswith("/progress.json")]
        newest = max(pulses, key=lambda file: file.modified, default=None)
        try:
            figures = json.loads(self.read(newest.name)) if newest else {}
            step, steps, seconds = int(figures["step"]), int(figures["steps"]), float(figures["seconds"])
        except (
            ValueError,
            TypeError,
            LookupError,
            OverflowError,
        ):  # there is none, or it is damaged: the next step replaces it
            return "", None, None, None
        return "steps", step, steps, 1 / seconds if seconds else None

    def shards_done(self) -> tuple[str, int, int, float | None]:
        """Count rows by the plan, or files if the plan has no row counts."""
        name = self.ledger.at("plan.json")
        plan = read_as(lambda value: [Shard.of(shard) for shard in value["shards"]], storage.read_json(name), name)
        by_file = any(shard.rows is None for shard in plan)
        weight = {shard.name: 1 if by_file else shard.rows or 0 for shard in plan}
        committed = self.committed()
        start = max(self.now - WINDOW_S, self.since, self.files["recipe.json"].modified)
        recent = sum(weight.get(name, 0) for name, file in committed.items() if file.modified >= start)
        per_s = recent / (self.now - start) if recent and self.now > start else None
        done = sum(weight.get(name, 0) for name in committed)
        return "files" if by_file else "rows", done, sum(weight.values()), per_s

    def quarantined(self) -> int:
        """Count the quarantined rows of committed shards; reads only commits of shards with a quarantine file."""
        named = {file.name.split("/")[1].split(".")[0] for file in self.under("quarantine/")}
        commits = _at_once(self.ledger.commit_of, sorted(named & set(self.committed())))
        return sum(commit.drops.get(QUARANTINED, 0) for commit in commits if commit)

    def holder(self) -> str:
        """Return the holder of the lease; "" if the lease is free."""
        latest = max((file.name for file in self.under("lease/") if file.name.endswith(".json")), default="")
        if not latest or latest.replace(".json", ".end") in self.files:
            return ""
        held = json.loads(self.read(latest))
        return f"{held['host']} (process {held['pid']}, submission {held['submission']})"
