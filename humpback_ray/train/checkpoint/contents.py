"""What the JSON files of a checkpoint say, checked: a damaged one never ends a run by an error of Python's.

A cut or empty file, JSON of another type, a missing or unknown field, a number that cannot be: each is `Unreadable`,
with the file and the first thing that is wrong. A missing file, or one of another size, is `Incomplete`.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from humpback_ray import storage
from humpback_ray.train.job import StepMetrics

STATE = "state.json"

Span = tuple[str, NonNegativeInt, PositiveInt]
"""Elements of a flattened parameter: its name, the first element, the one after the last."""


class Unusable(ValueError):
    """A checkpoint that no run can resume from; the message names the file."""

    words = "unusable"


class Incomplete(Unusable):
    """A file is missing or has the wrong size: its writer was interrupted, or is still writing."""

    words = "incomplete"


class Unreadable(Unusable):
    """The state or a rank's list is no JSON, or contradicts itself."""

    words = "damaged"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Entry(_Strict):
    """A file in a rank's list."""

    bytes: NonNegativeInt
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    fragments: list[Span]


Files = dict[str, Entry]
"""Entries by file name."""

_FILES = TypeAdapter(Files)


class State(_Strict):
    """The content of `state.json`."""

    step: NonNegativeInt
    workers: PositiveInt
    identity: dict[str, Any]
    history: list[StepMetrics]


@dataclass(frozen=True)
class Contents:
    """A complete checkpoint: its state, and the entries of all ranks' lists."""

    uri: str
    state: State
    files: Files


def read(uri: str, sizes: Mapping[str, int]) -> Contents:
    """Read a checkpoint's state and lists.

    Args:
        uri: the checkpoint.
        sizes: bytes of the files that a listing found there.

    Raises:
        Unusable: see the two classes.
        OSError: the state or a list cannot be read.
    """
    if STATE not in sizes:
        raise Incomplete(f"{STATE} is missing")
    state = _state(uri)
    files: Files = {}
    for rank in range(state.workers):
        name = list_of(rank)
        if name not in sizes:
            raise Incomplete(f"{name} is missing")
        files |= _files(uri, name, rank)
    for name, entry in files.items():
        if name not in sizes:
            raise Incomplete(f"{name} is missing")
        if sizes[name] != entry.bytes:
            raise Incomplete(f"{name} has {sizes[name]:,} bytes instead of {entry.bytes:,}")
    return Contents(uri, state, files)


def list_of(rank: int) -> str:
    """Return the name of a rank's list."""
    return f"rank-{rank:05d}.json"


def _state(uri: str) -> State:
    data = _bytes(uri, STATE)
    try:
        state = State.model_validate_json(data)
    except ValidationError as error:
        raise Unreadable(f"{STATE}: {_first(error, data)}") from None
    if problem := next(_contradictions(state, uri), None):
        raise Unreadable(f"{STATE}: {problem}")
    return state


def _contradictions(state: State, uri: str) -> Iterator[str]:
    named = re.search(r"/step-(\d+)-[^/]+$", uri)
    if named and int(named[1]) != state.step:
        yield f"step is {state.step}, but the directory is named {named[0][1:]}"
    if [row.step for row in state.history] != list(range(1, state.step + 1)):
        yield f"the {len(state.history)} rows of history are not those of the steps 1 to {state.step}"
    for row in state.history:
        loose = {"validation_loss", *(("loss", "gradient_norm") if row.skipped else ())}
        for name, value in vars(row).items():
            if name not in loose and isinstance(value, float) and not math.isfinite(value):
                yield f"{name} of step {row.step} is {value}"


def _files(uri: str, name: str, rank: int) -> Files:
    data = _bytes(uri, name)
    try:
        files = _FILES.validate_json(data)
    except ValidationError as error:
        raise Unreadable(f"{name}: {_first(error, data)}") from None
    if rank == 0 and STATE not in files:
        raise Unreadable(f"{name}: {STATE} is not in it")
    own = re.compile(rf"rank-{rank:05d}-\d+\.safetensors" + (f"|{re.escape(STATE)}" if rank == 0 else ""))
    for file, entry in files.items():
        if not own.fullmatch(file):
            raise Unreadable(f"{name}: {file!r} is not a file of this rank")
        for fragment, start, stop in entry.fragments:
            if start >= stop:
                raise Unreadable(f"{name}: {file} has the elements {start:,} to {stop:,} of {fragment}")
    return files


def _bytes(uri: str, name: str) -> bytes:
    try:
        return storage.read_bytes(storage.join(uri, name))
    except FileNotFoundError:
        raise Incomplete(f"{name} was deleted after the listing") from None


def _first(error: ValidationError, data: bytes) -> str:
    """Say the first thing that is wrong in a JSON file."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return f"{first['msg']} ({len(data):,} bytes)"
    return f"{_place(first['loc'])}: {first['msg']}, not {str(first['input'])[:40]!r}"


def _place(parts: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in parts) or "the file"
