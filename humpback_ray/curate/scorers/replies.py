"""Scorers that let the model explain itself: replies are drawn, and the grade is read off their last line.

A reply that did not end, or whose last line is no score, is asked for once more: with more room, and drawn anew, since
what was greedy or used the same seed would only be the same again. The second reply's seed is its own and derives from
the row like the first one's, so the same pair is retried alike wherever and whenever it is rated. What is still no
score then is a failed sample, and a pair with fewer samples than `min_samples` a failed rating.
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
"""Below it the model would sooner have written something that is no grade."""


class Replies(Prompted):
    """Reasons first, then the grade of the last line."""

    grades: ClassVar[range]
    """What a reply may say."""

    kind: Any
    """Name in the union; narrowed by each member."""

    read: Literal["parsed", "expected"] = "parsed"
    """"parsed": the number written; "expected": the mean over all grades at its place, weighted by probability. It
    needs a whole grade that is written as a digit."""

    min_grade_mass: float = Field(default=MIN_GRADE_MASS, ge=0, le=1)
    """Where `read` is "expected", the least probability that the grades must have together at that place; less is a
    failed sample, for the model would have written something else. Ours."""

    samples: int = Field(default=3, ge=1)
    """Replies per pair, averaged. The paper keeps scores >= 4.5, so it averaged several; how many, it does not say."""

    min_samples: int | None = Field(default=None, ge=1)
    """The fewest of them, after the retry, that must have a score; a pair with fewer is a failed rating. None: all. The
    mean of fewer samples varies more, so fewer let more mediocre pairs reach a high threshold. Ours."""

    temperature: float = Field(default=0.7, ge=0)
    """Section 3.1's generation setting; 0: greedy."""

    top_p: float = Field(default=0.9, gt=0, le=1)
    """Nucleus, same place."""

    max_new_tokens: int = Field(default=512, ge=1)
    """Room for a reply's reasons and its last line."""

    retry_room: float | None = Field(default=2, ge=1)
    """An unfinished or unparsed reply is asked for once more with this many times the room (with the same room where
    more does not fit the context); None: off. Ours."""

    retry_temperature: float = Field(default=0.7, gt=0)
    """Of that second reply, also where the first was greedy."""

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
        """How replies are drawn, as JSON."""
        return json.dumps(self.model_dump(include=set(SAMPLING)))

    def parse(self, reply: Completion) -> float | None:
        """Read the grade off a reply; None unless it ended by itself with a line that holds one."""
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
    """Ask for the probability of each grade after a part of a reply that ends right before it."""
    continuations = tuple(f"{space}{grade}" for grade in grades)
    return Request(prompt, reply_prefix=reply_prefix, continuations=continuations)


def expected_sample(scored: Completion, grades: range, least_mass: float) -> Sample:
    """Make a sample of the mean grade; it fails where all grades together are less likely than `least_mass`."""
    grade, mass = expected_grade(scored, grades), grade_mass(scored)
    sample = Sample.of(grade, scored)
    if grade is not None and mass is not None and mass < least_mass:
        sample = Sample(None, scored, UNLIKELY)
    return replace(sample, grade_mass=mass)


def grade_mass(scored: Completion) -> float | None:
    """Return the probability of all grades together, 0 to 1; None if there is no number.

    Rounded to nine digits: sums of exponentials would miss a limit that they meet.
    """
    if scored.logprobs is None or any(map(math.isnan, scored.logprobs)):
        return None
    return round(min(math.fsum(map(math.exp, scored.logprobs)), 1.0), 9)


def expected_grade(scored: Completion, grades: range) -> float | None:
    """Return the mean grade, each weighted by its share of the probability of all; None if there is no number."""
    if scored.logprobs is None:
        return None
    top = max(scored.logprobs)
    if not math.isfinite(top) or any(map(math.isnan, scored.logprobs)):
        return None
    weights = [math.exp(logprob - top) for logprob in scored.logprobs]
    return sum(grade * weight for grade, weight in zip(grades, weights, strict=True)) / sum(weights)
