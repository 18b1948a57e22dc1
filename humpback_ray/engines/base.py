"""The engine protocol: an engine completes prompts, many at a time, asynchronously.

Stages know only this protocol. Many `generate` calls run at once; the engine does the batching. Text that spells a
special token reaches the model as plain text (`prompts.chat.encode`).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Request:
    """A prompt to complete or, with `continuations`, a prompt whose continuations are scored."""

    prompt: str
    """Rendered by a layout; the engine puts the tokenizer's start token before it. The engine renders a
    `prompts.own.UserMessage` itself, in the model's own chat format."""
    max_new_tokens: int = 0
    temperature: float = 0.0
    """0 is greedy; T = 0.7 with top_p = 0.9 is the paper's."""
    top_p: float = 1.0
    seed: int = 0
    """Derived from the row id and the recipe, so a retry samples the same reply."""
    reply_prefix: str = ""
    """Beginning of the reply, which the model continues."""
    continuations: tuple[str, ...] = ()
    """If there are any, nothing is generated: `logprobs` holds log p(continuation | prompt, reply_prefix) of each."""


PROMPT_TOO_LONG, LOGITS_NOT_FINITE = "prompt_too_long", "logits_not_finite"
NO_REPLY = {"context": PROMPT_TOO_LONG, "not_finite": LOGITS_NOT_FINITE}
"""Drop reasons of rows for which a model gave no reply, by the request's finish reason."""


@dataclass(frozen=True)
class Completion:
    """The result of a request."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length", "context", "not_finite", "scored"]
    """"stop": the model ended its reply; "length": cut at max_new_tokens; "context": prompt and reply do not fit the
    model's context, nothing was generated; "not_finite": the model computed NaN or infinite logits, so there is no
    reply and no score; "scored": continuations were scored."""
    logprobs: tuple[float, ...] | None = None
    """log p of each continuation, in nats, summed over its tokens; None if nothing was scored."""
    scored_tokens: tuple[int, ...] | None = None
    """Number of tokens in each sum; None if nothing was scored."""


class Engine(Protocol):
    """A loaded model. `generate` may be awaited many times at once."""

    async def generate(self, request: Request) -> Completion:
        """Complete or score one request.

        Raises:
            processes.Dead: the engine itself has died and will answer no more requests; any other exception concerns
                only this request.
        """
        ...

    def close(self) -> None:
        """Free the model; the engine is not used afterwards."""
        ...


async def generate_all(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    """Run requests together; return their completions in the same order."""
    return list(await asyncio.gather(*(engine.generate(request) for request in requests)))
