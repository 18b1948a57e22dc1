"""Plain transformers on an engine's model: the rival in speed, and the judge of what the engine wrote.

The rival is the usual loop: `generate` on padded batches of 32, in order. The judge generates one by one. In float32
the engine's replies must equal its replies, except where two tokens are equally likely. In bfloat16 another batch size
rounds differently, and after one different token all later ones differ. So there the check also measures how far the
logit of each written token is behind the first choice.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from humpback_ray.engines.base import Completion, Request
from humpback_ray.prompts.chat import encode, encode_prompt

BATCH = 32
"""Prompts of a batch of the usual loop."""


@dataclass(frozen=True)
class Difference:
    """How an engine's replies and scores differ from those of plain transformers."""

    equal: int
    """Replies that are equal."""
    count: int
    behind: float
    """How far the worst written token is behind the first choice, as a share of the largest logit."""
    gap: float
    """The same for the first tokens that differ: what the choice between them hung on. 0 if all replies are equal."""
    scored: float
    """Largest difference of a continuation's log-probability, in nats."""


class Plain:
    """A model in plain transformers.

    Args:
        where: its directory.
        device: device that runs it.
    """

    def __init__(self, where: Path, device: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(where, padding_side="left")
        loaded: Any = AutoModelForCausalLM.from_pretrained(where, dtype=torch.bfloat16, device_map=device)
        self.model = loaded.eval()

    def widen(self) -> None:
        """Compute in float32 from now on, with the same weights."""
        self.model = self.model.float()

    def write(self, requests: Sequence[Request]) -> list[str]:
        """Generate greedily in one padded batch up to the longest reply; return each reply cut to its own length."""
        batch = self.tokenizer([one.prompt for one in requests], return_tensors="pt", padding=True).to(
            self.model.device
        )
        most = max(one.max_new_tokens for one in requests)
        ids = self.model.generate(**batch, max_new_tokens=most, do_sample=False)[:, batch["input_ids"].shape[1] :]
        cut = [row[: one.max_new_tokens] for row, one in zip(ids, requests, strict=True)]
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in cut]

    def tokens_per_s(self, requests: Sequence[Request]) -> float:
        """Return the speed of padded batches, in order; tokens beyond a reply's length do not count."""
        self.write([Request(one.prompt, 2) for one in requests[:BATCH]])
        began = time.monotonic()
        for first in range(0, len(requests), BATCH):
            self.write(requests[first : first + BATCH])
        return sum(one.max_new_tokens for one in requests) / (time.monotonic() - began)

    def compare(
        self, requests: Sequence[Request], replies: Sequence[Completion], grading: Sequence[Request],
        graded: Sequence[Completion],
    ) -> Difference:  # fmt: skip
        """Compare an engine's replies and scores with ours, one by one."""
        own = [self.write([request])[0] for request in requests]
        pairs = [(request, reply.text) for request, reply in zip(requests, replies, strict=True)]
        behind = [self._behind(request, text) for request, text in pairs]
        gaps = [
            found[first_difference(text, mine)]
            for (_, text), mine, found in zip(pairs, own, behind, strict=True)
            if text != mine
        ]
        apart = [
            abs(theirs - mine)
            for request, found in zip(grading, graded, strict=True)
            for theirs, mine in zip(found.logprobs or (), self._scores(request), strict=True)
        ]
        return Difference(len(own) - len(gaps), len(own), max(map(max, behind)), max(gaps, default=0.0), max(apart))

    def _logits(self, ids: Sequence[int], last: int) -> Any:
        """Return the logits after the last tokens of a sequence, float32 [last, V]."""
        import torch

        with torch.inference_mode():
            found = self.model(torch.tensor([ids], device=self.model.device), logits_to_keep=last)
        return found.logits[0].float()

    def _behind(self, request: Request, text: str) -> list[float]:
        """Return how far each token of a text is behind the first choice there, as a share of the largest logit."""
        import torch

        written = encode(self.tokenizer, text)
        ids = [*encode_prompt(self.tokenizer, request.prompt), *written]
        logits = self._logits(ids[:-1], len(written))
        chosen = logits.gather(1, torch.tensor(written, device=logits.device)[:, None])[:, 0]
        return ((logits.max(1).values - chosen) / logits.abs().max()).tolist()

    def _scores(self, request: Request) -> list[float]:
        """Return the log-probability of each continuation; each is one token."""
        ids = [*encode_prompt(self.tokenizer, request.prompt), *encode(self.tokenizer, request.reply_prefix)]
        logits = self._logits(ids, 1)[0].log_softmax(0)
        return [logits[encode(self.tokenizer, one)[0]].item() for one in request.continuations]


def first_difference(text: str, other: str) -> int:
    """Return the first place at which two unequal texts differ; a letter is a token."""
    return next((place for place, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1]),
                min(len(text), len(other)) - 1)  # fmt: skip
