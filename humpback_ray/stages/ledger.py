"""The shard ledger: the files of a stage directory, and how a shard gets from planned to committed.

    recipe.json                     fingerprint, recipe, inputs     created if absent, first
    plan.json                       the frozen list of shards       created if absent
    agreed/<name>.json              a value that one actor measured and all use (an engine's dtype)   created if absent
    attempts/<shard>/<n>.json       who started it, where, when     created if absent; <n>.error.json if it raised
    data/<shard>.<attempt>.parquet  the rows
    quarantine/<shard>.<attempt>.parquet   the rows that no worker survived, if any
    commits/<shard>.json            what the file holds             created if absent: the first commit wins
    manifest.json                   the commits and totals          created if absent, last: makes the stage visible

Quarantined rows can be tried again until a later stage reads the manifest. Shard 000012 then becomes shard 000012r1,
which holds all of its rows; 000012r1 becomes 000012r2, and so on. Each has its own attempts, data and commit. The
manifest is rewritten and lists the last one.

`Ledger` covers all of this for one directory. Its only state is the address, so an actor, a driver and `jobs.verify`
see the same thing. A writer that loses the race to commit deletes its file; a file of unknown outcome stays.
"""

import functools
import hashlib
import json
import logging
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, NotRequired, TypedDict

import pyarrow as pa

from humpback_ray import storage
from humpback_ray.stages.commits import Commit, DataFile
from humpback_ray.stages.errors import ShardExhausted
from humpback_ray.stages.parsing import read_as
from humpback_ray.stages.processes import born
from humpback_ray.stages.provenance import node, requests_since_last, versions
from humpback_ray.stages.shards import retried
from humpback_ray.stages.tables import drop_counts, tokens_of
from humpback_ray.storage import steps

logger = logging.getLogger(__name__)


_SHARD_FILE = re.compile(r"(\d{6,}|all)\.json")
_ATTEMPT_FILE = re.compile(r"(?:\d{6,}(?:r\d+)?|all)/\d{4,}\.json")
_WORD_FILE = re.compile(r"(?:\d{6,}(?:r\d+)?|all)/\d{4,}(?:\.error)?\.json")
"""Names of the files that the ledger writes. Other files, such as those of file managers, are ignored."""

MOST_LOST_NODES = 20
"""Attempts at one shard within a submission after which lost nodes count as failures too."""


class AttemptRecord(TypedDict):
    """Who started an attempt, where and when, and how it failed if that was recorded."""

    shard: str
    attempt: int
    submission: str
    node: str
    node_id: str
    """Ray's id of the node; "" if the attempt is not an actor's."""
    pid: int
    born: str
    """When the process began, as `processes.born` returns it."""
    started: float
    alone: bool
    """The process worked on no other shard."""
    nonce: str
    error: NotRequired[str]
    charged: NotRequired[bool]
    """Whether the failure counts against the shard."""


class Ledger:
    """The files of one stage directory.

    Args:
        uri: the stage directory.
        submission: id of the submission that this process works for.
    """

    def __init__(self, uri: str, submission: str) -> None:
        self.uri, self.submission = uri, submission

    def at(self, *parts: str) -> str:
        """Return the URI of a file in the stage directory."""
        return storage.join(self.uri, *parts)

    def create_or_read(self, name: str, value: Any) -> Any:
        """Create a JSON file if absent and return what it now holds: our value or another writer's."""
        if storage.create(self.at(name), json.dumps(value, indent=1).encode()):
            return value
        return storage.read_json(self.at(name))

    def agree(self, name: str, value: str) -> str:
        """Return the first value that an actor reported under a name: all actors of the stage use that one."""
        return self.create_or_read(f"agreed/{name}.json", {"value": value})["value"]

    def agreed(self) -> dict[str, str]:
        """Return the values that the actors agreed on, by name."""
        names = [name for name in storage.list_names(self.at("agreed")) if name.endswith(".json")]
        return {name.removesuffix(".json"): storage.read_json(self.at("agreed", name))["value"] for name in names}

    def commit_of(self, shard: str) -> Commit | None:
        """Return a shard's commit, or None."""
        uri = self.at("commits", f"{shard}.json")
        try:
            value = storage.read_json(uri)
        except FileNotFoundError:
            return None
        return read_as(Commit.parse, value, uri)

    def committed(self) -> set[str]:
        """Return the names of the shards that have a commit."""
        names = map(_SHARD_FILE.fullmatch, storage.list_names(self.at("commits")))
        return {name[1] for name in names if name}

    def last_commit_of(self, commit: Commit) -> Commit:
        """Return the commit of a shard's last retry, or the given commit if there was no retry."""
        while later := self.commit_of(retried(commit.shard)):
            commit = later
        return commit

    def quarantined(self, commit: Commit) -> set[int]:
        """Return the indices, within the shard, of a commit's quarantined rows."""
        if commit.quarantine is None:
            return set()
        return set(storage.read_table(self.at(commit.quarantine.name), ["index"])["index"].to_pylist())

    def attempts_made(self) -> Counter[str]:
        """Count the attempts of all submissions by shard, with one listing."""
        return Counter(name.split("/")[0] for name in self.attempt_names() if _ATTEMPT_FILE.fullmatch(name))

    def attempt_names(self) -> list[str]:
        """Return the files under attempts/, `<shard>/<number>.json` and `<shard>/<number>.error.json`."""
        return [name for name in storage.list_names(self.at("attempts")) if _WORD_FILE.fullmatch(name)]

    def attempts(self, shard: str) -> list[AttemptRecord]:
        """Return the attempts at a shard, oldest first, each with `error` and `charged` if its failure was recorded."""
        directory = self.at("attempts", shard)
        names = [name for name in storage.list_names(directory) if _WORD_FILE.fullmatch(f"{shard}/{name}")]
        found = list[AttemptRecord]()
        for name in (name for name in names if name.count(".") == 1):
            attempt = storage.read_json(storage.join(directory, name)) | {"attempt": int(name.partition(".")[0])}
            if name.replace(".json", ".error.json") in names:
                attempt |= storage.read_json(storage.join(directory, name.replace(".json", ".error.json")))
            found.append(attempt)
        return sorted(found, key=lambda attempt: attempt["attempt"])

    def begin(
        self,
        shard: str,
        refuse: Callable[[list[AttemptRecord]], bool] | None = None,
        node_id: str = "",
        alone: bool = False,
    ) -> "Attempt":
        """Record the start of an attempt: one request for the first attempt, a few more for a later one.

        Args:
            shard: its name.
            refuse: gets the attempts already made; returns True to refuse another.
            node_id: Ray's id of this process's node, used later to recognize a lost node.
            alone: this process works on no other shard.

        Raises:
            ShardExhausted: `refuse` returned True.
        """
        number = 1
        while True:
            start: AttemptRecord = {
                "shard": shard, "attempt": number, "submission": self.submission, "node": node(), "node_id": node_id,
                "pid": os.getpid(), "born": born(), "started": time.time(), "alone": alone,
                "nonce": secrets.token_hex(4),
            }  # fmt: skip
            uri, data = self.at("attempts", shard, f"{number:04d}.json"), json.dumps(start).encode()
            if storage.create(uri, data) or storage.read_bytes(uri) == data:
                steps.reach(3)
                return Attempt(self, shard, number)
            past = self.attempts(shard)
            if refuse and refuse(past):
                raise ShardExhausted(f"shard {shard} was tried {len(past)} times; last failure: {last_words(past)}")
            number = max((attempt["attempt"] for attempt in past), default=number) + 1

    def fail(self, shard: str, number: int, error: str, charged: bool = True) -> None:
        """Record why an attempt ended without a commit; `charged` is False if that was not the shard's fault."""
        name = self.at("attempts", shard, f"{number:04d}.error.json")
        storage.create(name, json.dumps({"error": error[:2000], "charged": charged}).encode())

    def commit(self, commit: Commit) -> Commit:
        """Publish a shard's result and return the winning commit: the first one.

        If the create fails, the file is read back. If it names our attempt, an earlier try of the request succeeded
        and we won; otherwise our files are deleted.
        """
        name = self.at("commits", f"{commit.shard}.json")
        created = storage.create(name, commit.json())
        steps.reach(9)
        if created:
            return commit
        winner = read_as(Commit.parse, storage.read_json(name), name)
        if winner.attempt != commit.attempt:
            for file in (*commit.files, *commit.aside):
                storage.delete(self.at(file.name))
        return winner


class Attempt:
    """One attempt at a shard, as a `with` block: an exception is recorded before it propagates."""

    def __init__(self, ledger: Ledger, shard: str, number: int) -> None:
        self.ledger, self.shard, self.number = ledger, shard, number

    def __enter__(self) -> "Attempt":
        self._since = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        said, charged = (
            f"{type(error).__name__}: {error}",
            isinstance(error, Exception),
        )  # an interrupt is nobody's fault
        try:
            self.ledger.fail(self.shard, self.number, said, charged)
        except OSError as refused:  # storage itself may have failed; the propagating error says more
            logger.warning("%s: shard %s: its error could not be recorded: %s", self.ledger.uri, self.shard, refused)

    @functools.cached_property
    def directory(self) -> str:
        """Where a global step or a training run writes, relative to the stage; a new directory for each execution."""
        return f"data/{self.shard}.{self.number}-{secrets.token_hex(3)}"

    def write(self, table: pa.Table, extra: Mapping[str, Any] | None = None, lost: pa.Table | None = None) -> Commit:
        """Upload the rows as one Parquet file, commit the shard, and return the winning commit.

        Args:
            table: the rows, including those of `lost`.
            extra: goes into the commit.
            lost: QUARANTINE rows, if any; they get their own file.
        """
        name = f"{self.shard}.{self.number}.parquet"
        file = write_table(self.ledger, f"data/{name}", table)
        steps.reach(6)
        quarantine = None
        if lost is not None and lost.num_rows:
            quarantine = write_table(self.ledger, f"quarantine/{name}", lost)
            steps.reach(7)
        commit = self.describe([file], drop_counts(table), tokens_of(table), extra)
        return self.ledger.commit(replace(commit, quarantine=quarantine))

    def describe(
        self,
        files: Sequence[DataFile],
        drops: Mapping[str, int],
        tokens: int = 0,
        extra: Mapping[str, Any] | None = None,
    ) -> Commit:
        """Return this attempt's commit for files already written."""
        return Commit(
            shard=self.shard, attempt=self.number, files=tuple(files), rows=sum(file.rows or 0 for file in files),
            kept=sum(file.kept or 0 for file in files), drops=dict(drops), tokens=tokens,
            seconds=time.monotonic() - self._since, node=node(), submission=self.ledger.submission, versions=versions(),
            requests=requests_since_last(), extra=dict(extra or {}),
        )  # fmt: skip


def write_table(ledger: Ledger, name: str, table: pa.Table) -> DataFile:
    """Write a table to a file of the stage directory and describe it."""
    data = storage.parquet_bytes(table)
    storage.write_bytes(ledger.at(name), data)
    sha256 = hashlib.sha256(data).hexdigest()
    kept = table["drop_reason"].null_count if "drop_reason" in table.column_names else None
    return DataFile(name, len(data), sha256, table.num_rows, kept)


def charged(attempts: Sequence[AttemptRecord], submission: str, alive: Collection[str]) -> list[AttemptRecord]:
    """Return the attempts that count against a shard: this submission's attempts that may have failed because of it.

    Attempts recorded as not charged do not count. Neither do attempts that ended without a record on a node that is no
    longer `alive` (preempted, lost). A shard tried `MOST_LOST_NODES` times may itself be killing the nodes, so then all
    attempts count.
    """
    ours = [attempt for attempt in attempts if attempt["submission"] == submission]
    if len(ours) >= MOST_LOST_NODES:
        return ours
    return [a for a in ours if a.get("charged", not a["node_id"] or a["node_id"] in alive)]


def last_words(attempts: Sequence[AttemptRecord]) -> str:
    """Say how the last attempt ended."""
    last = attempts[-1]
    return last.get("error") or f"the worker process died silently (node {last['node']}, process {last['pid']})"
