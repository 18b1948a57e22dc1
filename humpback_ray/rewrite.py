"""Rewriting: a configured model rephrases each kept response as an assistant would, close to its source.

Optional, off without a model (Nguyen et al. 2024, arXiv:2408.04614: an aligned model as rewriter improves on selection
alone, a weak one makes it worse). One row in, one row out; the source is kept next to the rewrite. A rewrite is not
used if it is empty, unfinished, a refusal, much shorter or longer than its source, too far from it, about itself, or
adds numbers. `rewrite_reason` says why, and the recipe decides whether the pair is kept.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, Self

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from humpback_ray import storage
from humpback_ray.config import Config
from humpback_ray.engines import NO_REPLY, Completion, EngineConfig, Request, TransformersEngine, generate_all
from humpback_ray.needs import Resources
from humpback_ray.placement import PoolPlacement
from humpback_ray.prompts.chat import ChatRecipe, PromptLayout, Tags, laid_out
from humpback_ray.prompts.instructions import refuses
from humpback_ray.prompts.marks import code_of, fill, missing_placeholders
from humpback_ray.prompts.rewriting import REWRITING, answer_of, is_meta
from humpback_ray.records import QUARANTINED, REWRITE, PairRow, seed_of
from humpback_ray.stages.enough import refuse_share
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.models import Model
from humpback_ray.stages.stage import Place, Stage
from humpback_ray.text.numbers import new_numbers
from humpback_ray.text.words import content_words

FAILED = frozenset({*NO_REPLY.values(), "unfinished_rewrite", "empty_rewrite", QUARANTINED})
"""Reasons that count against `max_failed_share`; the others are verdicts on the rewrite."""


class RewriteRecipe(Config):
    """Definition of rewriting. Hashed into the rewritten pairs."""

    version: int = Field(default=2, ge=1)
    """Bumped by hand when the meaning of rewriting changes."""

    engine: EngineConfig = TransformersEngine()
    """Engine that runs the rewriting model; `kind` selects the class."""

    prompt: str = REWRITING
    """The template; `{instruction}`, `{response}` and `{code}` are replaced."""

    layout: PromptLayout = "chat"
    """"chat": the template is an instruction in the run's forward layout; "raw": the model reads it unchanged; "own":
    it is a user message in the rewriting model's own chat format, as in its tokenizer's template."""

    tags: Tags = "both"
    """Source tags of that instruction in the chat layout; "none" suits a model that this project did not train."""

    temperature: float = Field(default=0.7, ge=0)
    """The paper's generation setting (Li et al. 2023, section 3.1); 0: greedy."""

    top_p: float = Field(default=0.9, gt=0, le=1)
    """Nucleus, same place."""

    max_new_tokens: int = Field(default=1536, ge=1)
    """Cap on a rewrite, in tokens; a rewrite that is cut there is not used. Ours."""

    seed: int = 0
    """Another seed draws other rewrites."""

    min_source_share: float = Field(default=0.4, ge=0, le=1)
    """A rewrite must have at least this share of its source's words, else it is `too_far_from_source`. Ours: two random
    replies of Open Assistant share 0.07 at the median and less than 0.24 in 99 of 100 cases, two replies to one prompt
    0.28."""

    min_grounded_share: float = Field(default=0.4, ge=0, le=1)
    """The source must have at least this share of the rewrite's words, else it is `too_far_from_source`: the model made
    up the other words."""

    min_length_ratio: float = Field(default=0.3, ge=0)
    """Rewrites with a smaller ratio of their characters to the source's are `too_short`. Ours."""

    max_length_ratio: float = Field(default=2.0, gt=0)
    """Rewrites with a larger ratio are `too_long`. Ours."""

    max_new_numbers: int | None = Field(default=0, ge=0)
    """A rewrite with more numbers than this that are neither in its source nor in its instruction is `new_numbers`;
    None: any."""

    otherwise: Literal["keep_source", "drop"] = "keep_source"
    """If the rewrite of a pair is not used: keep its source as the response, or drop the pair."""

    max_failed_share: float = Field(default=0.2, ge=0, le=1)
    """A larger share of failed rewrites stops the run before any training. Ours. Not hashed."""

    @field_validator("prompt")
    @classmethod
    def _has_placeholders(cls, prompt: str) -> str:
        if missing := missing_placeholders(prompt):
            raise ValueError(f"the rewriting prompt lacks {' and '.join(missing)}, so it cannot ask for a rewrite")
        return prompt

    @model_validator(mode="after")
    def _lengths_leave_room(self) -> Self:
        if self.min_length_ratio > self.max_length_ratio:
            raise ValueError(
                f"min_length_ratio {self.min_length_ratio:g} is more than max_length_ratio {self.max_length_ratio:g}, "
                "so no rewrite could pass; lower the first or raise the second"
            )
        return self


class RewriteConfig(Config):
    """The `round-*/rewritten` stages; they exist only if `model` is set."""

    model: str | None = None
    """Directory of the rewriting model (safetensors and tokenizer), local or s3://; None: nothing is rewritten."""

    recipe: RewriteRecipe = RewriteRecipe()
    placement: PoolPlacement = PoolPlacement()


def make_rewritten(
    config: RewriteConfig, chat: ChatRecipe, curated: Manifest, rewriter: Model, place: Place
) -> Manifest:
    """Rewrite the responses of the kept pairs.

    Raises:
        StageFailed: a larger share of rewrites failed than `max_failed_share`; the pairs stay, and a run with a higher
            limit resumes from them.
    """
    recipe = config.recipe.model_dump(mode="json", exclude={"max_failed_share"})
    identity = {"rewrite": recipe, "chat": chat.model_dump(mode="json")}
    stage = Stage(place, identity, {"curated": curated, "rewriter": rewriter.source}, REWRITE)
    made = stage.run(Rewriter, (config.recipe, chat, rewriter.directory), config.placement, curated)
    reasons = rewrite_reasons(made)
    failed = {reason: count for reason, count in reasons.items() if reason in FAILED}
    what, most = f"rewrites failed ({failed})", config.recipe.max_failed_share
    refuse_share(made, sum(failed.values()), made.rows, what, most, "rewrite.recipe.max_failed_share")
    return made


def rewrite_reasons(rewritten: Manifest) -> Counter[str]:
    """Count, by reason, the pairs (kept or dropped) that do not use their rewrite."""
    found: Counter[str] = Counter()
    for table in rewritten.tables(["rewrite_reason", "drop_reason"], kept=False):
        rows = zip(table["rewrite_reason"].to_pylist(), table["drop_reason"].to_pylist(), strict=True)
        found.update(reason for reason in (mine or dropped for mine, dropped in rows) if reason)
    return found


class Rewriter:
    """One actor: an engine with the rewriting model, loaded once, around the pure function `rewritten`."""

    def __init__(
        self, recipe: RewriteRecipe, chat: ChatRecipe, model: "str | storage.Directory", resources: Resources
    ) -> None:
        self.recipe, self.chat = recipe, chat
        self.engine = recipe.engine.build(model, resources)

    async def __call__(self, pairs: pa.Table) -> pa.Table:
        """Rewrite the pairs of a shard; every id leaves once."""
        requests = [rewrite_request(row, self.recipe, self.chat) for row in pairs.to_pylist()]
        return rewritten(pairs, await generate_all(self.engine, requests), self.recipe)


def rewrite_request(pair: PairRow, recipe: RewriteRecipe, chat: ChatRecipe) -> Request:
    """Ask the rewriting model for one pair (`id`, `instruction`, `response`)."""
    text = fill(recipe.prompt, pair["instruction"], pair["response"])
    return Request(
        laid_out(text, recipe.layout, chat, recipe.tags),
        max_new_tokens=recipe.max_new_tokens,
        temperature=recipe.temperature,
        top_p=recipe.top_p,
        seed=seed_of(pair["id"], "rewrite", recipe.seed),
    )


def rewritten(pairs: pa.Table, completions: Sequence[Completion], recipe: RewriteRecipe) -> pa.Table:
    """Replace responses by their rewrites where these can be used.

    Args:
        pairs: kept rows of PAIR.
        completions: the rewriting model's reply to each, in the same order.
        recipe: which rewrites can be used, and how to treat the other pairs.

    Returns:
        A row of REWRITE for each.
    """
    rows = [_row(pair, reply, recipe) for pair, reply in zip(pairs.to_pylist(), completions, strict=True)]
    return pa.Table.from_pylist(rows, schema=REWRITE)


def _row(pair: PairRow, reply: Completion, recipe: RewriteRecipe) -> dict[str, object]:
    source, answer = pair["response"], answer_of(reply.text)
    unfinished = "unfinished_rewrite" if answer is None else None
    answer = answer or ""
    reason = {**NO_REPLY, "length": "unfinished_rewrite"}.get(reply.finish_reason)
    reason = reason or unfinished or rewrite_reason(pair["instruction"], source, answer, recipe)
    dropped = reason is not None and recipe.otherwise == "drop"
    return {
        **pair,
        "instruction": "" if dropped else pair["instruction"],
        "response": "" if dropped else source if reason else answer,
        "original": "" if dropped else source,
        "source_share": covered(source, answer),
        "grounded_share": covered(answer, source),
        "rewrite_reason": reason,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "drop_reason": reason if dropped else None,
    }


def rewrite_reason(instruction: str, source: str, answer: str, recipe: RewriteRecipe) -> str | None:
    """Return why a finished rewrite is not used, by the first rule that applies; None if it is used."""
    if not answer:
        return "empty_rewrite"
    if code_of(instruction, source) in answer:
        return "echoed_prompt"
    if refuses(answer) and not refuses(source):
        return "refusal"
    ratio = len(answer) / max(1, len(source))
    if not recipe.min_length_ratio <= ratio <= recipe.max_length_ratio:
        return "too_short" if ratio < recipe.min_length_ratio else "too_long"
    if is_meta(answer, source):
        return "meta_text"
    if (
        recipe.max_new_numbers is not None
        and len(new_numbers(answer, given=f"{instruction}\n{source}")) > recipe.max_new_numbers
    ):
        return "new_numbers"
    near = covered(source, answer) >= recipe.min_source_share and covered(answer, source) >= recipe.min_grounded_share
    return None if near else "too_far_from_source"


def covered(text: str, by: str) -> float:
    """Return the share of a text's content words that another text has too; 1 if the text has none.

    Words are compared as written, ignoring case; scripts without spaces compare character n-grams.
    """
    own = content_words(text)
    return len(own & content_words(by)) / len(own) if own else 1.0
