from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray import storage
from humpback_ray.operate.verify import verify
from humpback_ray.placement import PoolPlacement
from humpback_ray.prompts.chat import ChatRecipe, encode, encode_prompt
from humpback_ray.records import PAIR
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.models import Model
from humpback_ray.stages.outputs import TableWriter
from humpback_ray.stages.stage import Drift, Place, Stage
from humpback_ray.storage.inventory import Hashes, resolve_model
from humpback_ray.train.data.examples import read_examples
from humpback_ray.train.data.tokens import encode_pair, make_tokens, tokenise
from humpback_ray.train.recipe import TrainRecipe
from humpback_ray.train.tune import TrainConfig
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


def made(pairs: Sequence[dict[str, Any]], limit: int, too_long: Any = "drop") -> list[dict[str, Any]]:
    table = pa.Table.from_pylist([{"score": None, "drop_reason": None, **row} for row in pairs], schema=PAIR)
    return tokenise(table, TOKENIZER, CHAT, "forward", limit, too_long).to_pylist()


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


@given(st.lists(pair, max_size=8), st.integers(8, 120), st.sampled_from(["drop", "truncate"]))
def test_every_pair_leaves_once_none_longer_than_the_limit_and_what_is_kept_carries_loss(
    some: list[dict[str, Any]], limit: int, too_long: Any
) -> None:
    found = made(some, limit, too_long)
    assert [row["id"] for row in found] == [row["id"] for row in some]
    for row, given_pair in zip(found, some, strict=True):
        whole = encode_pair(given_pair, TOKENIZER, CHAT, "forward")
        assert (row["length"], row["loss_start"]) == (len(whole.ids), whole.loss_start)
        assert row["ids"] == ([] if row["drop_reason"] else whole.ids[:limit])
        assert row["drop_reason"] or row["loss_start"] < len(row["ids"])
        assert row["drop_reason"] == ("too_long" if not row["ids"] else None)
        assert row["truncated"] == (len(row["ids"]) < row["length"] and not row["drop_reason"])
        assert not (row["truncated"] and too_long == "drop")


def test_a_truncated_example_loses_its_end_and_one_with_a_long_prompt_is_dropped() -> None:
    row = rows(1)[0] | {"response": "word " * 200}
    whole = encode_pair(row, TOKENIZER, CHAT, "forward")
    (cut,) = made([row], whole.loss_start + 5, "truncate")
    assert (cut["ids"], cut["truncated"]) == (whole.ids[: whole.loss_start + 5], True)
    (gone,) = made([row], whole.loss_start, "truncate")
    assert (gone["ids"], gone["truncated"], gone["drop_reason"]) == ([], False, "too_long")


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end token"):
        encode_pair(rows(1)[0], tokenizer, CHAT, "forward")


def write_pairs(attempt: Attempt) -> Commit:
    writer = TableWriter(attempt, PAIR)
    for some in (rows(30)[:20], rows(30)[20:]):
        writer.write(pa.Table.from_pylist(some, schema=PAIR))
    return writer.commit()


@pytest.mark.ray
def test_the_stage_gives_each_kept_pair_a_fate_and_runs_once_for_each_recipe(
    base: Path, tmp_path: Path, local_ray: None
) -> None:
    pairs = Stage(Place("seed", str(tmp_path / "seed"), "test"), {}, {}, PAIR).leased(write_pairs)
    model = Model(str(base), resolve_model("base_model", str(base), Hashes(str(tmp_path / "hashes.json"))))
    place = Place("tokens/seed", str(tmp_path / "tokens/seed"), "test")
    config = TrainConfig(
        recipe=TrainRecipe(max_length_tokens=140),
        tokens_placement=PoolPlacement(rows_per_shard=10, cpus_per_replica=0.5),
    )
    tokens = make_tokens(config, CHAT, model, pairs, place)
    assert (tokens.rows, len(tokens.commits)) == (27, 3)
    kept = [row for row in rows(30) if row["drop_reason"] is None]
    expected = {row["id"]: row for row in made(kept, 140)}
    assert {row["id"]: row for table in tokens.tables(kept=False) for row in table.to_pylist()} == expected
    examples, counts = read_examples([storage.join(tokens.uri, file.name) for file in tokens.files])
    assert counts == {"kept": tokens.kept, "too_long": 27 - tokens.kept, "truncated": 0}
    assert 0 < tokens.kept < 27
    assert len(examples) == tokens.kept

    storage.write_bytes(str(tmp_path / "run.json"), b"{}")
    assert "each of 27 ids from seed has one fate" in list(verify(str(tmp_path)))[-1]

    other_model = config.model_copy(update={"recipe": TrainRecipe(max_length_tokens=140, learning_rate=1.0, seed=3)})
    assert make_tokens(other_model, CHAT, model, pairs, place) == tokens
    cutting = config.model_copy(update={"recipe": TrainRecipe(max_length_tokens=140, too_long="truncate")})
    with pytest.raises(Drift, match="too_long"):
        make_tokens(cutting, CHAT, model, pairs, place)
    with pytest.raises(Drift, match="seed_tag"):
        make_tokens(config, ChatRecipe(seed_tag=None), model, pairs, place)
