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

import errno
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import secrets
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import TracebackType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.compute as pc

from humpback_ray import storage
from humpback_ray.config import fingerprint
from humpback_ray.records import METRICS, QUARANTINE, QUARANTINED
from humpback_ray.stages.processes import born
from humpback_ray.storage import steps
from humpback_ray.storage.inventory import Inventory

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SHARD_FILE = re.compile(r"(\d{6,}|all)\.json")
_RETRY = re.compile(r"(\d{6,})r(\d+)")
_ATTEMPT_FILE = re.compile(r"(?:\d{6,}(?:r\d+)?|all)/\d{4,}\.json")
_WORD_FILE = re.compile(r"(?:\d{6,}(?:r\d+)?|all)/\d{4,}(?:\.error)?\.json")
"""Names of what the ledger writes; other files, of file systems and file managers, are left alone."""

CARD = "README.md"
"""What a directory with a model says of itself, for people: it names the run, so it is not the model."""
MOST_LOST_NODES = 20
"""Attempts at one shard within a submission after which lost nodes are no excuse any more."""


def planned(shard: str) -> str:
    """Return the name that a shard has in the plan, whether its quarantined rows were tried again or not."""
    match = _RETRY.fullmatch(shard)
    return match[1] if match else shard


def retried(shard: str) -> str:
    """Return the name of a shard once its quarantined rows are tried again."""
    match = _RETRY.fullmatch(shard)
    return f"{match[1]}r{int(match[2]) + 1}" if match else f"{shard}r1"


class ShardExhausted(RuntimeError):
    """A shard was tried as often as its placement allows; the message holds its last error."""


class StageFailed(RuntimeError):
    """A stage cannot be finished; the message says why, with numbers."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A unit of work. `file` is an input file; else `slices` are (file, first, last + 1) of *kept* rows.

    In plan.json files are named relative to the stage or inventory they belong to, so that a moved one is found;
    `located` makes them URIs.
    """

    name: str
    file: str | None = None
    slices: tuple[tuple[str, int, int], ...] = ()
    input: storage.InputFile | None = None
    """The file as the run took stock of it; None in plan.json."""

    @property
    def rows(self) -> int | None:
        """Rows of the shard; None of a file, which nobody has counted."""
        return None if self.file is not None else sum(last - first for _, first, last in self.slices)

    def located(self, source: "Manifest | Inventory") -> "Shard":
        """Return the shard with URIs; a file's shard is named by its place in the inventory."""
        if isinstance(source, Inventory):
            file = source.files[int(self.name)]
            return replace(self, file=file.uri, input=file)
        slices = tuple((sys.intern(storage.join(source.uri, file)), *rows) for file, *rows in self.slices)
        return replace(self, slices=slices)

    def load(self) -> "storage.InputFile | pa.Table":
        """Return what the worker gets: the file, or the rows."""
        if self.file is not None:
            return self.input or storage.InputFile(self.file, self.file, 0)
        return pa.concat_tables([storage.read_kept_rows(*piece) for piece in self.slices])

    def json(self) -> str:
        """Write the shard as one JSON object."""
        return json.dumps(asdict(self))

    @staticmethod
    def parse(text: str) -> "Shard":
        """Read what `json` wrote."""
        return Shard.of(json.loads(text))

    @staticmethod
    def of(value: Mapping[str, Any]) -> "Shard":
        """Make a shard of its JSON value."""
        slices = tuple((sys.intern(uri), first, last) for uri, first, last in value["slices"])
        known = value.get("input")
        return Shard(value["name"], value["file"], slices, storage.InputFile(**known) if known else None)


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of a commit, named relative to the stage directory; `rows` and `kept` are None where it is no table."""

    name: str
    bytes: int
    sha256: str
    rows: int | None = None
    kept: int | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """What one attempt made of one shard. Its existence under commits/ is the shard's end."""

    shard: str
    attempt: int
    files: tuple[DataFile, ...]
    rows: int
    kept: int
    drops: dict[str, int]
    seconds: float
    tokens: int = 0
    node: str = ""
    submission: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    quarantine: DataFile | None = None
    """QUARANTINE rows, one for each row of `files` whose reason is `quarantined`; None where there is none."""
    metrics: DataFile | None = None
    """METRICS rows, one per optimizer step; None where nothing was trained. No part of the digest: it holds times."""
    requests: dict[str, int] = field(default_factory=dict)
    """Requests to object storage since this process's last commit, by operation, retries included."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What a global step or a training run adds: metrics, counts of its own."""

    def json(self) -> bytes:
        """Write the commit as JSON."""
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def parse(value: Mapping[str, Any]) -> "Commit":
        """Read what `json` wrote."""
        aside = {name: DataFile(**value[name]) if value.get(name) else None for name in ("quarantine", "metrics")}
        files = tuple(DataFile(**file) for file in value["files"])
        names = [*(file.name for file in files), *(file.name for file in aside.values() if file)]
        model = value.get("extra", {}).get("model")
        for name in [*names, *([model] if isinstance(model, str) else [])]:
            _check_name(name)
        same = {name: sys.intern(value[name]) for name in ("node", "submission")}  # thousands of commits share them
        versions = _shared_versions(tuple(value["versions"].items()))
        check_types(Commit, {key: found for key, found in value.items() if key != "files"})
        return Commit(**{**value, **same, **aside, "files": files, "versions": versions})

    @property
    def aside(self) -> list[DataFile]:
        """Its files that are no result: `quarantine` and `metrics`, where there are any."""
        return [file for file in (self.quarantine, self.metrics) if file]


def _check_name(name: str) -> None:
    """Raise ValueError unless a file's name stays within its stage directory."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or "\0" in name:
        raise ValueError(f"the file name {name!r} leads out of the stage's directory")


@functools.lru_cache(maxsize=64)
def _shared_versions(items: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return dict(items)


@dataclass(frozen=True)
class Manifest:
    """A finished stage: its identity, its commits and their totals."""

    uri: str
    stage: str
    fingerprint: str
    recipe: dict[str, Any]
    inputs: dict[str, Any]
    commits: tuple[Commit, ...]
    attempts: int
    started: float
    ended: float
    driver_requests: dict[str, int] = field(default_factory=dict)
    """Requests to object storage that the publishing driver made for this stage."""
    sources: dict[str, str] = field(default_factory=dict)
    """Where the stages among its inputs are, by the input's name: relative to the run's root, or of another run."""
    ids_of: str = ""
    """The input whose kept ids each have one fate here; "" where rows are made of something else."""
    located: dict[str, list[str]] = field(default_factory=dict)
    """Where the files of inputs from outside were, by the input's name, in the order of `inputs`."""

    agreed: dict[str, str] = field(default_factory=dict)
    """What the actors measured and agreed on: "dtype" of the transformers engine where that is "auto"."""
    stated: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The digest and totals that the file states, for `verify`; everybody else goes by the commits."""

    def source_uris(self) -> dict[str, str]:
        """Return where the stages among its inputs are."""
        root = self.uri.removesuffix(f"/{self.stage}")
        return {name: path if _is_absolute(path) else storage.join(root, path) for name, path in self.sources.items()}

    def input_files(self, name: str) -> list[storage.InputFile]:
        """Return the files of an input from outside; those whose place was not recorded have no URI."""
        known = self.inputs[name]
        uris = self.located.get(name) or [""] * len(known)
        return [
            storage.InputFile(uri, file["name"], file["bytes"], file["version"])
            for uri, file in zip(uris, known, strict=True)
        ]

    @property
    def digest(self) -> str:
        """Identity of the content, for the fingerprints of stages that read it; prose about it is no part of it."""
        return fingerprint(
            [[file.sha256 for file in commit.files if not file.name.endswith(f"/{CARD}")] for commit in self.commits]
        )

    @property
    def rows(self) -> int:
        """Rows written, kept and dropped."""
        return sum(commit.rows for commit in self.commits)

    @property
    def kept(self) -> int:
        """Rows without a drop reason."""
        return sum(commit.kept for commit in self.commits)

    @property
    def drops(self) -> dict[str, int]:
        """Rows by drop reason, most frequent first."""
        return dict(sum((Counter(commit.drops) for commit in self.commits), Counter()).most_common())

    @property
    def tokens(self) -> int:
        """Tokens read and written by models."""
        return sum(commit.tokens for commit in self.commits)

    @property
    def requests(self) -> dict[str, int]:
        """Requests to object storage by operation, of the driver that published and of all committed attempts."""
        return dict(sum((Counter(commit.requests) for commit in self.commits), Counter(self.driver_requests)))

    @property
    def quarantined(self) -> int:
        """Rows that no worker survived; they are among the dropped."""
        return self.drops.get(QUARANTINED, 0)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds from the stage's first start to its end, pauses included; 0 if the clock was set back."""
        return max(self.ended - self.started, 0.0)

    @property
    def work_s(self) -> float:
        """Seconds of work, summed over shards; overlapping shards of one actor count twice."""
        return sum(commit.seconds for commit in self.commits)

    @property
    def extra(self) -> dict[str, Any]:
        """What a global step or a training run added to its only commit."""
        return self.commits[0].extra if len(self.commits) == 1 else {}

    @property
    def files(self) -> list[DataFile]:
        """All data files, in shard order."""
        return [file for commit in self.commits for file in commit.files]

    def tables(self, columns: list[str] | None = None, kept: bool = True) -> Iterator[pa.Table]:
        """Read the stage's tables one after another; with `kept`, only rows without a drop reason."""
        wanted = columns if columns is None or not kept else sorted({*columns, "drop_reason"})
        for file in self.files:
            if file.rows is None or (kept and not file.kept):
                continue
            table = storage.read_table(storage.join(self.uri, file.name), wanted)
            table = table.filter(table["drop_reason"].is_null()) if kept else table
            yield table if columns is None else table.select(columns)

    def quarantine(self) -> pa.Table:
        """Read what is known of the quarantined rows, schema QUARANTINE."""
        files = [commit.quarantine.name for commit in self.commits if commit.quarantine]
        tables = [storage.read_table(storage.join(self.uri, name)) for name in files]
        return pa.concat_tables([QUARANTINE.empty_table(), *tables])

    def metrics(self) -> pa.Table:
        """Read what was measured at each optimizer step, schema METRICS; no rows where nothing was trained."""
        files = [commit.metrics.name for commit in self.commits if commit.metrics]
        tables = [storage.read_table(storage.join(self.uri, name)) for name in files]
        return pa.concat_tables([METRICS.empty_table(), *tables])

    def json(self) -> bytes:
        """Write the manifest as JSON; the URI is where it lies and not part of it."""
        totals = {
            "rows": self.rows, "kept": self.kept, "drops": self.drops, "tokens": self.tokens,
            "quarantined": self.quarantined, "requests": self.requests,
        }  # fmt: skip
        fields = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("uri", "commits", "stated")
        }
        head = json.dumps({**fields, "digest": self.digest, "totals": totals}, indent=1).removesuffix("\n}").encode()
        commits = b",\n  ".join(commit.json() for commit in self.commits)  # one by one: there may be thousands
        return b"".join([head, b',\n "commits": [\n  ', commits, b"\n ]\n}"])

    @staticmethod
    def parse(uri: str, value: Mapping[str, Any]) -> "Manifest":
        """Read what `json` wrote."""
        own = Manifest.__dataclass_fields__.keys() - {"commits", "stated"}
        fields = {key: value[key] for key in own if key in value}
        fields["stated"] = {"digest": value.get("digest"), "totals": dict(value.get("totals") or {})}
        check_types(Manifest, fields)
        return Manifest(uri=uri, commits=tuple(Commit.parse(commit) for commit in value["commits"]), **fields)

    @staticmethod
    def read(uri: str) -> "Manifest | None":
        """Return the manifest of a stage directory; None where the stage is not finished.

        Raises:
            Damaged: it is none.
        """
        name = storage.join(uri, "manifest.json")
        try:
            value = storage.read_json(name)
        except FileNotFoundError:
            return None
        return read_as(functools.partial(Manifest.parse, uri), value, name)


def read_as(parse: Callable[[Any], T], value: Any, uri: str) -> T:
    """Return what a JSON value stands for.

    Raises:
        Damaged: it does not stand for that.
    """
    try:
        return parse(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        said = f"{type(error).__name__}: {error}"
        raise storage.Damaged(errno.EIO, f"{uri} is not what a run writes there ({said}); restore it") from error


def check_types(of: type, values: Mapping[str, Any]) -> None:
    """Raise TypeError unless values are what the fields of a dataclass are annotated as, as deep as plain ones go."""
    for name, value in values.items():
        kind, inner = _kinds(of).get(name, (None, None))
        if kind and not isinstance(value, kind):
            raise TypeError(f"{name} is {value!r}")
        if inner and not all(isinstance(one, inner) for one in value.values()):
            raise TypeError(f"{name} is {value!r}")


@functools.cache
def _kinds(of: type) -> dict[str, tuple[Any, Any]]:
    """Return by field what a value has to be, and those in it: plain types, and dictionaries of them."""
    found: dict[str, tuple[Any, Any]] = {}
    for name, hint in get_type_hints(of).items():
        kind, inner = get_origin(hint) or hint, get_args(hint)
        if kind in (str, int, float, dict):
            inside = get_origin(inner[1]) or inner[1] if inner else None
            found[name] = ((int, float) if kind is float else kind, None if inside is Any else inside)
    return found


def _is_absolute(path: str) -> bool:
    return path.startswith("/") or storage.is_s3(path)


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

    def attempts(self, shard: str) -> list[dict[str, Any]]:
        """Return the attempts at a shard, oldest first, each with `error` and `charged` if somebody saw it fail."""
        directory = self.at("attempts", shard)
        names = [name for name in storage.list_names(directory) if _WORD_FILE.fullmatch(f"{shard}/{name}")]
        found = []
        for name in (name for name in names if name.count(".") == 1):
            attempt = storage.read_json(storage.join(directory, name)) | {"attempt": int(name.partition(".")[0])}
            if name.replace(".json", ".error.json") in names:
                attempt |= storage.read_json(storage.join(directory, name.replace(".json", ".error.json")))
            found.append(attempt)
        return sorted(found, key=lambda attempt: attempt["attempt"])

    def begin(
        self,
        shard: str,
        refuse: Callable[[list[dict[str, Any]]], bool] | None = None,
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
            start = {
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

    def fail(self, attempt: Mapping[str, Any], error: str, charged: bool = True) -> None:
        """Write down why an attempt ended without a commit; one that is not `charged` was not its shard's fault."""
        name = self.at("attempts", attempt["shard"], f"{attempt['attempt']:04d}.error.json")
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
        said, attempt = f"{type(error).__name__}: {error}", {"shard": self.shard, "attempt": self.number}
        try:
            self.ledger.fail(attempt, said, charged=isinstance(error, Exception))  # an interrupt is nobody's fault
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


def drop_counts(table: pa.Table) -> dict[str, int]:
    """Count the dropped rows of a table by reason."""
    counts = table["drop_reason"].drop_null().value_counts().to_pylist()
    return {str(entry["values"]): entry["counts"] for entry in counts}


def is_quarantined(table: pa.Table) -> pa.ChunkedArray:
    """Return which rows of a table are quarantined, as booleans."""
    equal = pc.call_function("equal", [table["drop_reason"], pa.scalar(QUARANTINED)])
    return pc.call_function("coalesce", [equal, pa.scalar(False)])


def tokens_of(table: pa.Table) -> int:
    """Sum the token columns of a table, if it has any."""
    names = [name for name in ("prompt_tokens", "completion_tokens") if name in table.column_names]
    return sum(sum(value or 0 for value in table[name].to_pylist()) for name in names)


def charged(attempts: Sequence[Mapping[str, Any]], submission: str, alive: Collection[str]) -> list[Mapping[str, Any]]:
    """Return the attempts that count against a shard: those of this submission whose end may be the shard's fault.

    Not counted: attempts that somebody wrote down as not charged, and those that ended without a word on a node that is
    no longer among the `alive` (preempted, lost). A shard that lost its node `MOST_LOST_NODES` times may be what the
    nodes die of, so then all count.
    """
    ours = [attempt for attempt in attempts if attempt["submission"] == submission]
    if len(ours) >= MOST_LOST_NODES:
        return ours
    return [a for a in ours if a.get("charged", not a["node_id"] or a["node_id"] in alive)]


def last_words(attempts: Sequence[Mapping[str, Any]]) -> str:
    """Say what the last of some attempts ended with."""
    last = attempts[-1]
    return last.get("error") or f"the worker process died without a word (node {last['node']}, process {last['pid']})"


_counted: Counter[str] = Counter()


def requests_since_last() -> dict[str, int]:
    """Return this process's requests to object storage, by operation, since this was last asked."""
    global _counted
    now = storage.requests()
    made, _counted = now - _counted, now
    return dict(made)


def node() -> str:
    """Return the name of this machine."""
    return socket.gethostname()


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of what decides results here, without importing any of it."""
    found = {"python": platform.python_version()}
    for name in ("humpback-ray", "ray", "torch", "transformers", "deepspeed", "pyarrow"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
