"""A target has the tokens that it has after its prompt, and no text has a special token of the tokenizer."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.prompts.chat import ChatRecipe, TurnFormat, encode_example, encode_prompt, encode_reply
from humpback_ray.prompts.plain import Plain, plain
from tests.prompts import families, kinds

CHAT = ChatRecipe()
PROMPT = CHAT.forward_prompt("Which river?")
TEXT = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Co"]), max_size=12),
        st.sampled_from(
            ["Yes", " ", "  ", "\n", "\n\n", "3", "</s>", "<s>", "é", "東京", "Score: 4", "### Response:\n"]
        ),
    ),
    max_size=4,
).map("".join)


@cache
def tokenizer(family: str, bos: bool = True) -> Any:
    return families.FAMILIES[family](bos)


def decoded(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("family", families.FAMILIES)
@given(target=TEXT)
def test_the_loss_starts_where_the_prompt_that_a_server_reads_ends(family: str, bos: bool, target: str) -> None:
    this = tokenizer(family, bos)
    example = encode_example(this, PROMPT, target)
    assert example.ids[: example.loss_start] == encode_prompt(this, PROMPT)
    assert example.ids[example.loss_start :] == [*encode_reply(this, PROMPT, target), this.eos_token_id]
    assert this.eos_token_id not in example.ids[:-1]
    if family in families.LOSSLESS and "▁" not in target:
        shown = decoded(this, example.ids)
        assert shown.endswith(PROMPT + target)
        assert shown.removesuffix(PROMPT + target) in ("", " ")  # the tokenizer's own prefix of every text


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("target", ["Yes. It is so.", "3 or 14", " Yes", "- one\n- two\n\nNo", "  x", "é 東京", "x\n"])
def test_prompt_and_target_are_tokenized_as_one_text(family: str, bos: bool, target: str) -> None:
    this = tokenizer(family, bos)
    whole = this.encode(this.bos_token * bos + PROMPT + target, add_special_tokens=False)
    assert encode_example(this, PROMPT, target).ids == [*whole, this.eos_token_id]


@pytest.mark.parametrize("family", ["llama", "llama, legacy", "sentencepiece, prepending", "unigram, always"])
def test_a_sentencepiece_target_does_not_begin_with_a_space(family: str) -> None:
    this = tokenizer(family)
    example = encode_example(this, PROMPT, "Yes.")
    (first, *_) = this.convert_ids_to_tokens(example.ids[example.loss_start :])
    assert first.startswith("Y")


@pytest.mark.parametrize(
    ("turn", "target"),
    [
        ("\nA:\n", "\nYes"),
        ("\nA:\n\n", "Yes"),
        ("\nA:\n", "\n\nYes"),
        ("\nA: ", "Yes"),
        ("\nA:\n ", " Yes"),
        ("", "Yes"),
    ],
)
@pytest.mark.parametrize("family", families.LOSSLESS)
def test_a_token_that_would_span_prompt_and_target_is_cut_between_them(family: str, turn: str, target: str) -> None:
    this = tokenizer(family)
    prompt = TurnFormat(opening="Q: ", turn=turn).prompt("Which river")
    example = encode_example(this, prompt, target)
    head = example.ids[: example.loss_start]
    assert head == this.encode(this.bos_token + prompt, add_special_tokens=False)
    shown = [decoded(this, ids) for ids in (head, example.ids)]
    assert shown[1] == shown[0] + target


def test_a_token_can_span_prompt_and_target() -> None:
    this = tokenizer("byte-level, llama 3")
    apart = encode_example(this, "Q:\n", "\nYes").ids[1:-1]
    assert apart != this.encode("Q:\n\nYes", add_special_tokens=False)
    assert this.convert_ids_to_tokens(apart)[-3:] != this.convert_ids_to_tokens(this.encode("Q:\n\nYes"))[-3:]


def test_a_tokenizer_without_a_fast_form_is_refused_by_name() -> None:
    class Slow:
        name_or_path = "models/slow"

    with pytest.raises(ValueError, match=r"models/slow .* has no fast form"):
        encode_prompt(Slow(), "a")  # pyright: ignore[reportArgumentType]


def test_threads_that_ask_at_once_get_the_same_form_of_a_tokenizer() -> None:
    for _ in range(5):
        tokenizer, barrier = kinds.make("byte-level"), threading.Barrier(8)

        def ask(tokenizer: Any = tokenizer, barrier: threading.Barrier = barrier) -> Plain:
            barrier.wait()
            return plain(tokenizer)

        with ThreadPoolExecutor(8) as threads:
            assert len({id(form.result()) for form in [threads.submit(ask) for _ in range(8)]}) == 1
