"""Evaluation: every model of the run answers the same prompts.

`evaluation/prompts` is the prompt files as one table; `evaluation/<model>` has an answer per prompt, and beside it
`model_outputs.json`, which AlpacaEval's own tool reads.
"""

import json
from collections import Counter

from pydantic import Field

from humpback_ray import storage
from humpback_ray.config import Config
from humpback_ray.evaluate.respond import PROMPT, EvaluateRecipe, Responder, alpaca_outputs, load_prompts
from humpback_ray.inventory import Inventory
from humpback_ray.ledger import Attempt, Commit, Manifest
from humpback_ray.placement import PoolPlacement, TaskPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.records import RESPONSE
from humpback_ray.stage import Model, Place, Stage, TableWriter


class EvaluateConfig(Config):
    """The `evaluation/*` stages."""

    recipe: EvaluateRecipe = Field(default_factory=EvaluateRecipe)
    placement: PoolPlacement = PoolPlacement(rows_per_shard=200)
    prompts_placement: TaskPlacement = TaskPlacement()


def make_prompts(config: EvaluateConfig, files: Inventory, place: Place) -> Manifest:
    """Read the prompt files into one table."""
    stage = Stage(place, {"version": config.recipe.version}, {"files": files}, PROMPT)
    return stage.once(read_files, (files,), config.prompts_placement)


def read_files(attempt: Attempt, files: Inventory) -> Commit:
    """Write a table per prompt file."""
    writer, seen = TableWriter(attempt, PROMPT), Counter[tuple[str, ...]]()
    for file in files.files:
        writer.write(load_prompts(file, seen))
    return writer.commit()


def make_answers(
    config: EvaluateConfig, chat: ChatRecipe, prompts: Manifest, model: Model, name: str, place: Place
) -> Manifest:
    """Let one model answer every prompt, with the source tags of the recipe."""
    identity = {
        "evaluate": config.recipe.model_dump(mode="json", exclude={"inputs"}),
        "chat": chat.model_dump(mode="json"),
    }
    stage = Stage(place, identity, {"prompts": prompts, "model": model.source}, RESPONSE)
    answers = stage.run(Responder, (config.recipe, chat, model.directory), config.placement, prompts)
    outputs = storage.join(place.uri, "model_outputs.json")
    if place.check_unread or not storage.exists(outputs):
        records = [record for table in answers.tables() for record in alpaca_outputs(table, name)]
        storage.write_bytes(outputs, json.dumps(records, indent=1, ensure_ascii=False).encode())
    return answers
