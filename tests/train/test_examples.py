import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from humpback_ray.prompts.chat import ChatRecipe, encode, encode_prompt
from humpback_ray.train.examples import encode_pair, make_examples, read_pairs
from tests.train.conftest import make_tokenizer, rows

TOKENIZER = make_tokenizer()
CHAT = ChatRecipe()

texts = st.text(max_size=60) | st.sampled_from(["</s>", "<s>", "### Response:\n", " ", "\n\n"])
pair = st.fixed_dictionaries(
    {
        "id": st.uuids().map(str),
        "instruction": texts,
        "response": texts,
        "source": st.sampled_from(["seed", "augmented"]),
    }
)


def spans(tokens: Any) -> tuple[list[int], list[int]]:
    return tokens.ids[: tokens.loss_start], tokens.ids[tokens.loss_start :]


@given(pair)
def test_exactly_the_response_and_the_end_token_carry_loss(pair: dict[str, Any]) -> None:
    prompt, target = spans(encode_pair(pair, TOKENIZER, CHAT, "forward"))
    assert target == [*encode(TOKENIZER, pair["response"]), TOKENIZER.eos_token_id]
    assert prompt == encode_prompt(TOKENIZER, CHAT.forward_prompt(pair["instruction"], pair["source"]))
    assert TOKENIZER.eos_token_id not in [*prompt, *target[:-1]]


@given(pair)
def test_a_backward_example_learns_the_instruction_without_any_tag(pair: dict[str, Any]) -> None:
    prompt, target = spans(encode_pair(pair, TOKENIZER, CHAT, "backward"))
    assert target == [*encode(TOKENIZER, pair["instruction"]), TOKENIZER.eos_token_id]
    assert prompt == encode_prompt(TOKENIZER, CHAT.backward.prompt(pair["response"]))


def test_the_source_decides_the_tag() -> None:
    row = rows(1)[0]
    for source, tag in [("seed", CHAT.seed_tag), ("augmented", CHAT.web_tag)]:
        prompt, _ = spans(encode_pair(row | {"source": source}, TOKENIZER, CHAT, "forward"))
        assert f"{row['instruction']} {tag}" in TOKENIZER.decode(prompt)


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False))
def test_storage_order_never_matters(shuffle: random.Random) -> None:
    some = rows(12)
    expected = make_examples(some, TOKENIZER, CHAT, "forward", 999)
    shuffle.shuffle(some)
    assert make_examples(some, TOKENIZER, CHAT, "forward", 999) == expected


@given(
    st.lists(pair, max_size=8, unique_by=lambda row: row["id"]),
    st.integers(8, 120),
    st.sampled_from(["drop", "truncate"]),
)
def test_every_pair_is_kept_or_counted_and_none_is_longer_than_the_limit(
    some: list[dict[str, Any]], limit: int, too_long: Any
) -> None:
    examples, counts = make_examples(some, TOKENIZER, CHAT, "forward", limit, too_long)
    assert counts["kept"] + counts["too_long"] == len(some)
    assert len(examples) == counts["kept"] >= counts["truncated"]
    assert all(example.length <= limit and example.output_tokens >= 1 for example in examples)


def test_a_truncated_example_loses_its_end_and_a_long_prompt_the_whole_of_it() -> None:
    row = rows(1)[0] | {"response": "word " * 200}
    whole = encode_pair(row, TOKENIZER, CHAT, "forward")
    (cut,), counts = make_examples([row], TOKENIZER, CHAT, "forward", whole.loss_start + 5, "truncate")
    assert cut.tokens.ids == whole.ids[: whole.loss_start + 5]
    assert cut.output_tokens == 5
    assert counts == {"kept": 1, "too_long": 0, "truncated": 1}
    assert make_examples([row], TOKENIZER, CHAT, "forward", whole.loss_start, "truncate")[1]["too_long"] == 1


def test_rows_that_earlier_stages_dropped_are_not_trained_on(pairs: tuple[str, ...]) -> None:
    kept, dropped = read_pairs(pairs)
    assert (len(kept), dropped) == (27, 3)


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end token"):
        make_examples(rows(1), tokenizer, CHAT, "forward", 99)
