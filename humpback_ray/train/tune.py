"""A fine-tune as a stage: the base model and tokenized pairs in, one model directory out.

The lease makes sure that only one driver publishes. After a crash, the same command resumes from the checkpoints under
`<stage>/checkpoints/<attempt>`. They stay there after the model is finished, until `gc` deletes them.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from humpback_ray import storage
from humpback_ray.config import Config
from humpback_ray.placement import PoolPlacement, TrainPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.stages.commits import Commit, DataFile
from humpback_ray.stages.drivers import waiting_uri
from humpback_ray.stages.errors import StageFailed
from humpback_ray.stages.ledger import Attempt, write_table
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.models import Model
from humpback_ray.stages.stage import Place, Stage
from humpback_ray.train.fit import TrainingFailed, launch
from humpback_ray.train.job import Provenance, TrainingStopped, TrainJob, TrainResult, metrics_table
from humpback_ray.train.recipe import TrainRecipe

logger = logging.getLogger(__name__)


class TrainConfig(Config):
    """Settings of every `models/*` stage, and of the `tokens` stages that they learn from."""

    recipe: TrainRecipe = TrainRecipe()
    placement: TrainPlacement = Field(default=TrainPlacement())
    tokens_placement: PoolPlacement = PoolPlacement(max_replicas=8, rows_per_shard=20_000)
    """Placement of the actors that tokenize pairs, each about a thousand per second."""

    licence: str = "unknown"
    """License that the model cards name, such as `apache-2.0`; it follows from those of the base model and the data.
    Not hashed."""


def fine_tune(
    config: TrainConfig, chat: ChatRecipe, name: str, base: Model, tokens: Sequence[Manifest], place: Place
) -> Manifest:
    """Fine-tune the base model on the kept examples of the given token stages.

    The fingerprint covers the settings of this model alone: other models' steps and rates do not change it.
    """
    recipe = config.recipe.of(name)
    identity = {
        "model": name,
        "train": recipe.identity(),
        "chat": chat.model_dump(mode="json"),
    }
    inputs = {"base": base.source, **{manifest.stage: manifest for manifest in tokens}}
    stage = Stage(place, identity, inputs)
    _refuse_nothing(tokens, place)
    job = TrainJob(
        model=name, direction="backward" if name == "backward" else "forward", base_uri=base.uri,
        token_uris=tuple(storage.join(m.uri, file.name) for m in tokens for file in m.files),
        recipe=recipe, chat=chat, export_uri="", provenance=_provenance(config, base, tokens, place, stage.fingerprint),
        base_files=base.directory.files,
    )  # fmt: skip

    def train(attempt: Attempt) -> Commit:
        here = replace(job, export_uri=attempt.ledger.at(attempt.directory))
        try:
            checkpoints, note = attempt.ledger.at("checkpoints"), waiting_uri(place.uri, place.submission)
            result = launch(here, config.placement, f"{attempt.number:04d}", checkpoints, note)
        except (TrainingStopped, TrainingFailed) as error:
            raise StageFailed(f"{place.name}: {error}") from error
        if recipe.dropout:
            logger.info("%s: %s", place.name, dropout_words(recipe.dropout, result.dropouts))
        return _commit(attempt, result)

    return stage.leased(train)


def _refuse_nothing(tokens: Sequence[Manifest], place: Place) -> None:
    if not any(manifest.kept for manifest in tokens):
        counts = ", ".join(f"{manifest.stage}: 0 of {manifest.rows:,} rows kept" for manifest in tokens)
        raise StageFailed(
            f"{place.name}: there are no pairs to train on ({counts}); if they were dropped as too_long, raise "
            "train.recipe.max_length_tokens or set train.recipe.too_long to truncate"
        )


def _provenance(
    config: TrainConfig, base: Model, tokens: Sequence[Manifest], place: Place, fingerprint: str
) -> Provenance:
    return Provenance(
        run=place.uri.removesuffix(f"/{place.name}").rpartition("/")[2], fingerprint=fingerprint,
        base=_name_of(base), base_digest=base.digest, licence=config.licence,
        inputs=tuple((manifest.stage, manifest.kept, manifest.digest) for manifest in tokens),
    )  # fmt: skip


def _commit(attempt: Attempt, result: TrainResult) -> Commit:
    """Describe a finished training: the model's files, and its metrics beside them."""
    directory = attempt.directory
    files = [DataFile(f"{directory}/{entry.name}", entry.bytes, entry.sha256) for entry in result.files]
    metrics = write_table(attempt.ledger, f"{directory}/metrics.parquet", metrics_table(result.metrics))
    validated = [step.validation_loss for step in result.metrics if step.validation_loss is not None]
    extra = {
        "model": directory, "examples": result.examples, "steps": len(result.metrics),
        "losses": [result.metrics[0].loss, result.metrics[-1].loss],
        "validation_losses": [validated[0], validated[-1]] if validated else None,
        "parameters": result.parameters, "trainable_parameters": result.trainable_parameters,
        "batch_examples": result.batch_examples, "dropouts": result.dropouts, "peak": result.peak,
        "greedy": result.greedy, "resumed_from": result.resumed_from,
    }  # fmt: skip
    return replace(attempt.describe(files, {}, result.tokens, extra), metrics=metrics)


def _name_of(base: Model) -> str:
    """Return the name of the base model for a card: the stage that made it, or the name of its directory."""
    return base.source.stage if isinstance(base.source, Manifest) else base.uri.rstrip("/").rpartition("/")[2]


def dropout_words(probability: float, fields: Sequence[str]) -> str:
    """Say where a recipe's dropout acted: on the fields of the model's configuration that it was set on."""
    if not fields:
        return f"trained without dropout: this model family has none, so the recipe's {probability:g} had no effect"
    return f"dropout {probability:g} acted on {', '.join(fields)}, all that this model family has"
