"""What an engine is: something that completes prompts, many at a time, asynchronously.

Stages know this protocol alone. Many `generate` calls run at once; batching is the engine's business. Text that spells
a special token reaches the model as plain text (`prompts.chat.encode`).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Request:
    """One prompt to complete, or, with `continuations`, to be scored."""

    prompt: str
    """Rendered by a layout; the engine puts the tokenizer's own start token before it. A `prompts.own.UserMessage` is
    laid out by the engine, in the model's own chat format."""
    max_new_tokens: int = 0
    temperature: float = 0.0
    """0 is greedy; T = 0.7 with top_p = 0.9 is the paper's."""
    top_p: float = 1.0
    seed: int = 0
    """Made of the row id and the recipe, so that a retry samples alike."""
    reply_prefix: str = ""
    """Text that the model has written already and goes on from."""
    continuations: tuple[str, ...] = ()
    """If any: nothing is generated, and `logprobs` holds log p(continuation | prompt, reply_prefix) of each."""


PROMPT_TOO_LONG, LOGITS_NOT_FINITE = "prompt_too_long", "logits_not_finite"
NO_REPLY = {"context": PROMPT_TOO_LONG, "not_finite": LOGITS_NOT_FINITE}
"""Drop reasons of rows for which a model gave no reply, by the request's finish reason."""


@dataclass(frozen=True)
class Completion:
    """What came of a request."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length", "context", "not_finite", "scored"]
    """"stop": the model ended its reply; "length": cut at max_new_tokens; "context": prompt and reply do not fit the
    model's context, nothing was generated; "not_finite": the model computed NaN or infinite logits, so there is no
    reply and no score; "scored": continuations were scored."""
    logprobs: tuple[float, ...] | None = None
    """Of a scored request: log p of each continuation, in nats, summed over its tokens."""
    scored_tokens: tuple[int, ...] | None = None
    """Of a scored request: over how many tokens each sum goes."""


class Engine(Protocol):
    """A loaded model. `generate` may be awaited many times at once."""

    async def generate(self, request: Request) -> Completion:
        """Complete or score one request.

        Raises:
            processes.Dead: the engine itself has died, and will answer nothing any more; any other exception concerns
                this request alone.
        """
        ...

    def close(self) -> None:
        """Free the model; the engine is not used afterwards."""
        ...


async def generate_all(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    """Run requests together; completions come in the order of the requests."""
    return list(await asyncio.gather(*(engine.generate(request) for request in requests)))
