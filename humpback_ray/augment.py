"""Self-augmentation: predict, for every segment y, an instruction x that y would answer.

The backward model p(x | y) sees the segment alone (Li et al. 2023, arXiv:2308.06259, section 2.2).
One row in, one row out; an unusable prediction stays in the table with its `drop_reason`. A row for which the model
failed (it wrote nothing, did not end, or could not read the segment) counts against `max_failed_share`. A prediction
that a filter of `prompts/instructions` drops does not: that is a verdict on the pair.
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa
from pydantic import Field

from humpback_ray import storage
from humpback_ray.config import Config
from humpback_ray.engines import NO_REPLY, Completion, EngineConfig, Request, TransformersEngine, generate_all
from humpback_ray.inputs.contamination import NOTHING, HeldOut
from humpback_ray.needs import Resources
from humpback_ray.placement import PoolPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.prompts.instructions import InstructionFilters
from humpback_ray.records import CANDIDATE, seed_of
from humpback_ray.stages.enough import refuse_failures
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.models import Model
from humpback_ray.stages.stage import Place, Stage

FAKED_TURN = "faked_turn"
"""Drop reason of a pair that contains a line of our layout: the page could speak for the other side."""

FAILED = frozenset({"empty_instruction", "unfinished_instruction", *NO_REPLY.values()})
"""Drop reasons that count against `max_failed_share`."""


class AugmentRecipe(Config):
    """Definition of augmentation. Hashed into the manifest: a change here is another data set."""

    version: int = Field(default=3, ge=1)
    """Bumped by hand when the meaning of augmentation changes."""

    engine: EngineConfig = TransformersEngine()
    """Engine that runs the backward model; `kind` selects the class."""

    temperature: float = Field(default=0.7, ge=0)
    """The generation setting of section 3.1; 0: greedy."""

    top_p: float = Field(default=0.9, gt=0, le=1)
    """Nucleus sampling, same section."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Cap on the predicted instruction, in tokens of the backward model's tokenizer. Ours; the paper reports none."""

    seed: int = 0
    """Another seed draws other instructions."""

    filters: InstructionFilters = InstructionFilters()
    """Which predicted instructions are dropped."""

    max_failed_share: float = Field(default=0.2, ge=0, le=1)
    """A larger share of failed predictions stops the run; those that a filter drops do not count. Ours. Not hashed."""


class AugmentConfig(Config):
    """The `candidates` stage."""

    recipe: AugmentRecipe = Field(default_factory=AugmentRecipe)
    placement: PoolPlacement = PoolPlacement()


def make_candidates(
    config: AugmentConfig,
    chat: ChatRecipe,
    corpus: Manifest,
    backward: Model,
    place: Place,
    held_out: HeldOut = NOTHING,
) -> Manifest:
    """Predict an instruction for every segment of the corpus; drop pairs that contain a prompt of `held_out`.

    Raises:
        StageFailed: a larger share of predictions failed than `max_failed_share`; the candidates stay.
    """
    recipe = config.recipe.model_dump(mode="json", exclude={"max_failed_share"})
    identity = {"augment": recipe, "chat": chat.model_dump(mode="json"), **held_out.identity}
    stage = Stage(place, identity, {"corpus": corpus, "backward": backward.source, **held_out.inputs}, CANDIDATE)
    made = stage.run(Predictor, (config.recipe, chat, backward.directory, held_out), config.placement, corpus)
    refuse_failures(made, FAILED, config.recipe.max_failed_share, "augment.recipe.max_failed_share")
    return made


class Predictor:
    """One actor: an engine with the backward model, loaded once, around the pure function `candidates`."""

    def __init__(
        self,
        recipe: AugmentRecipe,
        chat: ChatRecipe,
        model: "str | storage.Directory",
        held_out: HeldOut,
        resources: Resources,
    ) -> None:
        self.recipe, self.chat, self.overlap = recipe, chat, held_out.overlap()
        self.engine = recipe.engine.build(model, resources)

    async def __call__(self, segments: pa.Table) -> pa.Table:
        """Predict instructions for the segments of a shard; every id leaves once."""
        rows = segments.select(["id", "text"]).to_pylist()
        requests = [backward_request(row, self.recipe, self.chat) for row in rows]
        made = candidates(segments, await generate_all(self.engine, requests), self.recipe.filters, self.chat)
        return self.overlap.without(made)


def backward_request(row: Mapping[str, str], recipe: AugmentRecipe, chat: ChatRecipe) -> Request:
    """Ask the backward model for the instruction of one segment (`id`, `text`)."""
    return Request(
        chat.backward_prompt(row["text"]),
        max_new_tokens=recipe.max_new_tokens,
        temperature=recipe.temperature,
        top_p=recipe.top_p,
        seed=seed_of(row["id"], "augment", recipe.seed),
    )


def candidates(
    segments: pa.Table, completions: Sequence[Completion], filters: InstructionFilters, chat: ChatRecipe
) -> pa.Table:
    """Pair every segment with the instruction predicted for it.

    Args:
        segments: rows of SEGMENT.
        completions: the backward model's reply to each, in the same order.
        filters: decide which of them are dropped.
        chat: its layouts and tags must not appear in an instruction, nor its lines in either text.

    Returns:
        A row of CANDIDATE for each; that of an unusable prediction has a `drop_reason` and neither text.
    """
    rows = segments.select(["id", "url", "text"]).to_pylist()
    made = [_candidate(row, completion, filters, chat) for row, completion in zip(rows, completions, strict=True)]
    return pa.Table.from_pylist(made, schema=CANDIDATE)


def _candidate(
    segment: Mapping[str, str], completion: Completion, filters: InstructionFilters, chat: ChatRecipe
) -> dict[str, object]:
    instruction = completion.text.strip()
    reason = {**NO_REPLY, "length": "unfinished_instruction"}.get(completion.finish_reason)
    reason = reason or (filters.reason(instruction, segment["text"], chat) if instruction else "empty_instruction")
    reason = reason or (FAKED_TURN if chat.fakes_turn(f"{instruction}\n{segment['text']}") else None)
    return {
        "id": segment["id"],
        "url": segment["url"],
        "instruction": "" if reason else instruction,
        "response": "" if reason else segment["text"],
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "drop_reason": reason,
    }
