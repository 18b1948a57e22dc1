"""The shard ledger: what is in a stage directory, and how a shard gets from planned to committed.

    recipe.json                     fingerprint, recipe, inputs     created if absent, first
    plan.json                       the frozen list of shards       created if absent
    agreed/<name>.json              what an actor has measured and all use, such as an engine's dtype   likewise
    attempts/<shard>/<n>.json       who started it, where, when     created if absent; <n>.error.json if it raised
    data/<shard>.<attempt>.parquet  the rows
    quarantine/<shard>.<attempt>.parquet   what is known of the rows that no worker survived, if any
    commits/<shard>.json            what the file holds             created if absent: the first commit wins
    manifest.json                   the commits and totals          created if absent, last: makes the stage visible

Quarantined rows can be tried again until a later stage reads the manifest. Shard 000012 then becomes the shard
000012r1, which holds all of its rows; 000012r1 becomes 000012r2, and so on. Each has attempts, data and a commit of its
own, and the manifest, written anew, lists the last one.

`Ledger` is all of this for one directory; it holds no state but the address, so an actor, a driver and `jobs.verify`
see the same thing. A writer whose commit lost deletes its file; a file of unknown outcome is left alone.
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
"""Names of what the ledger writes; other files, of file systems and file managers, are left alone."""

MOST_LOST_NODES = 20
"""Attempts at one shard within a submission after which lost nodes are no excuse any more."""


class AttemptRecord(TypedDict):
    """Who started an attempt, where and when; and how it failed, if somebody saw that."""

    shard: str
    attempt: int
    submission: str
    node: str
    node_id: str
    """Ray's id of the node; "" where the attempt is no actor's."""
    pid: int
    born: str
    """When the process began, as `processes.born` says it."""
    started: float
    alone: bool
    """No other shard was worked on by the process."""
    nonce: str
    error: NotRequired[str]
    charged: NotRequired[bool]
    """Whether the failure counts against the shard."""


class Ledger:
    """The files of one stage directory.

    Args:
        uri: the stage directory.
        submission: id of the submission on whose behalf this process works.
    """

    def __init__(self, uri: str, submission: str) -> None:
        self.uri, self.submission = uri, submission

    def at(self, *parts: str) -> str:
        """Return the URI of a file in the stage directory."""
        return storage.join(self.uri, *parts)

    def create_or_read(self, name: str, value: Any) -> Any:
        """Create a JSON file if absent and return what it holds now, ours or another's."""
        if storage.create(self.at(name), json.dumps(value, indent=1).encode()):
            return value
        return storage.read_json(self.at(name))

    def agree(self, name: str, value: str) -> str:
        """Return what all actors of the stage use for something that each may measure otherwise: the first value."""
        return self.create_or_read(f"agreed/{name}.json", {"value": value})["value"]

    def agreed(self) -> dict[str, str]:
        """Return what the actors agreed on, by name."""
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
        """Return the commit of a shard's last retry; without any, the given one."""
        while later := self.commit_of(retried(commit.shard)):
            commit = later
        return commit

    def quarantined(self, commit: Commit) -> set[int]:
        """Return the indices of a commit's quarantined rows in their shard."""
        if commit.quarantine is None:
            return set()
        return set(storage.read_table(self.at(commit.quarantine.name), ["index"])["index"].to_pylist())

    def attempts_made(self) -> Counter[str]:
        """Count the attempts by shard, of all submissions, in one listing."""
        return Counter(name.split("/")[0] for name in self.attempt_names() if _ATTEMPT_FILE.fullmatch(name))

    def attempt_names(self) -> list[str]:
        """Return the files under attempts/, `<shard>/<number>.json` and `<shard>/<number>.error.json`."""
        return [name for name in storage.list_names(self.at("attempts")) if _WORD_FILE.fullmatch(name)]

    def attempts(self, shard: str) -> list[AttemptRecord]:
        """Return the attempts at a shard, oldest first, each with `error` and `charged` if somebody saw it fail."""
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
        """Record the start of an attempt: one request for the first, a few more for a later one.

        Args:
            shard: its name.
            refuse: told about the attempts already made, says whether there may be another.
            node_id: Ray's id of this process's node, by which a lost node is known later.
            alone: no other shard is worked on by this process.

        Raises:
            ShardExhausted: `refuse` said so.
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
                raise ShardExhausted(f"shard {shard} was tried {len(past)} times; last: {last_words(past)}")
            number = max((attempt["attempt"] for attempt in past), default=number) + 1

    def fail(self, shard: str, number: int, error: str, charged: bool = True) -> None:
        """Write down why an attempt ended without a commit; one that is not `charged` was not its shard's fault."""
        name = self.at("attempts", shard, f"{number:04d}.error.json")
        storage.create(name, json.dumps({"error": error[:2000], "charged": charged}).encode())

    def commit(self, commit: Commit) -> Commit:
        """Publish a shard's result; the first commit wins, and the winner is returned.

        A create that failed is read back: if it names our attempt, a retried request had succeeded and we won;
        otherwise our files are deleted.
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
    """One attempt at a shard, in a `with` block: an exception is written down before it propagates."""

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
        except OSError as refused:  # storage may be what failed; the error on its way says more
            logger.warning("%s: shard %s: what it failed with was not noted: %s", self.ledger.uri, self.shard, refused)

    @functools.cached_property
    def directory(self) -> str:
        """Where a global step or a training run writes, relative to the stage; another one each time it is executed."""
        return f"data/{self.shard}.{self.number}-{secrets.token_hex(3)}"

    def write(self, table: pa.Table, extra: Mapping[str, Any] | None = None, lost: pa.Table | None = None) -> Commit:
        """Upload the rows as one Parquet file, once, and commit the shard; returns the winning commit.

        Args:
            table: the rows, those of `lost` among them.
            extra: goes into the commit.
            lost: QUARANTINE rows, if any; they get a file of their own.
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
        """Return the commit of this attempt for files that are written."""
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
    """Return the attempts that count against a shard: those of this submission whose end may be the shard's fault.

    Not counted: attempts that somebody wrote down as not charged, and those that ended without a word on a node that is
    no longer among the `alive` (preempted, lost). A shard that lost its node `MOST_LOST_NODES` times may be what the
    nodes die of, so then all count.
    """
    ours = [attempt for attempt in attempts if attempt["submission"] == submission]
    if len(ours) >= MOST_LOST_NODES:
        return ours
    return [a for a in ours if a.get("charged", not a["node_id"] or a["node_id"] in alive)]


def last_words(attempts: Sequence[AttemptRecord]) -> str:
    """Say what the last of some attempts ended with."""
    last = attempts[-1]
    return last.get("error") or f"the worker process died without a word (node {last['node']}, process {last['pid']})"
