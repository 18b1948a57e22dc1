"""A fine-tune as a stage: the base model and pairs in, one model directory out.

The lease makes sure that one driver publishes; the checkpoints under `<stage>/checkpoints/<attempt>` make the same
command go on where a killed one stopped. They stay there when the model is finished, until `gc` takes them.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict

from pydantic import Field

from humpback_ray import storage
from humpback_ray.config import Config
from humpback_ray.ledger import Attempt, Commit, DataFile, Manifest
from humpback_ray.placement import TrainPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.stage import Model, Place, Stage, StageFailed
from humpback_ray.train.fit import TrainingFailed, launch
from humpback_ray.train.job import TrainingStopped, TrainJob
from humpback_ray.train.recipe import TrainRecipe

logger = logging.getLogger(__name__)


class TrainConfig(Config):
    """Every `models/*` stage."""

    recipe: TrainRecipe = TrainRecipe()
    placement: TrainPlacement = Field(default=TrainPlacement())


def fine_tune(
    config: TrainConfig, chat: ChatRecipe, name: str, base: Model, pairs: Sequence[Manifest], place: Place
) -> Manifest:
    """Fine-tune the base model on the kept pairs of the given stages; `backward` learns response → instruction.

    The fingerprint holds the settings of this model alone: other models' steps and rates do not touch it.
    """
    recipe = config.recipe.of(name)
    identity = {
        "model": name,
        "train": recipe.model_dump(mode="json", exclude={"joint"}),
        "chat": chat.model_dump(mode="json"),
    }
    inputs = {"base": base.source, **{manifest.stage: manifest for manifest in pairs}}
    stage = Stage(place, identity, inputs)
    if not any(manifest.kept for manifest in pairs):
        counts = ", ".join(f"{manifest.stage}: 0 of {manifest.rows:,} rows kept" for manifest in pairs)
        raise StageFailed(f"{place.name}: there is no pair to train on ({counts})")

    def train(attempt: Attempt) -> Commit:
        directory = attempt.directory
        uris = [storage.join(m.uri, file.name) for m in pairs for file in m.files if file.kept]
        job = TrainJob(
            model=name, direction="backward" if name == "backward" else "forward", base_uri=base.uri,
            pair_uris=tuple(uris), recipe=recipe, chat=chat, export_uri=attempt.ledger.at(directory),
        )  # fmt: skip
        try:
            result = launch(job, config.placement, f"{attempt.number:04d}", attempt.ledger.at("checkpoints"))
        except (TrainingStopped, TrainingFailed) as error:
            raise StageFailed(f"{place.name}: {error}") from error
        if recipe.dropout:
            logger.info("%s: %s", place.name, dropout_words(recipe.dropout, result.dropouts))
        files = [DataFile(f"{directory}/{entry.name}", entry.bytes, entry.sha256) for entry in result.files]
        extra = {
            "model": directory, "history": [asdict(step) for step in result.metrics], "examples": result.examples,
            "steps": len(result.metrics), "parameters": result.parameters, "batch_examples": result.batch_examples,
            "dropouts": result.dropouts, "resumed_from": result.resumed_from,
        }  # fmt: skip
        return attempt.describe(files, {}, result.tokens, extra)

    return stage.leased(train)


def dropout_words(probability: float, fields: Sequence[str]) -> str:
    """Say where a recipe's dropout acted: on the fields of the model's configuration that it was set on."""
    if not fields:
        return f"trained without dropout: this family has none, so the recipe's {probability:g} acts nowhere"
    return f"dropout {probability:g} acted on {', '.join(fields)}, all that this family has"
