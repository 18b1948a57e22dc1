"""A finished stage's manifest: the commits of its shards, their totals, and the inputs that they were made from.

A stage is visible only through its manifest: other stages, the report and `jobs.verify` read only the files it lists.
"""

import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from humpback_ray import storage
from humpback_ray.config import fingerprint
from humpback_ray.records import METRICS, QUARANTINE, QUARANTINED
from humpback_ray.stages.commits import Commit, DataFile
from humpback_ray.stages.parsing import check_types, read_as

CARD = "README.md"
"""The model card: prose that names the run, so it is not part of the model's identity."""


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
    """Locations of input stages, by the input's name: relative to the run's root, or absolute for another run."""
    ids_of: str = ""
    """Name of the input whose kept ids each have one fate here; "" if the rows come from something else."""
    located: dict[str, list[str]] = field(default_factory=dict)
    """URIs of the files of external inputs, by the input's name, in the order of `inputs`."""

    agreed: dict[str, str] = field(default_factory=dict)
    """Values that the actors measured and agreed on: "dtype" of the transformers engine, if the recipe says "auto"."""
    stated: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The digest and totals written in the file, for `verify`; all other code uses the commits."""

    def source_uris(self) -> dict[str, str]:
        """Return the URIs of the input stages, by name."""
        root = self.uri.removesuffix(f"/{self.stage}")
        return {name: path if _is_absolute(path) else storage.join(root, path) for name, path in self.sources.items()}

    def input_files(self, name: str) -> list[storage.InputFile]:
        """Return the files of an external input; `uri` is "" if the location was not recorded."""
        known = self.inputs[name]
        uris = self.located.get(name) or [""] * len(known)
        return [
            storage.InputFile(uri, file["name"], file["bytes"], file["version"])
            for uri, file in zip(uris, known, strict=True)
        ]

    @property
    def digest(self) -> str:
        """Identity of the content, for the fingerprints of stages that read it; excludes the model card."""
        return fingerprint(
            [[file.sha256 for file in commit.files if not file.name.endswith(f"/{CARD}")] for commit in self.commits]
        )

    @property
    def rows(self) -> int:
        """Rows written, kept or dropped."""
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
        """Requests to object storage by operation: the publishing driver's and those of all committed attempts."""
        return dict(sum((Counter(commit.requests) for commit in self.commits), Counter(self.driver_requests)))

    @property
    def quarantined(self) -> int:
        """Rows that no worker survived; they also count as dropped."""
        return self.drops.get(QUARANTINED, 0)

    @property
    def wall_s(self) -> float:
        """Wall-clock seconds from the stage's first start to its end, pauses included; 0 if the clock was set back."""
        return max(self.ended - self.started, 0.0)

    @property
    def work_s(self) -> float:
        """Seconds of work, summed over shards; overlapping shards of one actor count twice."""
        return sum(commit.seconds for commit in self.commits)

    @property
    def extra(self) -> dict[str, Any]:
        """Values that a global step or a training run added to its only commit."""
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
        """Read the records of quarantined rows, schema QUARANTINE."""
        files = [commit.quarantine.name for commit in self.commits if commit.quarantine]
        tables = [storage.read_table(storage.join(self.uri, name)) for name in files]
        return pa.concat_tables([QUARANTINE.empty_table(), *tables])

    def metrics(self) -> pa.Table:
        """Read the metrics of each optimizer step, schema METRICS; empty if nothing was trained."""
        files = [commit.metrics.name for commit in self.commits if commit.metrics]
        tables = [storage.read_table(storage.join(self.uri, name)) for name in files]
        return pa.concat_tables([METRICS.empty_table(), *tables])

    def json(self) -> bytes:
        """Write the manifest as JSON, without its URI."""
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


def read_manifest(uri: str) -> Manifest | None:
    """Return the manifest of a stage directory; None if the stage is not finished.

    Raises:
        Damaged: manifest.json is not a manifest.
    """
    name = storage.join(uri, "manifest.json")
    try:
        value = storage.read_json(name)
    except FileNotFoundError:
        return None
    return read_as(functools.partial(Manifest.parse, uri), value, name)


def _is_absolute(path: str) -> bool:
    return path.startswith("/") or storage.is_s3(path)
