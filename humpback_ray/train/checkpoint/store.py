"""Checkpoints of a fine-tune, in a layout of our own: any number of workers and any ZeRO stage can resume from them.

    <stage>/checkpoints/<attempt>/step-000100-3fa9c1/
        state.json                   step, workers, identity of the run, metrics of every step so far    by rank 0
        rank-00000-000.safetensors   fragments (see fragments.py), a gigabyte or so in each file     by every rank
        rank-00000.json              size, digest and fragments of each file of rank 0, and so on    by every rank, last

An attempt belongs to one driver under one lease, the hex digits to one start of its workers. So no two processes write
to the same place, and one that has lost its lease can do no harm by writing on. A checkpoint is complete when the lists
of all ranks exist and every listed file has its size. A run resumes from the complete checkpoint with the most steps,
of any attempt. An attempt keeps its last few; those of earlier attempts and of a finished model stay until `gc` deletes
them.

Each worker opens the files that overlap with what it holds now, and reads the elements that it needs. A complete
checkpoint with a wrong byte stops the run: that is damage, which no interruption causes.

Why not DeepSpeed's own checkpoints: they are pickle and refuse another number of workers and another stage, and their
universal form needs a separate program to convert the whole checkpoint before a run can resume.

Given up: a node's disk must hold the files that its workers need of a checkpoint on object storage.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ParamSpec, TypedDict

from humpback_ray import storage
from humpback_ray.config import difference
from humpback_ray.train.checkpoint.fragments import Fragment
from humpback_ray.train.job import StepMetrics, TrainingStopped

logger = logging.getLogger(__name__)

P = ParamSpec("P")

_FILE = re.compile(r"(?P<checkpoint>([^/]+/)?step-\d+-[^/]+)/(?P<file>.+)")

STATE = "state.json"
PART_BYTES = 1 << 30
"""Most bytes of fragments in a file, unless one is larger; a worker needs as much memory and disk beside its copy."""

PAUSES_S = (1.0, 10.0)
"""Seconds between tries to store a file; within each try, `storage` has its own retries."""

DELETE_IT = "delete this checkpoint to resume from an earlier one"

Span = tuple[str, int, int]
"""Elements of a flattened parameter: its name, the first element, the one after the last."""


class Entry(TypedDict):
    """A file in a rank's list."""

    bytes: int
    sha256: str
    fragments: list[Span]


Files = dict[str, Entry]
"""Entries by file name."""


def write(fragments: Iterable[Fragment], rank: int, uri: str, state: Mapping[str, object]) -> None:
    """Store one rank's part of a checkpoint, its list last; only rank 0 writes `state`.

    Raises:
        OSError: a file could not be stored after several tries.
    """
    from safetensors.torch import save_file

    listed: Files = {}
    with TemporaryDirectory(prefix="humpback-checkpoint-") as folder:
        for number, part in enumerate(_parts(fragments)):
            path = Path(folder, f"rank-{rank:05d}-{number:03d}.safetensors")
            save_file({_key(f, kind): tensor for f in part for kind, tensor in f.tensors.items()}, path)
            listed[path.name] = {
                "bytes": path.stat().st_size,
                "sha256": storage.sha256_of(str(path)),
                "fragments": [(fragment.name, fragment.start, fragment.stop) for fragment in part],
            }
            _tried(storage.upload_file, path, storage.join(uri, path.name))
            path.unlink()
    if rank == 0:
        body = json.dumps(state).encode()
        listed[STATE] = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest(), "fragments": []}
        _tried(storage.write_bytes, storage.join(uri, STATE), body)
    _tried(storage.write_bytes, storage.join(uri, _list_of(rank)), json.dumps(listed).encode())


def _parts(fragments: Iterable[Fragment]) -> Iterator[list[Fragment]]:
    part: list[Fragment] = []
    for fragment in fragments:
        if part and sum(one.bytes for one in part) + fragment.bytes > PART_BYTES:
            yield part
            part = []
        part.append(fragment)
    yield part


def _key(fragment: Fragment, kind: str) -> str:
    return f"{fragment.name}/{fragment.start}/{kind}"


def _tried(store: Callable[P, None], *arguments: P.args, **more: P.kwargs) -> None:
    for pause_s in PAUSES_S:
        try:
            return store(*arguments, **more)
        except OSError as error:
            logger.warning("could not store a part of a checkpoint, trying again in %g s: %s", pause_s, error)
            time.sleep(pause_s)
    return store(*arguments, **more)


def state_of(identity: Mapping[str, object], history: Sequence[StepMetrics], workers: int) -> dict[str, object]:
    """Return the content of `state.json`."""
    return {
        "step": len(history), "workers": workers, "identity": identity, "history": [vars(row) for row in history]
    }  # fmt: skip


def newest(uri: str) -> str | None:
    """Return the complete checkpoint with the most steps under `<stage>/checkpoints`, of any attempt, or None."""
    return next(complete(uri, logger.warning), None)


def complete(uri: str, log: Callable[..., None] = logger.debug) -> Iterator[str]:
    """Yield the complete checkpoints under a directory, the one with the most steps first; log the others."""
    found = _listed(uri)
    for name in sorted(found, key=_step, reverse=True):
        checkpoint = storage.join(uri, name)
        lacking = missing(checkpoint, found[name])
        if lacking is None:
            yield checkpoint
        else:
            log("ignoring checkpoint %s, which is incomplete: %s is missing or has the wrong size", checkpoint, lacking)


def missing(uri: str, sizes: Mapping[str, int]) -> str | None:
    """Name a file of a checkpoint that is missing or has the wrong size; None if the checkpoint is complete.

    Args:
        uri: the checkpoint.
        sizes: bytes of the files that a listing found there.
    """
    if STATE not in sizes:
        return STATE
    lists = [_list_of(rank) for rank in range(_read(uri, STATE)["workers"])]
    expected: dict[str, int] = {}
    for name in lists:
        if name not in sizes:
            return name
        expected |= {file: entry["bytes"] for file, entry in _read(uri, name).items()}
    return next((name for name, size in expected.items() if sizes.get(name) != size), None)


def _read(uri: str, name: str) -> Any:
    return json.loads(storage.read_bytes(storage.join(uri, name)))


def prune(uri: str, keep: int) -> None:
    """Delete checkpoints older than the last `keep` complete ones under `<stage>/checkpoints/<attempt>`."""
    found = _listed(uri)
    kept = [checkpoint.rsplit("/", 1)[-1] for checkpoint in itertools.islice(complete(uri), keep)]
    if len(kept) == keep:
        for name in [name for name in found if _step(name) < _step(kept[-1])]:
            for file in found[name]:
                storage.delete(storage.join(uri, name, file))


def _listed(uri: str) -> dict[str, dict[str, int]]:
    """Return the checkpoints under a directory by relative path, each with the sizes of its files."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for entry in storage.listing(uri):
        if match := _FILE.fullmatch(entry.name):
            found[match["checkpoint"]][match["file"]] = entry.bytes
    return found


def _step(name: str) -> tuple[int, str]:
    """Return a key that orders checkpoints by step and then by name."""
    return int(name.rsplit("/", 1)[-1].split("-")[1]), name


def _list_of(rank: int) -> str:
    return f"rank-{rank:05d}.json"


def read_state(uri: str, identity: Mapping[str, object]) -> list[StepMetrics]:
    """Return the metrics of a checkpoint's steps, after checking that it belongs to this run.

    Raises:
        TrainingStopped: the checkpoint belongs to another run.
    """
    state = _read(uri, STATE)
    found = difference(state["identity"], json.loads(json.dumps(identity)))
    if found:
        field, old, new = found
        raise TrainingStopped(
            f"{identity['model']}: the checkpoint of step {state['step']} was made with {field} = {old} and this run "
            f"has {new}; set it back to resume, or delete the checkpoints to train from the start"
        )
    return [StepMetrics(**row) for row in state["history"]]


@dataclass(frozen=True)
class Fetched:
    """Local copies of the checkpoint files that overlap with one worker's fragments."""

    uri: str
    files: Files
    paths: dict[str, Path]

    def problem(self) -> str | None:
        """Compare the files with their digests; return what is wrong, or None."""
        for name, path in self.paths.items():
            if not path.is_file() or storage.sha256_of(str(path)) != self.files[name]["sha256"]:
                return f"{self.uri}: {name} is missing or does not match its digest; {DELETE_IT}"
        return None

    def fill(self, fragments: Sequence[Fragment]) -> str | None:
        """Copy the checkpoint into the fragments' tensors; return what it lacks, or None."""
        from safetensors import safe_open

        wanted = {fragment.name: fragment for fragment in fragments}
        filled: Counter[str] = Counter()
        for file, path in self.paths.items():
            if file == STATE:
                continue
            with safe_open(path, framework="pt") as content:
                for name, start, stop in self.files[file]["fragments"]:
                    if _overlap([(name, start, stop)], wanted):
                        part = wanted[name].part(start, stop)
                        for kind, tensor in part.tensors.items():
                            whole = content.get_slice(_key(Fragment(name, start, {}), kind))
                            tensor.copy_(whole[part.start - start : part.stop - start])
                        filled[name] += part.stop - part.start
        for name, fragment in wanted.items():
            if filled[name] != fragment.stop - fragment.start:
                return (
                    f"{self.uri} has only {filled[name]:,} of the elements {fragment.start:,} to {fragment.stop:,} of "
                    f"{name}; {DELETE_IT}"
                )
        return None

    def forget(self) -> None:
        """Delete local copies of files on object storage; the workers of a node share them."""
        for path in self.paths.values():
            storage.forget_local_file(self.uri, path)


def fetch(uri: str, fragments: Sequence[Fragment]) -> Fetched | None:
    """Get the files that one worker needs; None if the workers that wrote them are still running and pruned them."""
    wanted = {fragment.name: fragment for fragment in fragments}
    with contextlib.suppress(FileNotFoundError):
        files: Files = {}
        for rank in range(_read(uri, STATE)["workers"]):
            files |= _read(uri, _list_of(rank))
        names = [name for name, entry in files.items() if name == STATE or _overlap(entry["fragments"], wanted)]
        return Fetched(uri, files, {name: storage.local_file(storage.join(uri, name)) for name in names})
    return None


def _overlap(listed: Iterable[Span], wanted: Mapping[str, Fragment]) -> bool:
    """Tell whether any listed span has elements that are wanted."""
    spans = ((wanted[name], start, stop) for name, start, stop in listed if name in wanted)
    return any(start < fragment.stop and fragment.start < stop for fragment, start, stop in spans)
