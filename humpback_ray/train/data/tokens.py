"""Pairs → token examples, once per table of pairs and direction, for every model that learns from it.

`prompts.chat` renders and tokenizes both directions, the target as it stands behind its prompt; the loss span is known
by construction. A pair that is longer than the recipe's limit or the base model's context is dropped as `too_long`, or
cut at the end and so without an end token. A pair whose prompt alone fills the limit is always dropped.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from humpback_ray import storage
from humpback_ray.needs import Resources
from humpback_ray.prompts.chat import ChatRecipe, Tokens, encode_example
from humpback_ray.prompts.tokenizer import Tokenizer
from humpback_ray.records import TOKENS
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.models import Model
from humpback_ray.stages.stage import Place, Stage
from humpback_ray.train.base import context_tokens
from humpback_ray.train.data.examples import TOO_LONG, Direction
from humpback_ray.train.recipe import TooLong
from humpback_ray.train.tune import TrainConfig

VERSION = 2
"""Version of what this module computes; raise it by hand when that changes."""


def make_tokens(
    config: TrainConfig,
    chat: ChatRecipe,
    base: Model,
    pairs: Manifest,
    place: Place,
    direction: Direction = "forward",
) -> Manifest:
    """Tokenize the kept pairs of a stage with the base model's tokenizer; every id leaves once."""
    recipe = config.recipe
    identity = {
        "tokens": {
            "version": VERSION, "direction": direction, "max_length_tokens": recipe.max_length_tokens,
            "too_long": recipe.too_long,
        },
        "chat": chat.model_dump(mode="json"),
    }  # fmt: skip
    inputs = {pairs.stage.rpartition("/")[2]: pairs, "base": base.source}
    stage = Stage(place, identity, inputs, TOKENS)
    arguments = (base.directory, chat, direction, recipe.max_length_tokens, recipe.too_long)
    return stage.run(Tokeniser, arguments, config.tokens_placement, pairs)


class Tokeniser:
    """One actor: the base model's tokenizer around the pure function `tokenise`."""

    def __init__(
        self,
        base: storage.Directory,
        chat: ChatRecipe,
        direction: Direction,
        most: int,
        too_long: TooLong,
        resources: Resources,
    ) -> None:
        from transformers import AutoConfig, AutoTokenizer

        directory = storage.local_directory(base, without=(".safetensors",))
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        context = context_tokens(AutoConfig.from_pretrained(directory))
        self.limit = min(most, context or most)
        self.chat = chat
        self.direction: Direction = direction
        self.too_long: TooLong = too_long

    def __call__(self, pairs: pa.Table) -> pa.Table:
        """Tokenize the pairs of a shard."""
        return tokenise(pairs, self.tokenizer, self.chat, self.direction, self.limit, self.too_long)


def tokenise(
    pairs: pa.Table, tokenizer: Tokenizer, chat: ChatRecipe, direction: Direction, limit_tokens: int, too_long: TooLong
) -> pa.Table:
    """Tokenize rows of PAIR: one row of TOKENS for each, in the same order, none longer than the limit."""
    rows = [
        _row(pair, encode_pair(pair, tokenizer, chat, direction), limit_tokens, too_long)
        for pair in pairs.select(["id", "source", "instruction", "response"]).to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=TOKENS)


def encode_pair(pair: Mapping[str, Any], tokenizer: Tokenizer, chat: ChatRecipe, direction: Direction) -> Tokens:
    """Tokenize one pair; exactly the target's tokens and the end token carry loss."""
    if direction == "backward":
        return encode_example(tokenizer, chat.backward_prompt(pair["response"]), pair["instruction"])
    return encode_example(tokenizer, chat.forward_prompt(pair["instruction"], pair["source"]), pair["response"])


def _row(pair: Mapping[str, Any], tokens: Tokens, limit: int, too_long: TooLong) -> dict[str, Any]:
    longer = len(tokens.ids) > limit
    dropped = longer and (too_long == "drop" or tokens.loss_start >= limit)
    return {
        "id": pair["id"],
        "source": pair["source"],
        "ids": [] if dropped else tokens.ids[:limit],
        "loss_start": tokens.loss_start,
        "length": len(tokens.ids),
        "truncated": longer and not dropped,
        "drop_reason": TOO_LONG if dropped else None,
    }
