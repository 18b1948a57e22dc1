"""How much the instruction helps to predict the response: two forward passes, no reply, no tuned model.

The instruction-following difficulty of Li et al. 2023 (arXiv:2308.12032) is the perplexity of the response given the
instruction over its perplexity alone, IFD(x, y) = PPL(y | x) / PPL(y). Below 1 the instruction helps; at 1 or above it
does not, so y is not an answer to it. That paper drops pairs above 1 and prefers the *highest* of the others, the hard
ones, because people wrote its pairs and x and y belong together. Here x is a guess of the backward model and may not
belong to y at all, so low is good.

    score = -ln IFD = mean_t ln p(y_t | x, y_<t) - mean_t ln p(y_t | y_<t)        nats per token of y

0: the instruction does not help; ln 2 (0.69): it halves the perplexity; negative: it misleads.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from humpback_ray.curate.scorers.base import Prompted, Sample, ScoreRow, Texts, score_row
from humpback_ray.engines.base import NO_REPLY, Completion, Engine, Request, generate_all
from humpback_ray.prompts.chat import ChatRecipe


class Likelihood(Prompted):
    """-ln IFD, in nats per token of the response; cheap, and usable with a base model."""

    placeholders: ClassVar[frozenset[str]] = frozenset({"{instruction}"})

    kind: Literal["likelihood"] = "likelihood"

    prompt: str = "{instruction}"
    """Template of the text before the response; `{instruction}` is replaced."""

    alone: str = ""
    """The text before the response in the pass without the instruction; empty in the paper."""

    @model_validator(mode="after")
    def _response_is_not_told(self) -> Self:
        if "{response}" in self.prompt:
            raise ValueError(
                "the prompt of a likelihood scorer contains {response}, the text that the model predicts; remove it"
            )
        return self

    @property
    def scale(self) -> None:
        """None: scores in nats are unbounded, and good values depend on the model and the texts."""

    async def score(self, rows: Sequence[Texts], chat: ChatRecipe, engine: Engine) -> list[ScoreRow]:
        """Rate candidates; returns `score_row`s in their order."""
        prompts = [self.render(row, chat) for row in rows]
        asked = [index for index, row in enumerate(rows) if row["response"].strip()]
        requests = [
            Request(prompt, continuations=(rows[i]["response"],)) for i in asked for prompt in (prompts[i], self.alone)
        ]
        passes = await generate_all(engine, requests)
        samples = {i: [likelihood_sample(*passes[2 * n : 2 * n + 2])] for n, i in enumerate(asked)}
        return [score_row(row["id"], prompts[i], samples.get(i, [])) for i, row in enumerate(rows)]


def likelihood_sample(given: Completion, alone: Completion) -> Sample:
    """Compare a response's log-probability after the instruction with its log-probability alone."""
    refused = next((one for one in (given, alone) if one.finish_reason in NO_REPLY), None)
    if refused:
        return Sample.of(None, refused)
    score = mean_logprob(given) - mean_logprob(alone)
    read = sum(one.prompt_tokens + sum(one.scored_tokens or ()) for one in (given, alone))
    both = Completion("", read, 0, "scored", given.logprobs, given.scored_tokens)
    return Sample.of(score if math.isfinite(score) else None, both)


def mean_logprob(scored: Completion) -> float:
    """Return the mean log-probability of the only continuation's tokens, in nats; NaN if the engine gave none."""
    if not scored.logprobs or not scored.scored_tokens or not scored.scored_tokens[0]:
        return math.nan
    return scored.logprobs[0] / scored.scored_tokens[0]
