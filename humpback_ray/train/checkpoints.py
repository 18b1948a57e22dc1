"""Checkpoints of a fine-tune: DeepSpeed's own shards, what they belong to, and a checksum of every file.

    <stage>/checkpoints/<attempt>/step-000100-3fa9c1/
        state.json          step, identity of the run, metrics of every step so far      by rank 0
        zero/*.pt           DeepSpeed's format, each rank its own files                  by every rank
        sha256-00000.json   size and digest of each file of rank 0, and so on            by every rank, last

An attempt is of one driver under one lease, the hex digits of one start of its workers. So nobody writes where another
did, and whoever was given up may go on writing without harm. A checkpoint is complete when the list of every rank is
there and every file listed has its size; a run goes on from the complete one with the most steps, of any attempt.
An attempt keeps its last two; those of earlier attempts and of a finished model stay until `gc` takes them.

DeepSpeed's files are pickle, so nothing is unpickled before its digest was found right; `state.json` is JSON and
read first. A complete checkpoint with a wrong byte stops the run: that is damage, and no interruption makes it.
DeepSpeed refuses another number of workers and another ZeRO stage, hence so do we, saying both.
"""

import contextlib
import json
import logging
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from humpback_ray import storage
from humpback_ray.config import difference
from humpback_ray.train.job import StepMetrics, TrainingStopped

logger = logging.getLogger(__name__)

_FILE = re.compile(r"(?P<checkpoint>([^/]+/)?step-\d+-[^/]+)/(?P<file>.+)")

TAG = "zero"
STATE = "state.json"
KEPT = 2
"""Checkpoints that an attempt keeps: the last one and, should it be damaged, the one before."""


def save(engine: Any, directory: Path, rank: int, identity: dict[str, Any], history: list[StepMetrics]) -> None:
    """Write one rank's part of a checkpoint to a directory of its own; every rank calls it at once."""
    engine.save_checkpoint(str(directory), tag=TAG, save_latest=False)
    for script in directory.glob("*.py"):
        script.unlink()
    if rank == 0:
        state = {"step": len(history), "identity": identity, "history": [vars(row) for row in history]}
        (directory / STATE).write_text(json.dumps(state), encoding="utf-8")
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    digests = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": storage.sha256_of(str(path))}
        for path in files
    }
    (directory / _list_of(rank)).write_text(json.dumps(digests, indent=1), encoding="utf-8")


def upload(directory: Path, rank: int, uri: str) -> None:
    """Copy what a rank has written to the checkpoint's URI, its list last."""
    last = directory / _list_of(rank)
    for path in [*sorted(path for path in directory.rglob("*") if path.is_file() and path != last), last]:
        storage.upload_file(path, storage.join(uri, path.relative_to(directory).as_posix()))


def newest(uri: str) -> str | None:
    """Return the complete checkpoint with the most steps under `<stage>/checkpoints`, of any attempt, or None."""
    found = _listed(uri)
    for name in sorted(found, key=_step, reverse=True):
        checkpoint = storage.join(uri, name)
        lacking = missing(checkpoint, found[name])
        if lacking is None:
            return checkpoint
        logger.warning("%s is passed over, it was never finished: %s is missing or short", checkpoint, lacking)
    return None


def missing(uri: str, sizes: Mapping[str, int]) -> str | None:
    """Name a file that a checkpoint should have and has not, or not in its size; None if it is complete.

    Args:
        uri: the checkpoint.
        sizes: of the files that a listing found there.
    """
    if STATE not in sizes:
        return STATE
    workers = json.loads(storage.read_bytes(storage.join(uri, STATE)))["identity"]["placement"]["workers"]
    lists = [_list_of(rank) for rank in range(workers)]
    expected: dict[str, int] = {}
    for name in lists:
        if name not in sizes:
            return name
        entries = json.loads(storage.read_bytes(storage.join(uri, name)))
        expected |= {file: entry["bytes"] for file, entry in entries.items()}
    return next((name for name, size in expected.items() if sizes.get(name) != size), None)


def fetch(uri: str) -> Path | None:
    """Return a local directory with a checkpoint's files; None if its writer, an overtaken one, pruned it meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        directory = storage.local_directory(uri)
        if missing(str(directory), {entry.name: entry.bytes for entry in storage.listing(str(directory))}) is None:
            return directory
        forget(uri, directory)
    return None


def forget(uri: str, directory: Path) -> None:
    """Delete what `fetch` returned if it is a copy; one is shared by the workers of a node."""
    if storage.is_s3(uri):
        shutil.rmtree(directory, ignore_errors=True)


def prune(uri: str) -> None:
    """Delete all but the last two checkpoints under `<stage>/checkpoints/<attempt>`."""
    found = _listed(uri)
    for name in sorted(found, key=_step)[:-KEPT]:
        for file in found[name]:
            storage.delete(storage.join(uri, name, file))


def _listed(uri: str) -> dict[str, dict[str, int]]:
    """Return the checkpoints under a directory, by path relative to it, each with the sizes of its files."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for entry in storage.listing(uri):
        if match := _FILE.fullmatch(entry.name):
            found[match["checkpoint"]][match["file"]] = entry.bytes
    return found


def _step(name: str) -> tuple[int, str]:
    """Order checkpoints by step, those of one step by name."""
    return int(name.rsplit("/", 1)[-1].split("-")[1]), name


def _list_of(rank: int) -> str:
    return f"sha256-{rank:05d}.json"


def read_state(directory: Path, identity: dict[str, Any]) -> list[StepMetrics]:
    """Return the metrics of the steps that a checkpoint holds, after checking that it belongs to this run.

    Raises:
        TrainingStopped: it is another run's, or was written by another number of workers or ZeRO stage.
    """
    state = json.loads((directory / STATE).read_text(encoding="utf-8"))
    found = difference(state["identity"], json.loads(json.dumps(identity)))
    if found:
        field, old, new = found
        raise TrainingStopped(
            f"{identity['model']}: the checkpoint of step {state['step']} was made with {field} = {old} and this run "
            f"has {new}; set it back to go on, or delete the checkpoints to train from the start"
        )
    return [StepMetrics(**row) for row in state["history"]]


def problem(directory: Path, rank: int) -> str | None:
    """Compare the files that a rank will load (its own and rank 0's) with their digests; say what is wrong.

    A pickle that no rank has listed is refused as well.
    """
    listed: dict[str, dict[str, Any]] = {}
    for path in sorted(directory.glob("sha256-*.json")):
        entries = json.loads(path.read_text(encoding="utf-8"))
        mine = path.name in (_list_of(0), _list_of(rank))
        listed |= {name: entry | {"mine": mine} for name, entry in entries.items()}
    strange = [path for path in directory.rglob("*.pt") if path.relative_to(directory).as_posix() not in listed]
    if strange:
        return f"{strange[0].name} has no checksum"
    for name, entry in listed.items():
        path = directory / name
        if entry["mine"] and (not path.is_file() or storage.sha256_of(str(path)) != entry["sha256"]):
            return f"{name} is not what was written"
    return None


def load(engine: Any, directory: Path) -> None:
    """Put a checked checkpoint's weights and optimizer state into the engine; every rank calls it at once."""
    path, _ = engine.load_checkpoint(str(directory), tag=TAG)
    if path is None:
        raise TrainingStopped(f"DeepSpeed found no checkpoint in {directory}")
