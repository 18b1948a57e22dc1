"""Shards: a stage's units of work, how its input is cut into them, and their names.

Quarantined rows can be tried again until a later stage reads the manifest. Shard 000012 then becomes shard 000012r1,
which holds all of its rows; 000012r1 becomes 000012r2, and so on.
"""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa

from humpback_ray import storage
from humpback_ray.stages.manifest import Manifest
from humpback_ray.storage.inventory import Inventory

_RETRY = re.compile(r"(\d{6,})r(\d+)")


def planned(shard: str) -> str:
    """Return the name of a shard in the plan, whether its quarantined rows were tried again or not."""
    match = _RETRY.fullmatch(shard)
    return match[1] if match else shard


def retried(shard: str) -> str:
    """Return the name of a shard after its quarantined rows are tried again."""
    match = _RETRY.fullmatch(shard)
    return f"{match[1]}r{int(match[2]) + 1}" if match else f"{shard}r1"


@dataclass(frozen=True, slots=True)
class Shard:
    """A unit of work: an input `file`, or else `slices`, (file, first, last + 1) of *kept* rows.

    In plan.json, files are named relative to their stage or inventory, so a moved one is found; `located` makes them
    URIs.
    """

    name: str
    file: str | None = None
    slices: tuple[tuple[str, int, int], ...] = ()
    input: storage.InputFile | None = None
    """The file as the run recorded it; None in plan.json."""

    @property
    def rows(self) -> int | None:
        """Rows of the shard; None for a file, whose rows are not counted."""
        return None if self.file is not None else sum(last - first for _, first, last in self.slices)

    def located(self, source: "Manifest | Inventory") -> "Shard":
        """Return the shard with URIs; the name of a file's shard is its index in the inventory."""
        if isinstance(source, Inventory):
            file = source.files[int(self.name)]
            return replace(self, file=file.uri, input=file)
        slices = tuple((sys.intern(storage.join(source.uri, file)), *rows) for file, *rows in self.slices)
        return replace(self, slices=slices)

    def load(self) -> "storage.InputFile | pa.Table":
        """Return the worker's argument: the file or the rows."""
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
        """Make a shard from its JSON value."""
        slices = tuple((sys.intern(uri), first, last) for uri, first, last in value["slices"])
        known = value.get("input")
        return Shard(value["name"], value["file"], slices, storage.InputFile(**known) if known else None)


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
    """Make one shard per input file."""
    return [Shard(f"{index:06d}", file=file.name) for index, file in enumerate(inventory.files)]


def weight(shard: Shard, source: "Manifest | Inventory") -> float:
    """Return the quantity that a shard's time is proportional to: its rows, or the bytes of its file."""
    return source.files[int(shard.name)].bytes if isinstance(source, Inventory) else shard.rows or 0
