"""The interface of a scorer, and how the samples of one rating become a row.

A scorer turns candidates into rows of SCORE; a higher score is a better pair. A sample is a number or a failure with
its reason; failures are counted before and after a retry and never become a number. A pair with fewer scored samples
than the scorer wants gets no score but a `drop_reason`: means of fewer samples vary more, so more of them would reach a
high threshold by chance.
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
"""Drop reasons for failed ratings, as opposed to verdicts; a recipe's `max_failed_share` limits them."""


Texts = Mapping[str, str]
"""A candidate as scorers read it: `id`, `instruction`, `response`."""


class ScoreRow(TypedDict):
    """A row of SCORE without `pre_score` and the columns that are constant (`scorer`, `model`, `sampling`)."""

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
    """True if each pair gets a single number and the prompt asks for an integer."""


class Scorer(Protocol):
    """A member of the union in `scorers/__init__.py`."""

    @property
    def kind(self) -> str:
        """Name in the union."""
        ...

    @property
    def scale(self) -> Scale | None:
        """The scores that it gives; None if they are unbounded, since no threshold can then be checked."""
        ...

    @property
    def sampling(self) -> str | None:
        """Sampling settings of replies, as JSON; None if nothing is generated."""
        ...

    async def score(self, rows: Sequence[Texts], chat: ChatRecipe, engine: Engine) -> list[ScoreRow]:
        """Rate candidates (`id`, `instruction`, `response`); returns `score_row`s in their order."""
        ...


class Prompted(Config):
    """The fields that all scorers share: the model and its prompt."""

    placeholders: ClassVar[frozenset[str]] = frozenset({"{instruction}", "{response}"})

    rater: Literal["previous", "base"] = "previous"
    """The model that rates. "previous": the model of the previous round, as in the paper; "base": the base model in
    every round, for scorers that need no tuned model."""

    prompt: str
    """The template; `{instruction}` and `{response}` are replaced."""

    layout: PromptLayout = "chat"
    """"chat": the template is an instruction in the forward layout; "raw": the model reads it unchanged; "own": it is a
    user message in the rating model's own chat format, for a base model that was tuned to chat."""

    tags: Tags = "both"
    """Source tags of the rating instruction in the chat layout. The paper does not say; it uses "both" at inference."""

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
    """The reply or the forward pass that gave the score."""
    failure: str | None = None
    """Why there is no score."""
    grade_mass: float | None = None
    """The total probability of all grades if they were weighted; None if the score is the number in the reply."""
    first: "Sample | None" = None
    """The failed sample that this one replaces."""

    @staticmethod
    def of(score: float | None, completion: Completion) -> "Sample":
        """Make a sample; without a score, the engine's finish reason gives the failure."""
        by_finish = {**NO_REPLY, "length": UNFINISHED, "scored": NO_NUMBER}
        failure = None if score is not None else by_finish.get(completion.finish_reason, UNPARSED)
        return Sample(score, completion, failure)


def score_row(row_id: str, prompt: str, samples: Sequence[Sample], min_samples: int | None = None) -> ScoreRow:
    """Average the samples that have a score, and record all samples.

    Args:
        row_id: of the pair.
        prompt: as rendered.
        samples: after the retry.
        min_samples: how many of them must have a score; None: all.

    Returns:
        A row of SCORE. If too few samples have a score, it has none, and its `drop_reason` is
        `unrated_too_few_samples`, or, if no sample has one, the most common failure (the first at a tie).
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
