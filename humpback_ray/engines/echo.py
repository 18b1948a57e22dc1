"""An engine without a model, for tests and dry runs: it answers with words of the prompt, the same on any machine.

It keeps the protocol's promises (finish reasons, context, seeds, continuation scores that agree with its replies), so a
stage on `echo` runs all the code that a stage on a real model runs. A prompt that asks for a `Score:` line gets one,
drawn from a hash. Its tokens are words. Given up: sense.
"""

import asyncio
import hashlib
import heapq
import math
import re
import time
from random import Random
from typing import Literal

from pydantic import Field

from humpback_ray import storage
from humpback_ray.config import Config
from humpback_ray.engines.base import Completion, Engine, Request
from humpback_ray.needs import Resources

_ASKS_FOR_SCORE = "Score:"
_OTHER_SHARE = 0.1
"""Probability left to continuations that were not asked about."""


class EchoEngine(Config):
    """Words of the prompt, drawn by hash; needs no model."""

    kind: Literal["echo"] = "echo"

    delay_s: float = Field(default=0, ge=0)
    """Seconds that a request takes; an actor runs `batch_rows` requests at once."""

    max_context_tokens: int = Field(default=1 << 20, ge=1)
    """Most words of prompt and reply together."""

    def build(self, directory: "str | storage.Directory", resources: Resources) -> Engine:
        """Return a running engine; nothing is read from `directory`."""
        return Echo(self, resources)


class Echo:
    """The running engine."""

    def __init__(self, config: EchoEngine, resources: Resources) -> None:
        self.config = config
        self._slots = [0.0] * resources.batch_rows

    async def generate(self, request: Request) -> Completion:
        """Complete or score one request, after the delay."""
        await self._take_time()
        prompt_tokens = len((request.prompt + request.reply_prefix).split())
        room = self.config.max_context_tokens - prompt_tokens
        if max(request.max_new_tokens, *(len(text.split()) for text in request.continuations), 0) > room:
            return Completion("", prompt_tokens, 0, "context")
        if request.continuations:
            lengths = tuple(max(1, len(text.split())) for text in request.continuations)
            return Completion("", prompt_tokens, 0, "scored", _logprobs(request), lengths)
        words = re.findall(r"\s*\S+", _reply(request))
        text = "".join(words[: request.max_new_tokens])
        finished = len(words) < request.max_new_tokens  # the end takes a token too
        tokens = min(len(words) + 1, request.max_new_tokens)
        return Completion(text, prompt_tokens, tokens, "stop" if finished else "length")

    def close(self) -> None:
        """Do nothing: there is no model to free."""

    async def _take_time(self) -> None:
        """Wait for the earliest free slot, then `delay_s`; works on any event loop."""
        if self.config.delay_s:
            ready = max(time.monotonic(), self._slots[0]) + self.config.delay_s
            heapq.heapreplace(self._slots, ready)
            await asyncio.sleep(ready - time.monotonic())


def _reply(request: Request) -> str:
    """Make the whole reply to a request: a few words of its prompt, then a score if it asks for one."""
    draw = Random(_digest(request.prompt, request.seed if request.temperature else "greedy"))
    score = f" {draw.randint(1, 5)}"
    if request.reply_prefix.rstrip("*_").endswith(_ASKS_FOR_SCORE):
        return score
    words = request.prompt.split() or ["echo"]
    said = " ".join(draw.choices(words, k=draw.randint(3, 8)))
    return f"{said}\n{_ASKS_FOR_SCORE}{score}" if _ASKS_FOR_SCORE in request.prompt else said


def _logprobs(request: Request) -> tuple[float, ...]:
    """Distribute probability by hash; a continuation that the greedy reply begins with gets most of it."""
    reply = _reply(Request(request.prompt, reply_prefix=request.reply_prefix))
    other = 0.5 / len(request.continuations)
    weights = [
        1.0 if reply.startswith(text) else other * (_digest(request.prompt, text) + 1) / 2**64
        for text in request.continuations
    ]
    total = sum(weights) / (1 - _OTHER_SHARE)
    return tuple(math.log(weight / total) for weight in weights)


def _digest(*parts: object) -> int:
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
