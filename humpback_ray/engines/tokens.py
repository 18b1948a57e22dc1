"""Between text and the tokens an engine runs on: the same for every engine that has a tokenizer.

A request is tokenised here, so that text that spells a special token stays plain text, and is answered here where no
model is needed for that. Given up: nothing is truncated to fit a context.
"""

import math
from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

from humpback_ray.engines.base import Completion, Request
from humpback_ray.prompts.chat import encode, encode_prompt, encode_reply
from humpback_ray.prompts.tokenizer import Tokenizer

NOT_FINITE = -1
"""Stands for a token that could not be chosen."""


class Reading(NamedTuple):
    """What a model reads of a request: ids [T]; of a scoring one, also what may follow, as ids of each continuation."""

    ids: Sequence[int]
    tails: Sequence[Sequence[int]]


class Reader:
    """Reads requests with a model's tokenizer, and writes its replies.

    Args:
        tokenizer: of transformers.
        ends: ids that end a reply beside the tokenizer's end token, as the checkpoint names them: one, several or None.
        context_tokens: prompt and reply that fit the model.
    """

    def __init__(self, tokenizer: Tokenizer, ends: int | Sequence[int] | None, context_tokens: int) -> None:
        self.tokenizer, self.context_tokens = tokenizer, context_tokens
        every = [*(ends if isinstance(ends, Sequence) else [ends]), tokenizer.eos_token_id]
        self.end_ids = sorted({token for token in every if token is not None})
        self._lead = encode(tokenizer, "a")
        self._lead_characters = len(self._decode(self._lead))

    def read(self, request: Request) -> "Reading | Completion":
        """Tokenise a request; one that does not fit the context or asks for no token has its completion already."""
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
        """Return what an empty prompt is read as: a model needs one token to start from."""
        return [next(i for i in (self.tokenizer.bos_token_id, *self.end_ids, 0) if i is not None)]

    def _split_continuations(self, head: list[int], request: Request) -> Reading:
        """Tokenise the reply's prefix joined with each continuation, since a tokenizer's splits depend on neighbours.

        Returns:
            What all of them, and the prefix alone, begin with; and what is left of each, to be scored after it.
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
        """Make a completion of the tokens a model wrote: up to an end token, or as many as it may.

        They are decoded behind a letter: alone, a SentencePiece model's first token would lose a space that it begins
        with.
        `NOT_FINITE` in place of a token: its logits were not finite.
        """
        if NOT_FINITE in written:
            return Completion("", prompt_tokens, len(written), "not_finite")
        said = list(takewhile(lambda token: token not in self.end_ids, written))
        finished = len(said) < len(written)
        text = self._decode([*self._lead, *said])[self._lead_characters :]
        return Completion(text, prompt_tokens, len(said) + finished, "stop" if finished else "length")

    @staticmethod
    def scored(reading: Reading, sums: Sequence[float]) -> Completion:
        """Make the completion of a scoring request from the sum of each tail's log-probabilities."""
        lengths = tuple(map(len, reading.tails))
        if not all(map(math.isfinite, sums)):
            return Completion("", len(reading.ids), 0, "not_finite")
        return Completion("", len(reading.ids), 0, "scored", tuple(sums), lengths)
