"""Pairs → token examples, in one direction.

Forward examples (m0, m1, ...) are instruction → response with the source's tag; backward ones are response →
instruction, untagged. `prompts.chat` renders and tokenises both; the loss span is known by construction. Examples are
sorted by id, so that neither files nor row order decide what a step sees.

Given up for now: every worker tokenises all pairs, about 2,000 a second.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from humpback_ray import storage
from humpback_ray.prompts.chat import ChatRecipe, Tokens, encode_example

Direction = Literal["forward", "backward"]

_COLUMNS = ["id", "source", "instruction", "response", "drop_reason"]


@dataclass(frozen=True)
class Example:
    """A pair as the model reads it."""

    id: str
    tokens: Tokens

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.tokens.ids)

    @property
    def output_tokens(self) -> int:
        """Tokens that carry loss."""
        return len(self.tokens.ids) - self.tokens.loss_start


def read_pairs(uris: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    """Read PAIR tables; return the rows that were kept, and how many earlier stages had dropped."""
    rows = [row for uri in uris for row in storage.read_table(uri, columns=_COLUMNS).to_pylist()]
    kept = [row for row in rows if row["drop_reason"] is None]
    return kept, len(rows) - len(kept)


def encode_pair(pair: Mapping[str, Any], tokenizer: Any, chat: ChatRecipe, direction: Direction) -> Tokens:
    """Tokenise one pair; exactly the target's tokens and the end token carry loss."""
    if direction == "backward":
        return encode_example(tokenizer, chat.backward_prompt(pair["response"]), pair["instruction"])
    return encode_example(tokenizer, chat.forward_prompt(pair["instruction"], pair["source"]), pair["response"])


def make_examples(
    pairs: Iterable[Mapping[str, Any]],
    tokenizer: Any,
    chat: ChatRecipe,
    direction: Direction,
    limit_tokens: int,
    too_long: Literal["drop", "truncate"] = "drop",
) -> tuple[list[Example], Counter[str]]:
    """Tokenise pairs, sorted by id, none longer than the limit.

    Returns:
        The examples, and counts: `kept`, `too_long` (dropped), and `truncated` (a part of the kept). A truncated
        example loses its end, and with it the end token; one whose prompt alone fills the limit is dropped.
    """
    examples: list[Example] = []
    counts: Counter[str] = Counter(kept=0, too_long=0, truncated=0)
    for pair in sorted(pairs, key=lambda pair: (pair["id"], pair["source"], pair["instruction"], pair["response"])):
        tokens = encode_pair(pair, tokenizer, chat, direction)
        if len(tokens.ids) > limit_tokens:
            if too_long == "drop" or tokens.loss_start >= limit_tokens:
                counts["too_long"] += 1
                continue
            tokens = Tokens(tokens.ids[:limit_tokens], tokens.loss_start)
            counts["truncated"] += 1
        counts["kept"] += 1
        examples.append(Example(pair["id"], tokens))
    return examples, counts
