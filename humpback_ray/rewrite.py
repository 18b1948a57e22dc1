"""Rewriting: a configured model says each kept response again as an assistant would, close to its source.

An option, off without a model (Nguyen et al. 2024, arXiv:2408.04614: an aligned model as rewriter improves on selection
alone, a weak one makes it worse). One row in, one row out; the source is kept beside the rewrite. A rewrite that is
empty, unfinished, a refusal, of another length, too far from its source, talks about itself or holds numbers of its own
is not used, and `rewrite_reason` says why; what then becomes of the pair is a field of the recipe.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, Self

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from humpback_ray import storage
from humpback_ray.config import Config
from humpback_ray.engines import NO_REPLY, Completion, EngineConfig, Request, TransformersEngine, generate_all
from humpback_ray.placement import PoolPlacement, Resources
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
"""Reasons that count against `max_failed_share`; the others are verdicts on what was written."""


class RewriteRecipe(Config):
    """What rewriting means. Hashed into the rewritten pairs."""

    version: int = Field(default=2, ge=1)
    """Raised by hand when the meaning of rewriting changes."""

    engine: EngineConfig = TransformersEngine()
    """Who runs the rewriting model; `kind` selects the class."""

    prompt: str = REWRITING
    """The template; `{instruction}`, `{response}` and `{code}` are replaced."""

    layout: PromptLayout = "chat"
    """"chat": the template is an instruction in the run's forward layout; "raw": the model reads it as it is; "own": it
    is a user's message in the rewriting model's own chat format, as its tokenizer's template has it."""

    tags: Tags = "both"
    """Source tags of that instruction in the chat layout; "none" suits a model that this project did not train."""

    temperature: float = Field(default=0.7, ge=0)
    """As everywhere (Li et al. 2023, section 3.1); 0: greedy."""

    top_p: float = Field(default=0.9, gt=0, le=1)
    """Nucleus, same place."""

    max_new_tokens: int = Field(default=1536, ge=1)
    """Cap on a rewrite; one that is cut there is not used. Ours."""

    seed: int = 0
    """Another seed draws other rewrites."""

    min_source_share: float = Field(default=0.4, ge=0, le=1)
    """A rewrite must have at least this share of its source's words, else it is `too_far_from_source`. Ours: of two
    replies of Open Assistant the median shares 0.07, 99 in 100 less than 0.24, two replies to one prompt 0.28."""

    min_grounded_share: float = Field(default=0.4, ge=0, le=1)
    """The source must have at least this share of the rewrite's words, likewise: what is not there was made up."""

    min_length_ratio: float = Field(default=0.3, ge=0)
    """Shorter rewrites, in characters by those of the source, are `too_short`. Ours."""

    max_length_ratio: float = Field(default=2.0, gt=0)
    """Longer ones are `too_long`. Ours."""

    max_new_numbers: int | None = Field(default=0, ge=0)
    """A rewrite with more numbers that neither its source nor its instruction holds has `new_numbers`; None: any."""

    otherwise: Literal["keep_source", "drop"] = "keep_source"
    """What becomes of a pair whose rewrite is not used: its source stays the response, or the pair is dropped."""

    max_failed_share: float = Field(default=0.2, ge=0, le=1)
    """A larger share of rewrites that failed stops the run before anything is trained. Ours. Not
    hashed."""

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
                f"min_length_ratio {self.min_length_ratio:g} is more than max_length_ratio {self.max_length_ratio:g}: "
                "no rewrite could pass"
            )
        return self


class RewriteConfig(Config):
    """The `round-*/rewritten` stages; none without a model."""

    model: str | None = None
    """Directory of the rewriting model (safetensors and tokenizer), local or s3://; None: nothing is rewritten."""

    recipe: RewriteRecipe = RewriteRecipe()
    placement: PoolPlacement = PoolPlacement()


def make_rewritten(
    config: RewriteConfig, chat: ChatRecipe, curated: Manifest, rewriter: Model, place: Place
) -> Manifest:
    """Rewrite the responses of the kept pairs.

    Raises:
        StageFailed: more rewrites failed than `max_failed_share`; the pairs stay, so a higher share goes on from them.
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
    """Count the pairs whose rewrite is not used, kept or dropped, by reason."""
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
    """Put rewrites in place of responses, as far as they can be used.

    Args:
        pairs: kept rows of PAIR.
        completions: the rewriting model's reply to each, in the same order.
        recipe: what can be used, and what becomes of the others.

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
    """Return why a finished rewrite is not used, None where it is; the first rule that applies names it."""
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
    """Return the share of a text's content words that another text has; 1 of a text without any.

    Words are compared as they are written, without case; in scripts without spaces, character n-grams are.
    """
    own = content_words(text)
    return len(own & content_words(by)) / len(own) if own else 1.0
