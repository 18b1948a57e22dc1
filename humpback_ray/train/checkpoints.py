"""Checkpoints of a fine-tune: DeepSpeed's own shards, what they belong to, and a checksum of every file.

    step-000100/state.json           step, identity of the run, metrics of every step so far      by rank 0
    step-000100/zero/*.pt            DeepSpeed's format, each rank its own files                  by every rank
    step-000100/sha256-00000.json    size and digest of each file of rank 0, and so on            by every rank

DeepSpeed's files are pickle, so nothing is unpickled before its digest was found right; `state.json` is JSON and
read first. DeepSpeed refuses another number of workers and another ZeRO stage, hence so do we, saying both.
"""

import json
from pathlib import Path
from typing import Any

from humpback_ray import storage
from humpback_ray.config import difference
from humpback_ray.train.job import StepMetrics, TrainingStopped

TAG = "zero"


def save(engine: Any, directory: Path, rank: int, identity: dict[str, Any], history: list[StepMetrics]) -> None:
    """Write one rank's part of a checkpoint; every rank calls it at once."""
    engine.save_checkpoint(str(directory), tag=TAG, save_latest=False)
    for script in directory.glob("*.py"):
        script.unlink()
    if rank == 0:
        state = {"step": len(history), "identity": identity, "history": [vars(row) for row in history]}
        (directory / "state.json").write_text(json.dumps(state), encoding="utf-8")
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    digests = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": storage.sha256_of(str(path))}
        for path in files
    }
    (directory / f"sha256-{rank:05d}.json").write_text(json.dumps(digests, indent=1), encoding="utf-8")


def read_state(directory: Path, identity: dict[str, Any]) -> list[StepMetrics]:
    """Return the metrics of the steps that a checkpoint holds, after checking that it belongs to this run.

    Raises:
        TrainingStopped: it is another run's, or was written by another number of workers or ZeRO stage.
    """
    state = json.loads((directory / "state.json").read_text(encoding="utf-8"))
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
        mine = path.stem in ("sha256-00000", f"sha256-{rank:05d}")
        listed |= {name: entry | {"mine": mine} for name, entry in entries.items()}
    strange = [path for path in directory.rglob("*.pt") if path.relative_to(directory).as_posix() not in listed]
    if strange:
        return f"{strange[0]} has no checksum; delete this checkpoint to go on from an earlier one"
    for name, entry in listed.items():
        path = directory / name
        if entry["mine"] and (not path.is_file() or storage.sha256_of(str(path)) != entry["sha256"]):
            return f"{path} is not what was written; delete this checkpoint to go on from an earlier one"
    return None


def load(engine: Any, directory: Path) -> None:
    """Put a checked checkpoint's weights and optimizer state into the engine; every rank calls it at once."""
    path, _ = engine.load_checkpoint(str(directory), tag=TAG)
    if path is None:
        raise TrainingStopped(f"DeepSpeed found no checkpoint in {directory}")
