"""What a scorer is, and how the samples of one rating become a row.

A scorer turns candidates into rows of SCORE; a higher score is a better pair. A sample is a number or a failure that
says why; failures are counted, before and after a retry, and never become a number. A pair of which fewer samples have
a score than the scorer wants has no score and a `drop_reason`: the mean of what is left would be drawn from fewer
samples, and means of fewer samples lie further apart, so that more of them would reach a high threshold by chance.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol, TypedDict

from pydantic import field_validator

from humpback_ray.config import Config
from humpback_ray.engines.base import NO_REPLY, Completion, Engine
from humpback_ray.prompts.chat import ChatRecipe, PromptLayout, Tags, laid_out
from humpback_ray.prompts.marks import fill, missing_placeholders

UNPARSED, UNFINISHED = "unrated_unparsed", "unrated_unfinished"
NO_NUMBER, NO_RESPONSE = "unrated_no_number", "unrated_empty_response"
UNLIKELY, TOO_FEW = "unrated_grades_unlikely", "unrated_too_few_samples"
FAILURES = frozenset({UNPARSED, UNFINISHED, *NO_REPLY.values(), NO_NUMBER, NO_RESPONSE, UNLIKELY, TOO_FEW})
"""Drop reasons that are failures of the rating, not verdicts; a recipe's `max_failed_share` bounds them."""


Texts = Mapping[str, str]
"""A candidate as scorers read it: `id`, `instruction`, `response`."""


class ScoreRow(TypedDict):
    """A row of SCORE but for what is the same in all rows (`scorer`, `model`, `sampling`) and `pre_score`."""

    id: str
    score: float | None
    samples: list[float | None]
    failed_samples: int
    grade_masses: list[float | None] | None
    replies: list[str]
    finish_reasons: list[str]
    reply_tokens: list[int]
    first_failures: list[str | None]
    prompt_hash: str
    prompt_tokens: int
    completion_tokens: int
    drop_reason: str | None


class Scale(NamedTuple):
    """The scores that a scorer gives."""

    lowest: float
    highest: float
    whole: bool = False
    """Whether a pair gets one number, and the prompt asks for a whole one."""


class Scorer(Protocol):
    """A member of the union in `scorers/__init__.py`."""

    @property
    def kind(self) -> str:
        """Name in the union."""
        ...

    @property
    def scale(self) -> Scale | None:
        """The scores that it gives; None where they have no ends, so that no threshold can be checked."""
        ...

    @property
    def sampling(self) -> str | None:
        """How replies are drawn, as JSON; None where nothing is generated."""
        ...

    async def score(self, rows: Sequence[Texts], chat: ChatRecipe, engine: Engine) -> list[ScoreRow]:
        """Rate candidates (`id`, `instruction`, `response`); returns `score_row`s in their order."""
        ...


class Prompted(Config):
    """The fields that all scorers share: which model reads what."""

    placeholders: ClassVar[frozenset[str]] = frozenset({"{instruction}", "{response}"})

    rater: Literal["previous", "base"] = "previous"
    """Whose judgement: "previous" is the paper's, the model of the round before; "base": the base model in every round,
    for scorers that need no tuned model."""

    prompt: str
    """The template; `{instruction}` and `{response}` are replaced."""

    layout: PromptLayout = "chat"
    """"chat": the template is an instruction in the forward layout; "raw": the model reads it as it is; "own": it is a
    user's message in the rating model's own chat format, for a base model that was tuned to chat."""

    tags: Tags = "both"
    """Source tags of the rating instruction in the chat layout. The paper does not say; "both" is its inference."""

    @field_validator("prompt")
    @classmethod
    def _has_placeholders(cls, prompt: str) -> str:
        if missing := sorted(cls.placeholders.intersection(missing_placeholders(prompt))):
            raise ValueError(f"the rating prompt lacks {' and '.join(missing)}, so every pair would be rated alike")
        return prompt

    @property
    def sampling(self) -> str | None:
        """Nothing is generated."""
        return None

    def render(self, row: Texts, chat: ChatRecipe) -> str:
        """Return what the model reads before its reply."""
        text = fill(self.prompt, row["instruction"], row["response"])
        return laid_out(text, self.layout, chat, self.tags)


@dataclass(frozen=True)
class Sample:
    """One rating of one pair."""

    score: float | None
    completion: Completion
    """The reply it was read off, or the forward pass that gave it."""
    failure: str | None = None
    """Why there is no score."""
    grade_mass: float | None = None
    """The probability of all grades together where they were weighed; None where the number written was read."""
    first: "Sample | None" = None
    """The failed sample in whose place this one was drawn."""

    @staticmethod
    def of(score: float | None, completion: Completion) -> "Sample":
        """Make a sample; where there is no score, the way in which the engine ended says why."""
        by_finish = {**NO_REPLY, "length": UNFINISHED, "scored": NO_NUMBER}
        failure = None if score is not None else by_finish.get(completion.finish_reason, UNPARSED)
        return Sample(score, completion, failure)


def score_row(row_id: str, prompt: str, samples: Sequence[Sample], min_samples: int | None = None) -> ScoreRow:
    """Average the samples that have a score and write down all of them.

    Args:
        row_id: of the pair.
        prompt: as rendered.
        samples: after the retry.
        min_samples: how many of them must have a score; None: all.

    Returns:
        Where too few samples have a score the row has none; the `drop_reason` is `unrated_too_few_samples`, or, without
        any score, the commonest failure (at a tie, the first).
    """
    scores = [sample.score for sample in samples if sample.score is not None]
    failures = [sample.failure for sample in samples if sample.failure]
    written = [sample.completion for sample in samples]
    firsts = [sample.first for sample in samples]
    rated = bool(scores) and len(scores) >= (len(samples) if min_samples is None else min_samples)
    masses = [sample.grade_mass for sample in samples]
    return {
        "id": row_id,
        "score": sum(scores) / len(scores) if rated else None,
        "samples": [sample.score for sample in samples],
        "failed_samples": len(samples) - len(scores),
        "grade_masses": None if masses.count(None) == len(masses) else masses,
        "replies": [completion.text for completion in written],
        "finish_reasons": [completion.finish_reason for completion in written],
        "reply_tokens": [completion.completion_tokens for completion in written],
        "first_failures": [(sample.first or sample).failure for sample in samples],
        "prompt_hash": hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest(),
        "prompt_tokens": written[0].prompt_tokens if written else 0,
        "completion_tokens": sum(c.completion_tokens for c in (*written, *(f.completion for f in firsts if f))),
        "drop_reason": None if rated else _reason(bool(scores), failures),
    }


def _reason(some_scored: bool, failures: Sequence[str]) -> str:
    if some_scored:
        return TOO_FEW
    return max(failures, key=failures.count) if failures else NO_RESPONSE
