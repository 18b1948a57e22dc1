"""From text to the tokens an engine runs on, and back: the same for every engine that has a tokenizer.

Requests are tokenized here, so text that spells a special token stays plain text. Requests that need no model are
answered here. Given up: nothing is truncated to fit a context.
"""

import math
from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

from humpback_ray.engines.base import Completion, Request
from humpback_ray.prompts.chat import encode, encode_prompt, encode_reply
from humpback_ray.prompts.tokenizer import Tokenizer

NOT_FINITE = -1
"""Stands for a token that could not be chosen, since its logits were not finite."""


class Reading(NamedTuple):
    """Token ids [T] that a model reads for a request; `tails` has the ids of each continuation to score, if any."""

    ids: Sequence[int]
    tails: Sequence[Sequence[int]]


class Reader:
    """Reads requests with a model's tokenizer, and writes its replies.

    Args:
        tokenizer: a transformers tokenizer.
        ends: ids that end a reply besides the tokenizer's end token, as in the checkpoint: one, several or None.
        context_tokens: most tokens of prompt and reply together.
    """

    def __init__(self, tokenizer: Tokenizer, ends: int | Sequence[int] | None, context_tokens: int) -> None:
        self.tokenizer, self.context_tokens = tokenizer, context_tokens
        every = [*(ends if isinstance(ends, Sequence) else [ends]), tokenizer.eos_token_id]
        self.end_ids = sorted({token for token in every if token is not None})
        self._lead = encode(tokenizer, "a")
        self._lead_characters = len(self._decode(self._lead))

    def read(self, request: Request) -> "Reading | Completion":
        """Tokenize a request; return its completion if it does not fit the context or asks for no token."""
        head = encode_prompt(self.tokenizer, request.prompt)
        ids, tails = [*head, *self._reply_ids(request, "")] or self._first_ids(), []
        prompt_tokens = len(ids)
        if request.continuations:
            ids, tails = self._split_continuations(head or self._first_ids(), request)
        longest = max(map(len, tails)) if tails else request.max_new_tokens
        if len(ids) + longest > self.context_tokens:
            return Completion("", prompt_tokens, 0, "context")
        return Reading(ids, tails) if longest else Completion("", prompt_tokens, 0, "length")

    def _first_ids(self) -> list[int]:
        """Return the ids that stand for an empty prompt: a model needs one token to start from."""
        return [next(i for i in (self.tokenizer.bos_token_id, *self.end_ids, 0) if i is not None)]

    def _split_continuations(self, head: list[int], request: Request) -> Reading:
        """Tokenize the reply's prefix joined with each continuation, since a tokenizer's splits depend on context.

        Returns:
            The tokens that all of them and the prefix alone begin with; and the rest of each, to be scored after them.

        Raises:
            ValueError: a continuation adds no token.
        """
        prefix = self._reply_ids(request, "")
        replies = [self._reply_ids(request, text) for text in request.continuations]
        shared = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(prefix, *replies, strict=False)))
        tails = [reply[shared:] for reply in replies]
        if not all(tails):
            raise ValueError(f"a continuation adds no token to its prefix: {request.continuations}")
        return Reading([*head, *prefix[:shared]], tails)

    def _reply_ids(self, request: Request, text: str) -> list[int]:
        """Return the ids of a reply that begins with the request's prefix, as the model writes them."""
        return encode_reply(self.tokenizer, request.prompt, request.reply_prefix + text)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def reply(self, prompt_tokens: int, written: Sequence[int]) -> Completion:
        """Make a completion of the tokens that a model wrote, up to the first end token.

        They are decoded after a letter: alone, a SentencePiece model's first token would lose a leading space. If a
        token is `NOT_FINITE`, there is no reply.
        """
        if NOT_FINITE in written:
            return Completion("", prompt_tokens, len(written), "not_finite")
        said = list(takewhile(lambda token: token not in self.end_ids, written))
        finished = len(said) < len(written)
        text = self._decode([*self._lead, *said])[self._lead_characters :]
        return Completion(text, prompt_tokens, len(said) + finished, "stop" if finished else "length")

    @staticmethod
    def scored(reading: Reading, sums: Sequence[float]) -> Completion:
        """Make a scoring request's completion from the sum of each tail's log-probabilities."""
        lengths = tuple(map(len, reading.tails))
        if not all(map(math.isfinite, sums)):
            return Completion("", len(reading.ids), 0, "not_finite")
        return Completion("", len(reading.ids), 0, "scored", tuple(sums), lengths)
