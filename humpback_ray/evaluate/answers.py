"""Evaluation: every model of the run answers the same prompts.

`evaluation/prompts` holds the prompt files as one table. `evaluation/<model>` has an answer per prompt and
`model_outputs.json` for AlpacaEval's own tool: an entry per prompt, with an empty output if there is no answer.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow as pa
from pydantic import Field

from humpback_ray import storage
from humpback_ray.config import Config
from humpback_ray.evaluate.respond import EvaluateRecipe, Responder, alpaca_outputs
from humpback_ray.inputs.promptfiles import PROMPT, load_prompts
from humpback_ray.placement import PoolPlacement, TaskPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.records import RESPONSE
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.enough import keys_in, refuse_few
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.models import Model
from humpback_ray.stages.outputs import TableWriter
from humpback_ray.stages.stage import Place, Stage
from humpback_ray.storage import InputFile
from humpback_ray.storage.inventory import Inventory

logger = logging.getLogger(__name__)


class EvaluateConfig(Config):
    """The `evaluation/*` stages."""

    recipe: EvaluateRecipe = Field(default_factory=EvaluateRecipe)
    placement: PoolPlacement = PoolPlacement(rows_per_shard=200)
    prompts_placement: TaskPlacement = TaskPlacement()


def make_prompts(config: EvaluateConfig, files: Inventory, place: Place) -> Manifest:
    """Read the prompt files into one table.

    Raises:
        StageFailed: fewer prompts than `min_kept`.
    """
    stage = Stage(place, {"version": config.recipe.version}, {"files": files}, PROMPT)
    made = stage.once(read_files, (files,), config.prompts_placement)
    refuse_few(made, config.recipe.min_kept, "evaluate.recipe.min_kept", lambda: keys_in(files.files))
    return made


def read_files(attempt: Attempt, files: Inventory) -> Commit:
    """Write one table per prompt file."""
    writer, seen = TableWriter(attempt, PROMPT), Counter[tuple[str, ...]]()
    for file in files.files:
        writer.write(load_prompts(file, seen))
    return writer.commit()


def ids_again(manifest: Manifest, files: Sequence[InputFile]) -> Iterator[pa.ChunkedArray]:
    """Read the files of a stage again and yield the ids of their prompts."""
    seen = Counter[tuple[str, ...]]()
    for file in files:
        yield load_prompts(file, seen)["id"]


def make_answers(
    config: EvaluateConfig, chat: ChatRecipe, prompts: Manifest, model: Model, name: str, place: Place
) -> Manifest:
    """Let one model answer every prompt, with the source tags of the recipe."""
    identity = {
        "evaluate": config.recipe.model_dump(mode="json", exclude={"inputs", "min_kept"}),
        "chat": chat.model_dump(mode="json"),
    }
    stage = Stage(place, identity, {"prompts": prompts, "model": model.source}, RESPONSE)
    answers = stage.run(Responder, (config.recipe, chat, model.directory), config.placement, prompts)
    outputs = storage.join(place.uri, "model_outputs.json")
    if place.check_unread or not storage.exists(outputs):
        records = alpaca_outputs(prompts.tables(), answers.tables(), name)
        storage.write_bytes(outputs, json.dumps(records, indent=1, ensure_ascii=False).encode())
    if missing := prompts.kept - answers.kept:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in answers.drops.items())
        logger.warning("%s: %d of %d prompts have an empty output: %s", place.name, missing, prompts.kept, reasons)
    return answers
