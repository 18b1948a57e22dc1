"""A shard's commit: the files that an attempt wrote for it, and what they hold."""

import functools
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from humpback_ray.stages.parsing import check_name, check_types


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of a commit, named relative to the stage directory; `rows` and `kept` are None if it is not a table."""

    name: str
    bytes: int
    sha256: str
    rows: int | None = None
    kept: int | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """The result of one attempt at one shard. A shard with a file under commits/ is done."""

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
    """QUARANTINE rows, one for each row of `files` whose reason is `quarantined`; None if there are none."""
    metrics: DataFile | None = None
    """METRICS rows, one per optimizer step; None if nothing was trained. Not in the digest, since it holds times."""
    requests: dict[str, int] = field(default_factory=dict)
    """Requests to object storage since this process's last commit, by operation, retries included."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Values that a global step or a training run adds, such as metrics and counts."""

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
            check_name(name)
        same = {name: sys.intern(value[name]) for name in ("node", "submission")}  # thousands of commits share them
        versions = _shared_versions(tuple(value["versions"].items()))
        check_types(Commit, {key: found for key, found in value.items() if key != "files"})
        return Commit(**{**value, **same, **aside, "files": files, "versions": versions})

    @property
    def aside(self) -> list[DataFile]:
        """Files that are not results: `quarantine` and `metrics`, if they exist."""
        return [file for file in (self.quarantine, self.metrics) if file]


@functools.lru_cache(maxsize=64)
def _shared_versions(items: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return dict(items)
