"""A fine-tune as a stage: the base model and tokenised pairs in, one model directory out.

The lease makes sure that one driver publishes; the checkpoints under `<stage>/checkpoints/<attempt>` make the same
command go on where a killed one stopped. They stay there when the model is finished, until `gc` takes them.
"""

from collections.abc import Sequence
from dataclasses import asdict

from pydantic import Field

from humpback_ray import storage
from humpback_ray.config import Config
from humpback_ray.ledger import Attempt, Commit, DataFile, Manifest
from humpback_ray.placement import PoolPlacement, TrainPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.stage import Model, Place, Stage, StageFailed
from humpback_ray.train.fit import TrainingFailed, launch
from humpback_ray.train.job import TrainingStopped, TrainJob
from humpback_ray.train.recipe import TrainRecipe


class TrainConfig(Config):
    """Every `models/*` stage, and the `tokens` that they learn from."""

    recipe: TrainRecipe = TrainRecipe()
    placement: TrainPlacement = Field(default=TrainPlacement())
    tokens_placement: PoolPlacement = PoolPlacement(max_replicas=8, rows_per_shard=20_000)
    """Of the actors that tokenise pairs, some thousand a second each."""


def fine_tune(
    config: TrainConfig, chat: ChatRecipe, name: str, base: Model, tokens: Sequence[Manifest], place: Place
) -> Manifest:
    """Fine-tune the base model on the kept examples of the given token stages.

    The fingerprint holds the settings of this model alone: other models' steps and rates do not touch it.
    """
    recipe = config.recipe.of(name)
    identity = {
        "model": name,
        "train": recipe.identity(),
        "chat": chat.model_dump(mode="json"),
    }
    inputs = {"base": base.source, **{manifest.stage: manifest for manifest in tokens}}
    stage = Stage(place, identity, inputs)
    if not any(manifest.kept for manifest in tokens):
        counts = ", ".join(f"{manifest.stage}: 0 of {manifest.rows:,} rows kept" for manifest in tokens)
        raise StageFailed(
            f"{place.name}: there is no pair to train on ({counts}); where they are too_long, raise "
            "train.recipe.max_length_tokens or set too_long to truncate"
        )

    def train(attempt: Attempt) -> Commit:
        directory = attempt.directory
        uris = [storage.join(m.uri, file.name) for m in tokens for file in m.files]
        job = TrainJob(
            model=name, direction="backward" if name == "backward" else "forward", base_uri=base.uri,
            token_uris=tuple(uris), recipe=recipe, chat=chat, export_uri=attempt.ledger.at(directory),
        )  # fmt: skip
        try:
            result = launch(job, config.placement, f"{attempt.number:04d}", attempt.ledger.at("checkpoints"))
        except (TrainingStopped, TrainingFailed) as error:
            raise StageFailed(f"{place.name}: {error}") from error
        files = [DataFile(f"{directory}/{entry.name}", entry.bytes, entry.sha256) for entry in result.files]
        extra = {
            "model": directory, "history": [asdict(step) for step in result.metrics], "examples": result.examples,
            "steps": len(result.metrics), "parameters": result.parameters, "batch_examples": result.batch_examples,
            "dropouts": result.dropouts, "resumed_from": result.resumed_from,
        }  # fmt: skip
        return attempt.describe(files, {}, result.tokens, extra)

    return stage.leased(train)
