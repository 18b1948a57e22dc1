"""Checkpoints of a fine-tune, in a layout of our own: any number of workers and any ZeRO stage can resume from them.

    <stage>/checkpoints/<attempt>/step-000100-3fa9c1/
        state.json                   step, workers, identity of the run, metrics of every step so far    by rank 0
        rank-00000-000.safetensors   fragments (see fragments.py), a gigabyte or so in each file     by every rank
        rank-00000.json              size, digest and fragments of each file of rank 0, and so on    by every rank, last

An attempt belongs to one driver under one lease, the hex digits to one start of its workers. So no two processes write
to the same place, and one that has lost its lease can do no harm by writing on. A checkpoint is complete when the lists
of all ranks exist and every listed file has its size. A run resumes from the sound checkpoint with the most steps, of
any attempt. An attempt keeps its last few complete ones; those of earlier attempts and of a finished model stay until
`gc` deletes them.

Each worker opens the files that overlap with what it holds now, and reads the elements that it needs. A checkpoint that
is incomplete, that cannot be read, whose JSON is damaged (contents.py) or that has a wrong byte is skipped with a
warning. If all complete ones have wrong bytes, the run stops: that is damage, which no interruption causes.

Why not DeepSpeed's own checkpoints: they are pickle and refuse another number of workers and another stage, and their
universal form needs a separate program to convert the whole checkpoint before a run can resume.

Given up: a node's disk must hold the files that its workers need of a checkpoint on object storage.
"""

import hashlib
import itertools
import json
import logging
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec

from humpback_ray import storage
from humpback_ray.config import difference
from humpback_ray.train.checkpoint.contents import STATE, Contents, Span, Unusable, list_of, read
from humpback_ray.train.checkpoint.fragments import WEIGHT, Fragment
from humpback_ray.train.disk import explained, save_tensors, scratch
from humpback_ray.train.job import StepMetrics, TrainingStopped

logger = logging.getLogger(__name__)

P = ParamSpec("P")

_FILE = re.compile(r"(?P<checkpoint>([^/]+/)?step-\d+-[^/]+)/(?P<file>.+)")

PART_BYTES = 1 << 30
"""Most bytes of fragments in a file, unless one is larger; a worker needs as much memory and disk beside its copy."""

PAUSES_S = (1.0, 10.0)
"""Seconds between tries to store a file; within each try, `storage` has its own retries."""


def write(fragments: Sequence[Fragment], rank: int, uri: str, state: Mapping[str, object]) -> None:
    """Store one rank's part of a checkpoint, its list last; only rank 0 writes `state`.

    Raises:
        OSError: a file could not be stored after several tries.
    """
    listed: dict[str, dict[str, object]] = {}
    with scratch("checkpoint", f"writing {uri}", sum(fragment.bytes for fragment in fragments)) as folder:
        for number, part in enumerate(_parts(fragments)):
            path = folder / f"rank-{rank:05d}-{number:03d}.safetensors"
            _tried(save_tensors, {_key(f, kind): tensor for f in part for kind, tensor in f.tensors.items()}, path)
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
    _tried(storage.write_bytes, storage.join(uri, list_of(rank)), json.dumps(listed).encode())


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


def newest(uri: str, besides: Collection[str] = ()) -> Contents | None:
    """Return the complete checkpoint with the most steps under `<stage>/checkpoints`, of any attempt, or None.

    Args:
        uri: the directory.
        besides: checkpoints that are left out.
    """
    return next(complete(uri, logger.warning, besides), None)


def complete(uri: str, log: Callable[..., None] = logger.debug, besides: Collection[str] = ()) -> Iterator[Contents]:
    """Yield the complete checkpoints under a directory, the one with the most steps first; log the others.

    Raises:
        OSError: some could not be read, and no other is complete: training anew would cost more than another try.
    """
    found, sound, failure = listed(uri), 0, None
    for name in sorted(found, key=_order, reverse=True):
        checkpoint = storage.join(uri, name)
        if checkpoint in besides:
            continue
        try:
            contents = read(checkpoint, found[name])
        except Unusable as problem:
            log("ignoring checkpoint %s, which is %s: %s", checkpoint, problem.words, problem)
        except OSError as error:
            log("ignoring checkpoint %s, which cannot be read: %s", checkpoint, storage.words(error))
            failure = failure or error
        else:
            sound += 1
            yield contents
    if failure is not None and not sound:
        raise failure


def prune(uri: str, keep: int, besides: Collection[str] = ()) -> None:
    """Delete checkpoints older than the last `keep` complete ones under `<stage>/checkpoints/<attempt>`.

    Args:
        uri: the attempt's directory.
        keep: number of complete checkpoints that are kept.
        besides: checkpoints with wrong bytes: they do not count as complete.
    """
    found = listed(uri)
    kept = [one.state.step for one in itertools.islice(complete(uri, besides=besides), keep)]
    if len(kept) == keep:
        for name in [name for name in found if _order(name)[0] < kept[-1]]:
            for file in found[name]:
                storage.delete(storage.join(uri, name, file))


def listed(uri: str) -> dict[str, dict[str, int]]:
    """Return the checkpoints under a directory by relative path, each with the sizes of its files."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for entry in storage.listing(uri):
        if match := _FILE.fullmatch(entry.name):
            found[match["checkpoint"]][match["file"]] = entry.bytes
    return found


def _order(name: str) -> tuple[int, str]:
    """Return a key that orders checkpoints by step and then by name."""
    return int(name.rsplit("/", 1)[-1].split("-")[1]), name


def altered(contents: Contents) -> str | None:
    """Compare a checkpoint's state with its digest; return what is wrong, or None."""
    return _unlike_digest(STATE, storage.join(contents.uri, STATE), contents)


def _unlike_digest(name: str, path: str, contents: Contents) -> str | None:
    try:
        found = storage.sha256_of(path)
    except OSError as error:
        return f"{name} cannot be read: {storage.words(error)}"
    return None if found == contents.files[name].sha256 else f"{name} does not match its digest"


def check_identity(contents: Contents, identity: Mapping[str, object]) -> None:
    """Check that a checkpoint belongs to this run.

    Raises:
        TrainingStopped: it belongs to another run.
    """
    found = difference(contents.state.identity, json.loads(json.dumps(identity)))
    if found:
        field, old, new = found
        raise TrainingStopped(
            f"{identity['model']}: the checkpoint of step {contents.state.step} was made with {field} = {old} and this "
            f"run has {new}; set it back to resume, or delete the checkpoints to train from the start"
        )


@dataclass(frozen=True)
class Fetched:
    """Local copies of the checkpoint files that overlap with one worker's fragments."""

    contents: Contents
    paths: dict[str, Path]

    def problem(self, fragments: Sequence[Fragment]) -> str | None:
        """Compare the files with their digests and with what the fragments need; return what is wrong, or None."""
        problems = (_unlike_digest(name, str(path), self.contents) for name, path in self.paths.items())
        unlike = (self._unlike_list(name, path) for name, path in self.paths.items())
        return next((said for said in itertools.chain(problems, unlike, self._lacking(fragments)) if said), None)

    def _unlike_list(self, name: str, path: Path) -> str | None:
        """Compare the tensors of a file with the list."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as content:
                for fragment, start, stop in self.contents.files[name].fragments:
                    (elements,) = content.get_slice(_key(Fragment(fragment, start, {}), WEIGHT)).get_shape()
                    if elements != stop - start:
                        return f"{name} has {elements:,} elements of {fragment} from {start:,} on, not {stop - start:,}"
        except (SafetensorError, OSError, ValueError) as error:
            return f"{name} does not hold what its list says: {error}"
        return None

    def _lacking(self, fragments: Sequence[Fragment]) -> Iterator[str]:
        """Name the fragments that the listed files do not have, or have twice."""
        spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for name in self.paths:
            for fragment, start, stop in self.contents.files[name].fragments:
                spans[fragment].append((start, stop))
        for fragment in fragments:
            start, stop = fragment.start, fragment.stop
            found = sorted((max(low, start), min(high, stop)) for low, high in spans[fragment.name])
            found = [(low, high) for low, high in found if low < high]
            ends = [start, *(high for _, high in found)]
            if [low for low, _ in found] != ends[:-1] or ends[-1] != stop:
                count = sum(high - low for low, high in found)
                yield f"it has {count:,} of the elements {start:,} to {stop:,} of {fragment.name}"

    def fill(self, fragments: Sequence[Fragment]) -> None:
        """Copy the checkpoint into the fragments' tensors; `problem` must have found nothing."""
        from safetensors import safe_open

        wanted = {fragment.name: fragment for fragment in fragments}
        for file, path in self.paths.items():
            with safe_open(path, framework="pt") as content:
                for name, start, stop in self.contents.files[file].fragments:
                    if _overlap([(name, start, stop)], wanted):
                        part = wanted[name].part(start, stop)
                        for kind, tensor in part.tensors.items():
                            whole = content.get_slice(_key(Fragment(name, start, {}), kind))
                            tensor.copy_(whole[part.start - start : part.stop - start])

    def forget(self) -> None:
        """Delete local copies of files on object storage; the workers of a node share them."""
        for path in self.paths.values():
            storage.forget_local_file(self.contents.uri, path)


def fetch(contents: Contents, fragments: Sequence[Fragment]) -> Fetched | None:
    """Get the files that one worker needs; None if the workers that wrote them are still running and pruned them.

    Raises:
        OSError: a file cannot be fetched, for instance because the disk is full.
    """
    wanted = {fragment.name: fragment for fragment in fragments}
    uri, files = contents.uri, contents.files
    names = [name for name in files if _overlap(files[name].fragments, wanted)]
    needed = sum(files[name].bytes for name in names)
    try:
        with explained(f"fetching {uri}", needed, tempfile.gettempdir):
            return Fetched(contents, {name: storage.local_file(storage.join(uri, name)) for name in names})
    except FileNotFoundError:
        if not Path(tempfile.gettempdir()).is_dir():
            raise
        return None


def _overlap(spans: Iterable[Span], wanted: Mapping[str, Fragment]) -> bool:
    """Tell whether any listed span has elements that are wanted."""
    found = ((wanted[name], start, stop) for name, start, stop in spans if name in wanted)
    return any(start < fragment.stop and fragment.start < stop for fragment, start, stop in found)
