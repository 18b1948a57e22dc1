"""The paper's scale of five grades, with reasoning (`rubric`) or without (`rubric_expected`).

`rubric` lets the model explain itself and then reads its last line: the number as written, or the mean of the five
grades weighted by the probability the model gives them there. `rubric_expected` reads that mean straight after the
prompt, in one forward pass. Samples that did not end or whose last line is no score are failures.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from humpback_ray.config import Config
from humpback_ray.curate.scorers.base import Sample, score_row
from humpback_ray.engines.base import Completion, Engine, Request
from humpback_ray.prompts.chat import ChatRecipe, Tags
from humpback_ray.prompts.rating import DIRECT, REASONED, fill, missing_placeholders, parse_score, up_to_score
from humpback_ray.records import seed_of

_GRADES = (1, 2, 3, 4, 5)
_CONTINUATIONS = tuple(f" {grade}" for grade in _GRADES)


class _RatingPrompt(Config):
    """The fields that both scorers share: what the model reads."""

    prompt: str = REASONED
    """The template; `{instruction}` and `{response}` are replaced."""

    layout: Literal["chat", "raw"] = "chat"
    """"chat": the template is an instruction in the forward layout; "raw": the model reads it as it is."""

    tags: Tags = "both"
    """Source tags of the rating instruction in the chat layout. The paper does not say; "both" is its inference."""

    @field_validator("prompt")
    @classmethod
    def _has_placeholders(cls, prompt: str) -> str:
        if missing := missing_placeholders(prompt):
            raise ValueError(f"the rating prompt lacks {' and '.join(missing)}, so every pair would be rated alike")
        return prompt

    def render(self, row: Mapping[str, Any], chat: ChatRecipe) -> str:
        """Return what the model reads before its reply."""
        text = fill(self.prompt, row["instruction"], row["response"])
        return chat.forward_prompt(text, self.tags) if self.layout == "chat" else text


class Rubric(_RatingPrompt):
    """Reasons first, then the score of the last line."""

    kind: Literal["rubric"] = "rubric"

    read: Literal["parsed", "expected"] = "parsed"
    """"parsed": the number written; "expected": its probability-weighted mean over 1 to 5 at that place."""

    samples: int = Field(default=3, ge=1)
    """Replies per pair, averaged. The paper keeps scores >= 4.5, so it averaged several; how many, it does not say."""

    temperature: float = Field(default=0.7, ge=0)
    """Section 3.1's generation setting; 0: greedy."""

    top_p: float = Field(default=0.9, gt=0, le=1)
    max_new_tokens: int = Field(default=512, ge=1)
    """Room for a reply's reasons and its last line; a reply cut off there is a failure."""

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

    async def score(self, rows: Sequence[Mapping[str, Any]], chat: ChatRecipe, engine: Engine) -> list[dict[str, Any]]:
        """Rate candidates; returns a row of SCORE for each, in their order."""
        return list(await asyncio.gather(*(self._rate(row, chat, engine) for row in rows)))

    async def _rate(self, row: Mapping[str, Any], chat: ChatRecipe, engine: Engine) -> dict[str, Any]:
        prompt = self.render(row, chat)
        samples = await asyncio.gather(*(self._sample(row["id"], prompt, i, engine) for i in range(self.samples)))
        return score_row(row["id"], prompt, samples)

    async def _sample(self, row_id: str, prompt: str, index: int, engine: Engine) -> Sample:
        seed = seed_of(row_id, self.kind, self.seed, index)
        reply = await engine.generate(Request(prompt, self.max_new_tokens, self.temperature, self.top_p, seed))
        if self.read == "parsed":
            return Sample(parse_score(reply.text, reply.finish_reason), reply)
        reasons = up_to_score(reply.text, reply.finish_reason)
        if reasons is None:
            return Sample(None, reply)
        return Sample(expected_grade(await engine.generate(_grade_request(prompt, reasons))), reply)


class RubricExpected(_RatingPrompt):
    """No reasons: the expected grade straight after `Score:`, one forward pass and a continuous score."""

    kind: Literal["rubric_expected"] = "rubric_expected"

    prompt: str = DIRECT

    async def score(self, rows: Sequence[Mapping[str, Any]], chat: ChatRecipe, engine: Engine) -> list[dict[str, Any]]:
        """Rate candidates; returns a row of SCORE for each, in their order."""
        prompts = [self.render(row, chat) for row in rows]
        scored = await asyncio.gather(*(engine.generate(_grade_request(prompt, "Score:")) for prompt in prompts))
        return [
            score_row(row["id"], prompt, [Sample(expected_grade(completion), completion)])
            for row, prompt, completion in zip(rows, prompts, scored, strict=True)
        ]


def _grade_request(prompt: str, reply_prefix: str) -> Request:
    return Request(prompt, reply_prefix=reply_prefix, continuations=_CONTINUATIONS)


def expected_grade(scored: Completion) -> float | None:
    """Return the mean grade, each weighted by its share of the probability of all five; None if there is no number."""
    if scored.logprobs is None:
        return None
    top = max(scored.logprobs)
    if not math.isfinite(top) or any(map(math.isnan, scored.logprobs)):
        return None
    weights = [math.exp(logprob - top) for logprob in scored.logprobs]
    return sum(grade * weight for grade, weight in zip(_GRADES, weights, strict=True)) / sum(weights)
