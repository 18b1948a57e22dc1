"""Tokens that a model reads and writes, in context, for tokenizers that put a space before every text."""

from functools import cache
from typing import Any, cast

import pytest

from humpback_ray.engines.base import Completion, Request
from humpback_ray.engines.tokens import Reader, Reading
from humpback_ray.prompts.chat import ChatRecipe, encode_reply
from humpback_ray.prompts.own import UserMessage
from tests.prompts import families

PROMPT = ChatRecipe().forward_prompt("How good is it?")
GRADES = tuple(f" {grade}" for grade in range(1, 6))
SENTENCEPIECE = ["llama", "llama, legacy", "sentencepiece, prepending", "unigram, always"]


@cache
def reader(family: str) -> Reader:
    tokenizer = families.FAMILIES[family](True)
    tokenizer.chat_template = "{{- bos_token + 'User: ' + messages[0].content + '\\n\\nBot:\\n' }}"
    return Reader(tokenizer, None, 4096)


def served(this: Reader, text: str) -> list[int]:
    return this.tokenizer.encode(str(this.tokenizer.bos_token) + text, add_special_tokens=False)


def reading(this: Reader, request: Request) -> Reading:
    found = this.read(request)
    assert isinstance(found, Reading)
    return found


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("prompt", [PROMPT, UserMessage("How good is it?"), "It is so.\n"])
def test_a_reply_prefix_has_the_tokens_that_the_model_would_write(family: str, prompt: str) -> None:
    this = reader(family)
    text = f"User: {prompt}\n\nBot:\n" if isinstance(prompt, UserMessage) else prompt
    found = reading(this, Request(prompt, 5, reply_prefix="Yes. Score:"))
    assert found.ids == served(this, text + "Yes. Score:")


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("prefix", ["Score:", "Yes. It is so.\nScore:"])
def test_grades_are_scored_as_the_tokens_that_the_model_would_write(family: str, prefix: str) -> None:
    this = reader(family)
    found = reading(this, Request(PROMPT, reply_prefix=prefix, continuations=GRADES))
    wholes = [served(this, PROMPT + prefix + grade) for grade in GRADES]
    assert [[*found.ids, *tail] for tail in found.tails] == wholes
    assert all(len(tail) <= 2 for tail in found.tails)


@pytest.mark.parametrize("family", SENTENCEPIECE)
def test_a_response_is_scored_without_the_space_that_the_tokenizer_adds(family: str) -> None:
    this = reader(family)
    found = reading(this, Request(PROMPT, continuations=("Yes. It is so.",)))
    assert cast(Any, this.tokenizer).convert_ids_to_tokens(found.tails[0][:1])[0].startswith("Y")


@pytest.mark.parametrize("family", [name for name in families.FAMILIES if name != "unigram, never"])
@pytest.mark.parametrize("text", ["Yes. It is so.", " Yes.", "\nYes.", "  Yes", ""])
def test_a_reply_is_the_text_that_a_server_streams(family: str, text: str) -> None:
    this = reader(family)
    head, written = served(this, PROMPT), encode_reply(this.tokenizer, PROMPT, text)
    streamed = this.tokenizer.decode([*head[1:], *written])[len(this.tokenizer.decode(head[1:])) :]
    assert this.reply(len(head), [*written, *this.end_ids]) == Completion(streamed, len(head), len(written) + 1, "stop")
    if family in families.LOSSLESS:
        assert streamed == text


@pytest.mark.parametrize("family", SENTENCEPIECE[:3])
def test_a_character_cut_at_the_limit_of_a_reply_changes_no_other_text(family: str) -> None:
    this = reader(family)
    (*_, first, second) = this.tokenizer.encode("é", add_special_tokens=False)
    assert this.reply(9, [first]).text == "\ufffd"
    assert this.reply(9, [first, second]).text == "é"


def test_a_reply_in_the_models_own_chat_format_needs_a_template() -> None:
    tokenizer: Any = families.FAMILIES["llama"](True)
    tokenizer.name_or_path = "models/base"
    with pytest.raises(ValueError, match="models/base has no chat template"):
        Reader(tokenizer, None, 4096).read(Request(UserMessage("Hi"), 5))
