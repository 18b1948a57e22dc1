"""Scorers that let the model explain itself: replies are drawn, and the grade is read off their last line.

A reply that did not end, or whose last line is no score, is asked for once more: with more room, and drawn anew, since
what was greedy or used the same seed would only be the same again. The second reply's seed is its own and derives from
the row like the first one's, so the same pair is retried alike wherever and whenever it is rated. What is still no
score then is a failure.
"""

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from humpback_ray.curate.scorers.base import Prompted, Sample, Scale, score_row
from humpback_ray.engines.base import Completion, Engine, Request
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.prompts.rating import up_to_score
from humpback_ray.records import seed_of

SAMPLING = frozenset(
    {"read", "samples", "temperature", "top_p", "max_new_tokens", "retry_room", "retry_temperature", "seed"}
)


class Replies(Prompted):
    """Reasons first, then the grade of the last line."""

    grades: ClassVar[range]
    """What a reply may say."""

    kind: Any
    """Name in the union; narrowed by each member."""

    read: Literal["parsed", "expected"] = "parsed"
    """"parsed": the number written; "expected": the mean over all grades at that place, weighted by probability."""

    samples: int = Field(default=3, ge=1)
    """Replies per pair, averaged. The paper keeps scores >= 4.5, so it averaged several; how many, it does not say."""

    temperature: float = Field(default=0.7, ge=0)
    """Section 3.1's generation setting; 0: greedy."""

    top_p: float = Field(default=0.9, gt=0, le=1)
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
    def _samples_differ(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples is {self.samples} but temperature is 0, so all {self.samples} replies are the same; "
                "set samples to 1 or the temperature to 0.7"
            )
        return self

    @property
    def scale(self) -> Scale:
        """Which scores it gives."""
        return Scale(self.grades[0], self.grades[-1], whole=self.read == "parsed" and self.samples == 1)

    @property
    def sampling(self) -> str | None:
        """How replies are drawn, as JSON."""
        return json.dumps(self.model_dump(include=set(SAMPLING)))

    def parse(self, reply: Completion) -> float | None:
        """Read the grade off a reply; None unless it ended by itself with a line that holds one."""
        raise NotImplementedError

    async def score(self, rows: Sequence[Mapping[str, Any]], chat: ChatRecipe, engine: Engine) -> list[dict[str, Any]]:
        """Rate candidates; returns `score_row`s in their order."""
        return list(await asyncio.gather(*(self._rate(row, chat, engine) for row in rows)))

    async def _rate(self, row: Mapping[str, Any], chat: ChatRecipe, engine: Engine) -> dict[str, Any]:
        prompt = self.render(row, chat)
        samples = await asyncio.gather(*(self._sample(row["id"], prompt, i, engine) for i in range(self.samples)))
        return score_row(row["id"], prompt, samples)

    async def _sample(self, row_id: str, prompt: str, index: int, engine: Engine) -> Sample:
        seed = seed_of(row_id, self.kind, self.seed, index)
        first = await self._read(Request(prompt, self.max_new_tokens, self.temperature, self.top_p, seed), engine)
        if first.score is not None or first.completion.finish_reason == "context" or self.retry_room is None:
            return first
        return await self._again(first, prompt, seed_of(row_id, self.kind, self.seed, index, "retry"), engine)

    async def _again(self, first: Sample, prompt: str, seed: int, engine: Engine) -> Sample:
        for room in (math.ceil(self.max_new_tokens * (self.retry_room or 1)), self.max_new_tokens):
            second = await self._read(Request(prompt, room, self.retry_temperature, self.top_p, seed), engine)
            if second.completion.finish_reason != "context":
                break
        return Sample(second.score, second.completion, second.failure, first)

    async def _read(self, request: Request, engine: Engine) -> Sample:
        reply = await engine.generate(request)
        if self.read == "parsed":
            return Sample.of(self.parse(reply), reply)
        reasons = up_to_score(reply.text, reply.finish_reason)
        if reasons is None:
            return Sample.of(None, reply)
        scored = await engine.generate(grade_request(request.prompt, reasons, self.grades))
        grade = expected_grade(scored, self.grades)
        return Sample(grade, reply, Sample.of(grade, scored).failure)


def grade_request(prompt: str, reply_prefix: str, grades: range) -> Request:
    """Ask for the probability of each grade after `Score:`."""
    return Request(prompt, reply_prefix=reply_prefix, continuations=tuple(f" {grade}" for grade in grades))


def expected_grade(scored: Completion, grades: range) -> float | None:
    """Return the mean grade, each weighted by its share of the probability of all; None if there is no number."""
    if scored.logprobs is None:
        return None
    top = max(scored.logprobs)
    if not math.isfinite(top) or any(map(math.isnan, scored.logprobs)):
        return None
    weights = [math.exp(logprob - top) for logprob in scored.logprobs]
    return sum(grade * weight for grade, weight in zip(grades, weights, strict=True)) / sum(weights)
