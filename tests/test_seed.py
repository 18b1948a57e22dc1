import bz2
import gzip
import io
import json
import lzma
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.records import PAIR
from humpback_ray.seed import SeedRecipe, seed_file


def message(text: str, role: str = "assistant", **fields: Any) -> dict[str, Any]:
    return {"text": text, "role": role, "lang": "en", "deleted": False, "synthetic": False, **fields}


def tree(*replies: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"prompt": {**message("Why?", "prompter", replies=list(replies)), **fields}}


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


def utf16(data: bytes) -> bytes:
    return data.decode().encode("utf-16")


def with_bom(data: bytes) -> bytes:
    return data.decode().encode("utf-8-sig")


def crlf(data: bytes) -> bytes:
    return data.replace(b"\n", b"\r\n\r\n")


def parquet(records: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), sink)
    return sink.getvalue()


def read(*lines: Any, recipe: SeedRecipe | None = None) -> list[dict[str, Any]]:
    data = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    table = seed_file(io.BytesIO(data), "seed.jsonl", recipe or SeedRecipe())
    assert table.schema == PAIR
    assert len(set(table["id"].to_pylist())) == table.num_rows
    return table.to_pylist()


def test_a_tree_gives_its_prompt_and_the_reply_that_people_ranked_first() -> None:
    (row,) = read(tree(message("second", rank=1), message(" best ", rank=0, replies=[message("deeper", rank=0)])))
    assert (row["instruction"], row["response"], row["source"], row["drop_reason"]) == ("Why?", "best", "seed", None)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (tree(message("r", rank=0), synthetic=True), "synthetic"),
        (tree(message("r", rank=0), deleted=True), "deleted"),
        (tree(message("r", rank=0), lang="de"), "not_english"),
        (tree(message("r", rank=0), role="assistant"), "wrong_role"),
        (tree(message("r", rank=0, synthetic=True), message("s", rank=1)), "synthetic"),
        (tree(message("r", rank=0, deleted=True)), "deleted"),
        (tree(message("r", rank=0, lang="es")), "not_english"),
        (tree(message("r", "prompter", rank=0)), "wrong_role"),
        (tree(message(" ", rank=0)), "empty"),
        (tree(message("r", rank=0), text=""), "empty"),
        (tree(message("r"), message("s")), "no_rank_0_reply"),
        (tree(message("r", rank=None)), "no_rank_0_reply"),
        (tree(message("r", rank=1)), "no_rank_0_reply"),
        (tree(message("r", rank=False)), "no_rank_0_reply"),
        (tree(), "no_reply"),
        (tree(replies=None), "no_reply"),
        (tree(replies=["r"]), "no_reply"),
        (b"{", "bad_json"),
        (b"[]", "archive_empty"),
        (b"[" * 100_000, "bad_json"),
        ('{"instruction": "é", "output": "a"}'.encode("latin-1"), "not_utf8"),
        (5, "no_pair"),
        ({}, "no_pair"),
        ({"title": "t", "body": "b"}, "no_pair"),
        ({"title": "t", "tags": ["a", "b"], "meta": {"prompt": "p", "output": "o"}}, "no_pair"),
        ({"turns": ["q", "and another question"]}, "no_pair"),
        ({"question": "q", "context": "c", "answers": {"text": ["a", "b"]}}, "no_pair"),
        ({"question": "q"}, "no_pair"),
        ({"instruction": "q", "output": ""}, "empty"),
        ({"instruction": 5, "output": "a"}, "empty"),
        ({"instruction": None, "output": "a"}, "empty"),
        ({"instruction": "q", "output": True}, "not_text"),
        ({"instruction": "q", "context": {"page": 1}, "response": "a"}, "not_text"),
        ({"conversations": []}, "empty"),
        ({"conversations": ["q"]}, "no_reply"),
        ({"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "q"}]}, "wrong_role"),
        ({"messages": [{"role": "system", "content": "s"}]}, "empty"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "tool", "content": "a"}]}, "wrong_role"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}]}, "empty"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": "a"}]},
            "not_text",
        ),
    ],
)
def test_a_line_that_gives_no_pair_is_a_row_with_its_reason(line: Any, reason: str) -> None:
    (row,) = read(line)
    assert (row["drop_reason"], row["instruction"], row["response"]) == (reason, "", "")


def test_a_single_reply_without_a_rank_counts_if_the_recipe_says_so() -> None:
    recipe = SeedRecipe(accept_unranked_only_reply=True)
    only, two = read(tree(message("only")), tree(message("a"), message("b")), recipe=recipe)
    assert (only["response"], two["drop_reason"]) == ("only", "no_rank_0_reply")


def test_pairs_and_turns_come_under_configurable_names() -> None:
    record = {"q": "Why?", "a": "So.", "c": "The cat.", "talk": ["Who?", "She."], "instruction": "i", "output": "o"}
    pair = SeedRecipe.model_validate({"form": {"kind": "pair", "instruction": "q", "response": "a", "about": "c"}})
    talk = SeedRecipe.model_validate({"form": {"kind": "conversation", "field": "talk"}})
    (named,), (spoken,) = read(record, recipe=pair), read(record, recipe=talk)
    assert (named["instruction"], named["response"]) == ("Why?\n\nThe cat.", "So.")
    assert (spoken["instruction"], spoken["response"]) == ("Who?", "She.")
    oasst = SeedRecipe.model_validate({"form": {"kind": "oasst"}})
    assert [row["drop_reason"] for row in read(record, tree(message("r", rank=0)), recipe=oasst)] == ["no_pair", None]
    assert read({"b": 1}, recipe=talk)[0]["drop_reason"] == "no_pair"


Q, A = "Name a river.", "The Po."
FORMS: list[dict[str, Any]] = [
    {"instruction": Q, "input": "", "output": A},
    {"instruction": Q, "input": None, "output": A, "text": "Below is an instruction ..."},
    {"instruction": Q, "input": float("nan"), "output": A},
    {"instruction": Q, "input": "<noinput>", "output": A},
    {"Instruction": Q, "Output": A},
    {"instruction": Q, "context": "", "response": A, "category": "open_qa"},
    {"instruction": Q, "instances": [{"input": "", "output": A}, {"input": "x", "output": "y"}]},
    {"instruction": "And the sea?", "input": "", "output": "No.", "history": [[Q, A], ["x", "y"]]},
    {"prompt": Q, "completion": A},
    {"prompt": Q, "response": A},
    {"prompt": [{"role": "user", "content": Q}], "completion": [{"role": "assistant", "content": A}]},
    {"prompt": Q, "chosen": [{"role": "user", "content": Q}, {"role": "assistant", "content": A}], "rejected": []},
    {"question": Q, "answer": A},
    {"query": Q, "response": A},
    {"inputs": Q, "targets": A},
    {"input": Q, "output": A},
    {"conversations": [Q, A, "Thanks!", "Welcome."]},
    {"id": "0", "data": [Q, A, "Thanks!", "Welcome."]},
    {"conversations": [{"from": "human", "value": Q, "weight": None}, {"from": "gpt", "value": A}]},
    {"conversations": json.dumps([{"from": "human", "value": Q}, {"from": "gpt", "value": A}])},
    {"items": [{"from": "user", "value": Q}, {"from": "bot", "value": A}]},
    {"messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": A}], "prompt": Q},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": Q}]}, {"role": "assistant", "content": [A]}]},
    {"messages": {"role": ["user", "assistant"], "content": [Q, A]}},
    {"conversation": [{"human": Q, "assistant": A}, {"human": "x", "assistant": "y"}]},
    {"Human": Q, "Assistant": A},
    {"instruction": Q, "output": A, "system": {"cpu": 1}},
    {"instruction": Q, "output": "", "target": A},
    {"row_idx": 0, "row": {"instruction": Q, "output": A}},
]


@pytest.mark.parametrize("record", FORMS, ids=lambda record: ",".join(record))
def test_a_record_of_any_usual_form_gives_its_first_turn(record: dict[str, Any]) -> None:
    for rows in (read(record), read({**dict.fromkeys(["rank", "lang", "context", "response"]), **record})):
        assert [(row["instruction"], row["response"], row["drop_reason"]) for row in rows] == [(Q, A, None)]


def test_one_file_may_mix_all_forms() -> None:
    rows = read(*FORMS, {"unheard": 1}, tree(message("r", rank=0)))
    reasons = Counter(row["drop_reason"] for row in rows)
    assert reasons == {None: 2, "repeated_record": len(FORMS) - 1, "no_pair": 1}


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": Q, "input": "In Italy.", "output": A},
        {"instruction": Q, "context": "In Italy.", "response": A},
        {"instruction": Q, "instances": [{"input": "In Italy.", "output": A}]},
        {"question": Q, "context": "In Italy.", "answer": A},
        {"instruction": "", "input": f"{Q}\n\nIn Italy.", "output": A},
    ],
)
def test_the_input_of_an_instruction_follows_it(record: dict[str, Any]) -> None:
    assert read(record)[0]["instruction"] == f"{Q}\n\nIn Italy."


def test_a_number_is_an_answer_as_written() -> None:
    assert [row["response"] for row in read(*({"prompt": "2+2?", "completion": n} for n in (4, 4.5)))] == ["4", "4.5"]


@pytest.mark.parametrize(("policy", "instruction"), [("leave_out", Q), ("prepend", f"Be brief.\n\n{Q}"), ("drop", "")])
def test_a_system_message_is_left_out_or_prepended_or_drops_the_pair(policy: Any, instruction: str) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": Q}]
    spoken = {"messages": [*turns, {"role": "assistant", "content": A}]}
    beside = {"conversations": [Q, A], "system": "Be brief."}
    for record in (spoken, beside, {"system_prompt": "Be brief.", "question": Q, "response": A}):
        (row,) = read(record, recipe=SeedRecipe(system=policy))
        assert (row["instruction"], row["drop_reason"]) == (instruction, None if instruction else "system_message")


@pytest.mark.parametrize("name", ["alpaca.json", "lima.jsonl", "messages.jsonl", "oasst-flat.jsonl", "sharegpt.jsonl"])
@pytest.mark.parametrize("packed", [bytes, gzip.compress, bz2.compress, lzma.compress, zstd, utf16, with_bom, crlf])
def test_files_of_every_form_give_their_pairs_however_they_are_packed(
    name: str, packed: Callable[[bytes], bytes]
) -> None:
    data = packed((Path(__file__).parent / "seeds" / name).read_bytes())
    rows = seed_file(io.BytesIO(data), name, SeedRecipe()).to_pylist()
    kept = {" ".join(row["instruction"].split()): row["response"] for row in rows if row["drop_reason"] is None}
    expected = {
        "Name three rivers of northern Italy.": "The Po, the Adige and the Piave.",
        "Translate the sentence into French. The kettle is on the stove.": "La bouilloire est sur la cuisinière.",
        "Why does bread rise?": "Yeast eats sugars in the dough and gives off gas, which the gluten holds.",
    }
    refused = name == "oasst-flat.jsonl"
    assert kept == dict(list(expected.items())[: 2 if refused else 3])
    assert [row["drop_reason"] for row in rows] == [None, None, "refused" if refused else None]


def test_parquet_gives_the_pairs_of_nested_columns() -> None:
    records = [
        {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}], "rank": None},
        {"conversations": None, "rank": 1},
    ]
    rows = seed_file(io.BytesIO(parquet(records)), "train.parquet", SeedRecipe()).to_pylist()
    assert [(row["instruction"], row["drop_reason"]) for row in rows] == [(Q, None), ("", "no_pair")]
    flat = [json.loads(line) for line in (Path(__file__).parent / "seeds/oasst-flat.jsonl").read_text().splitlines()]
    rows = seed_file(io.BytesIO(gzip.compress(parquet(flat))), "oasst", SeedRecipe()).to_pylist()
    assert [row["drop_reason"] for row in rows] == [None, None, "refused"]


def test_wrapped_records_are_found() -> None:
    pairs = [{"prompt": f"{n}?", "completion": f"{n}!"} for n in range(3)]
    for wrapped in (
        {str(number): pair for number, pair in enumerate(pairs)},
        {"version": "1", "data": pairs},
        {"rows": [{"row": pair} for pair in pairs]},
        [[pair] for pair in pairs],
    ):
        for indent in (None, 2):
            rows = read(json.dumps(wrapped, indent=indent).encode())
            assert [row["instruction"] for row in rows] == ["0?", "1?", "2?"]


def flat(name: str, parent: str | None, **fields: Any) -> dict[str, Any]:
    role = "assistant" if parent else "prompter"
    return {"message_id": name, "parent_id": parent, "message_tree_id": "t", **message(name, role), **fields}


def test_messages_in_any_order_are_assembled_into_trees_and_each_tree_is_a_row() -> None:
    messages = [
        flat("deeper", "again", rank=0), flat("best", "q", rank=0), flat("q", None), flat("worse", "q", rank=1),
        flat("again", "best", role="prompter"), flat("lost", "nowhere", rank=0), flat("a", "b"), flat("b", "a"),
    ]  # fmt: skip
    rows = read(*messages)
    assert [(row["response"], row["drop_reason"]) for row in rows] == [("best", None), *[("", "no_prompt")] * 3]
    assert [row["drop_reason"] for row in read(*messages[1:4], *messages[1:4])] == [None, "repeated_record"]


@pytest.mark.parametrize(
    ("fields", "reason", "setting"),
    [
        ({"tree_state": "growing"}, "tree_not_ready", {"tree_states": None}),
        ({"tree_state": "aborted_low_grade"}, "tree_not_ready", {"tree_states": ["aborted_low_grade"]}),
        ({"review_result": False}, "refused", {"include_refused": True}),
        ({"deleted": True}, "deleted", {"include_deleted": True}),
        ({"synthetic": True}, "synthetic", {"include_synthetic": True}),
        ({"lang": "de"}, "not_english", {"language": "de-AT"}),
        ({"lang": "pt-BR"}, "not_english", {"language": None}),
        ({"review_result": None}, None, {}),
        ({"tree_state": "ready_for_export"}, None, {}),
        ({"lang": "en-US"}, None, {"language": "en_GB"}),
        ({"lang": "EN"}, None, {}),
        ({"lang": None}, None, {}),
    ],
)
def test_the_exports_own_flags_decide(fields: dict[str, Any], reason: str | None, setting: dict[str, Any]) -> None:
    reply = {key: value for key, value in fields.items() if key == "lang"}
    nested = tree(message("a", rank=0, **reply), **fields) | {"tree_state": fields.get("tree_state")}
    loose = [flat("q", None, **fields), flat("a", "q", rank=0, **reply)]
    for records in ([nested], loose):
        assert [row["drop_reason"] for row in read(*records)] == [reason]
        assert [row["drop_reason"] for row in read(*records, recipe=SeedRecipe.model_validate(setting))] == [None]


def test_a_refused_reply_does_not_count_for_its_rank_but_a_single_usable_one_may() -> None:
    refused = tree(message("bad", rank=0, review_result=False), message("good", rank=1))
    assert read(refused)[0]["drop_reason"] == "refused"
    only = tree(message("spam", review_result=False), message("good"))
    (row,) = read(only, recipe=SeedRecipe(accept_unranked_only_reply=True))
    assert row["response"] == "good"


def test_a_pair_stays_once_in_a_file_and_across_files() -> None:
    pair = {"instruction": "q", "output": "a"}
    assert [row["drop_reason"] for row in read(pair, pair, b"{", b"{")] == [
        None,
        "repeated_record",
        "bad_json",
        "repeated_record",
    ]
    seen: Counter[str] = Counter()
    for reason in (None, "repeated_record"):
        table = seed_file(io.BytesIO(json.dumps(pair).encode()), "a.jsonl", SeedRecipe(), seen)
        assert table["drop_reason"].to_pylist() == [reason]


def test_a_cut_file_says_so() -> None:
    lines = b"".join(json.dumps({"instruction": str(n), "output": str(n * 7919)}).encode() + b"\n" for n in range(3000))
    table = seed_file(io.BytesIO(gzip.compress(lines)[:-100]), "a.jsonl.gz", SeedRecipe())
    assert table["drop_reason"].to_pylist()[-1] == "archive_truncated"
    assert table["drop_reason"].to_pylist()[0] is None


KEYS = st.sampled_from(["prompt", "replies", "text", "rank", "lang", "role", "deleted", "instruction", "output"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["prompt", "replies", "text", "rank", "lang", "role", "deleted", "instruction", "output"]),
            inner,
        )
    ),
    max_leaves=15,
)


@given(st.lists(st.dictionaries(KEYS, JSON), min_size=1, max_size=4))
def test_any_object_gives_a_row_or_the_rows_of_the_objects_it_wraps(values: list[Any]) -> None:
    whole, single = read(*values), [read(value) for value in values]
    assert all(single)
    assert len(whole) == sum(map(len, single))
    assert len(read(json.dumps(values, indent=1).encode())) == len(whole)


@pytest.mark.realdata
def test_the_hundred_real_trees_give_ninety_four_pairs(real_data: Path) -> None:
    with open(real_data / "seed" / "oasst-en-100-trees.jsonl", "rb") as stream:
        table = seed_file(stream, "oasst-en-100-trees.jsonl", SeedRecipe())
    assert Counter(table["drop_reason"].to_pylist()) == {None: 94, "synthetic": 5, "no_rank_0_reply": 1}
