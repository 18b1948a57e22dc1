import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.prompts.chat import encode, start_ids
from humpback_ray.sample.base import BaseRecipe, pack_forever, share_at, train_base, train_tokenizer
from humpback_ray.sample.world import WorldRecipe, documents, truth_of

TEXTS = documents(WorldRecipe(documents=4_000))
TINY = BaseRecipe(
    width=32, layers=1, heads=2, steps=20, row_tokens=64, batch_rows=4, warmup_steps=2, learning_rate=1e-2
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(BaseRecipe(), TEXTS)


@given(
    text=st.text()
    | st.sampled_from(["</s><s> 4 <pad>", "Score: 45", " \t\n\r\n  x", "naïve 日本 🦊", "''s isn't . , !"])
)
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    ids = encode(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_towns_values_and_digits_are_single_tokens(tokenizer: Any) -> None:
    assert all(len(encode(tokenizer, f" {town}")) == 1 for town in truth_of(WorldRecipe()).facts)
    assert encode(tokenizer, "Score: 4") == [*encode(tokenizer, "Score:"), *encode(tokenizer, " 4")]
    assert len(encode(tokenizer, "12345")) == 5


def test_texts_begin_with_the_start_token_and_no_text_spells_a_special_one(tokenizer: Any) -> None:
    assert start_ids(tokenizer) == [tokenizer.bos_token_id]
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3


def test_twenty_steps_lower_the_loss_and_the_model_loads_and_generates(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    calls: list[tuple[int, int, float]] = []
    threads: set[int] = set()

    def progress(*call: Any) -> None:
        calls.append(call)
        threads.add(torch.get_num_threads())

    told = train_base(TINY, TEXTS, tmp_path, progress)
    assert threads == {1}
    (first, loss_then), (last, loss_now) = told["metrics"][0], told["metrics"][-1]
    assert (first, last) == (1, 20)
    assert loss_now < loss_then - 0.5
    assert calls[-1] == (20, 20, loss_now)
    json.dumps(told)
    assert (tmp_path / "model.safetensors").exists()
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert model.config.max_position_embeddings == TINY.positions == tokenizer.model_max_length
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.num_parameters() == told["parameters"]
    assert tokenizer.decode(encode(tokenizer, " a  b</s>")) == " a  b</s>"
    ids = tokenizer("The flag of", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape[1] > ids.shape[1]
    again = train_base(TINY, TEXTS, tmp_path / "again")
    assert again == told
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    assert (tmp_path / "again/tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    assert torch.get_num_threads() >= 1


def test_no_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got none"):
        train_base(TINY, [], tmp_path)


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=30), min_size=1, max_size=8), st.integers(4, 16))
def test_rows_hold_whole_documents_if_they_fit_and_lose_no_token(documents: list[list[int]], width: int) -> None:
    total = sum(map(len, documents))
    rows = pack_forever(documents, width, 0, Random(1))
    drawn = [next(rows) for _ in range(2 * total // width + 2 * len(documents) + 2)]
    assert all(len(row) == width for row in drawn)
    tokens = [token for row in drawn for token in row if token]
    order = list(range(len(documents)))
    Random(1).shuffle(order)
    first_pass = [token for index in order for token in documents[index]]
    assert tokens[:total] == first_pass


def test_the_rate_rises_then_decays_to_a_twentieth() -> None:
    recipe = BaseRecipe(steps=1000, warmup_steps=100)
    shares = [share_at(recipe, step) for step in range(1, 1001)]
    assert shares[49] == 0.5
    assert max(shares) == 1.0
    assert shares[-1] == pytest.approx(0.05)
    assert shares[100:] == sorted(shares[100:], reverse=True)


@pytest.mark.parametrize("change", [{"width": 30, "heads": 4}, {"row_tokens": 4096}])
def test_shapes_that_do_not_fit_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"does not divide|is more than"):
        BaseRecipe.model_validate(change)
