"""Scorers that let the model explain itself: replies are sampled, and the grade is read from their last line.

If a reply did not end, or its last line is not a score, it is generated once more: with more room, and sampled with
another seed, since a greedy reply or the same seed would only repeat it. The second seed derives from the row as the
first one does, so a retry of a pair is reproducible. If the second reply has no score either, the sample has failed; a
pair with fewer scored samples than `min_samples` is a failed rating.
"""

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from humpback_ray.curate.scorers.base import UNLIKELY, Prompted, Sample, Scale, ScoreRow, Texts, score_row
from humpback_ray.engines.base import NO_REPLY, Completion, Engine, Request
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.prompts.rating import up_to_score
from humpback_ray.records import seed_of

SAMPLING = frozenset(
    {
        "read", "samples", "min_samples", "min_grade_mass", "temperature", "top_p", "max_new_tokens", "retry_room",
        "retry_temperature", "seed",
    }
)  # fmt: skip
MIN_GRADE_MASS = 0.5
"""Below it the model would more likely have written something other than a grade."""


class Replies(Prompted):
    """Reasons first, then the grade of the last line."""

    grades: ClassVar[range]
    """The grades that a reply may give."""

    kind: Any
    """Name in the union; narrowed by each member."""

    read: Literal["parsed", "expected"] = "parsed"
    """"parsed": the number in the reply; "expected": the mean of all grades in its place, weighted by probability,
    which needs an integer grade written as a digit."""

    min_grade_mass: float = Field(default=MIN_GRADE_MASS, ge=0, le=1)
    """If `read` is "expected": the minimum total probability of the grades in that place. Less is a failed sample,
    since the model would have written something else. Ours."""

    samples: int = Field(default=3, ge=1)
    """Replies per pair, averaged. The paper keeps scores >= 4.5, so it averaged several; it does not say how many."""

    min_samples: int | None = Field(default=None, ge=1)
    """How many of them must have a score after the retry; a pair with fewer is a failed rating. None: all. The mean of
    fewer samples varies more, so a lower number lets more mediocre pairs reach a high threshold. Ours."""

    temperature: float = Field(default=0.7, ge=0)
    """The generation setting of section 3.1; 0: greedy."""

    top_p: float = Field(default=0.9, gt=0, le=1)
    """Nucleus, same place."""

    max_new_tokens: int = Field(default=512, ge=1)
    """Room for a reply's reasons and its last line."""

    retry_room: float | None = Field(default=2, ge=1)
    """An unfinished or unparsed reply is generated once more with `max_new_tokens` times this factor (or unchanged if
    more does not fit the context); None: off. Ours."""

    retry_temperature: float = Field(default=0.7, gt=0)
    """Temperature of that second reply, even if the first was greedy."""

    seed: int = 0
    """Another seed draws other replies."""

    @model_validator(mode="after")
    def _samples_can_be_enough(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples is {self.samples} but temperature is 0, so all {self.samples} replies are the same; "
                "set samples to 1 or the temperature to 0.7"
            )
        if self.min_samples is not None and self.min_samples > self.samples:
            raise ValueError(
                f"min_samples is {self.min_samples} but samples is {self.samples}, so every rating would fail; "
                f"set min_samples to {self.samples} or less, or to null for all"
            )
        return self

    @property
    def scale(self) -> Scale:
        """The scores that it gives."""
        return Scale(self.grades[0], self.grades[-1], whole=self.read == "parsed" and self.samples == 1)

    @property
    def sampling(self) -> str | None:
        """Sampling settings of replies, as JSON."""
        return json.dumps(self.model_dump(include=set(SAMPLING)))

    def parse(self, reply: Completion) -> float | None:
        """Read the grade from a reply; None unless it ended by itself with a line that holds one."""
        raise NotImplementedError

    async def score(self, rows: Sequence[Texts], chat: ChatRecipe, engine: Engine) -> list[ScoreRow]:
        """Rate candidates; returns `score_row`s in their order."""
        return list(await asyncio.gather(*(self._rate(row, chat, engine) for row in rows)))

    async def _rate(self, row: Texts, chat: ChatRecipe, engine: Engine) -> ScoreRow:
        prompt = self.render(row, chat)
        samples = await asyncio.gather(*(self._sample(row["id"], prompt, i, engine) for i in range(self.samples)))
        return score_row(row["id"], prompt, samples, self.min_samples)

    async def _sample(self, row_id: str, prompt: str, index: int, engine: Engine) -> Sample:
        seed = seed_of(row_id, self.kind, self.seed, index)
        first = await self._read(Request(prompt, self.max_new_tokens, self.temperature, self.top_p, seed), engine)
        if first.score is not None or first.completion.finish_reason in NO_REPLY or self.retry_room is None:
            return first
        return await self._again(first, prompt, seed_of(row_id, self.kind, self.seed, index, "retry"), engine)

    async def _again(self, first: Sample, prompt: str, seed: int, engine: Engine) -> Sample:
        for room in (math.ceil(self.max_new_tokens * (self.retry_room or 1)), self.max_new_tokens):
            second = await self._read(Request(prompt, room, self.retry_temperature, self.top_p, seed), engine)
            if second.completion.finish_reason != "context":
                break
        return replace(second, first=first)

    async def _read(self, request: Request, engine: Engine) -> Sample:
        reply = await engine.generate(request)
        if self.read == "parsed":
            return Sample.of(self.parse(reply), reply)
        reasons = up_to_score(reply.text, reply.finish_reason, self.grades)
        if reasons is None:
            return Sample.of(None, reply)
        space = " " if reply.text.startswith(" ", len(reasons)) else ""
        scored = await engine.generate(grade_request(request.prompt, reasons, self.grades, space))
        return replace(expected_sample(scored, self.grades, self.min_grade_mass), completion=reply)


def grade_request(prompt: str, reply_prefix: str, grades: range, space: str = " ") -> Request:
    """Ask for the probability of each grade after the part of a reply that precedes it."""
    continuations = tuple(f"{space}{grade}" for grade in grades)
    return Request(prompt, reply_prefix=reply_prefix, continuations=continuations)


def expected_sample(scored: Completion, grades: range, least_mass: float) -> Sample:
    """Make a sample of the mean grade; it fails if the grades' total probability is below `least_mass`."""
    grade, mass = expected_grade(scored, grades), grade_mass(scored)
    sample = Sample.of(grade, scored)
    if grade is not None and mass is not None and mass < least_mass:
        sample = Sample(None, scored, UNLIKELY)
    return replace(sample, grade_mass=mass)


def grade_mass(scored: Completion) -> float | None:
    """Return the total probability of all grades, 0 to 1; None if the engine gave none or NaN.

    Rounded to nine digits: a sum of exponentials could otherwise miss a limit that it exactly meets.
    """
    if scored.logprobs is None or any(map(math.isnan, scored.logprobs)):
        return None
    return round(min(math.fsum(map(math.exp, scored.logprobs)), 1.0), 9)


def expected_grade(scored: Completion, grades: range) -> float | None:
    """Return the mean grade, weighted by normalized probability; None if probabilities are missing or not finite."""
    if scored.logprobs is None:
        return None
    top = max(scored.logprobs)
    if not math.isfinite(top) or any(map(math.isnan, scored.logprobs)):
        return None
    weights = [math.exp(logprob - top) for logprob in scored.logprobs]
    return sum(grade * weight for grade, weight in zip(grades, weights, strict=True)) / sum(weights)
