"""The embedded sample as stages: a toy web with seed pairs, a base model trained on that web, and a check of the model.

A run without inputs uses all of them; a run with real pages but no model can still try the base model.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from humpback_ray import storage
from humpback_ray.config import Config
from humpback_ray.placement import TaskPlacement
from humpback_ray.records import CANDIDATE
from humpback_ray.sample.base import BaseRecipe, train_base
from humpback_ray.sample.selfcheck import check_pairs, check_table
from humpback_ray.sample.world import WorldRecipe, documents, write_world
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.globalstep import PROGRESS
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.outputs import TableWriter, upload_files
from humpback_ray.stages.stage import Place, Stage


class SampleConfig(Config):
    """The `sample/web` and `sample/base` stages."""

    world: WorldRecipe = WorldRecipe()
    base: BaseRecipe = BaseRecipe()
    placement: TaskPlacement = TaskPlacement()
    """Each stage is one task; the base model trains on two cores at most, however many are reserved for it."""


def make_web(config: SampleConfig, place: Place) -> Manifest:
    """Write the toy web: WARC files, seed.jsonl, prompt files, and the truth, which no stage reads."""
    stage = Stage(place, config.world, {})
    return stage.once(write_web, (config.world,), config.placement)


def write_web(attempt: Attempt, recipe: WorldRecipe) -> Commit:
    """Make the world in a temporary directory and upload it."""
    with tempfile.TemporaryDirectory() as directory:
        counts = write_world(recipe, Path(directory))
        return attempt.describe(upload_files(attempt, Path(directory)), {}, extra={"counts": counts})


def web_files(web: Manifest, pattern: str) -> str:
    """Return the URI of files of the toy web for a pattern: `web/*.warc.gz`, `seed.jsonl`, `prompts.jsonl`."""
    directory = next(file.name for file in web.files if file.name.endswith("seed.jsonl")).removesuffix("/seed.jsonl")
    return storage.join(web.uri, directory, pattern)


def make_base(config: SampleConfig, web: Manifest, place: Place) -> Manifest:
    """Train the base model from scratch on the toy web's text."""
    stage = Stage(place, config.base, {"web": web})
    return stage.once(write_base, (config,), config.placement)


def write_base(attempt: Attempt, config: SampleConfig) -> Commit:
    """Train in a temporary directory and upload the model."""
    with tempfile.TemporaryDirectory() as directory:
        texts = documents(config.world)
        told = train_base(config.base, texts, Path(directory), teller(attempt.ledger.at(PROGRESS)))
        files = upload_files(attempt, Path(directory))
    return attempt.describe(files, {}, extra={"model": attempt.directory, **told})


def make_check(config: SampleConfig, web: Manifest, place: Place) -> Manifest:
    """Write pairs of known quality as candidates; their ratings check the base model (selfcheck.py)."""

    def write(attempt: Attempt) -> Commit:
        writer = TableWriter(attempt, CANDIDATE)
        writer.write(check_table(check_pairs(config.world)))
        return writer.commit()

    return Stage(place, {"version": 1}, {"web": web}, CANDIDATE).leased(write)


def teller(uri: str, every_s: float = 5.0) -> Callable[[int, int, float], None]:
    """Return a callback (step, steps, loss) that writes its figures for the driver's progress every few seconds."""
    last = time.monotonic()

    def tell(step: int, steps: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last >= every_s:
            last = time.monotonic()
            storage.write_bytes(uri, f"step {step:,} of {steps:,}, loss {loss:.3f}".encode())

    return tell
