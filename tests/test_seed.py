import gzip
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.records import PAIR
from humpback_ray.seed import SeedRecipe, seed_file


def message(text: str, role: str = "assistant", **fields: Any) -> dict[str, Any]:
    return {"text": text, "role": role, "lang": "en", "deleted": False, "synthetic": False, **fields}


def tree(*replies: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"prompt": {**message("Why?", "prompter", replies=list(replies)), **fields}}


def read(*lines: Any, recipe: SeedRecipe | None = None) -> list[dict[str, Any]]:
    data = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    table = seed_file(io.BytesIO(data), "seed.jsonl", recipe or SeedRecipe())
    assert table.schema == PAIR
    assert len(set(table["id"].to_pylist())) == table.num_rows
    return table.to_pylist()


def test_a_tree_gives_its_prompt_and_the_reply_people_ranked_first() -> None:
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
        (b"[]", "bad_json"),
        (b"[" * 100_000, "bad_json"),
        ({"question": "q"}, "no_pair"),
        ({"instruction": "q", "output": ""}, "empty"),
        ({"instruction": 5, "output": "a"}, "empty"),
    ],
)
def test_a_line_that_gives_no_pair_is_a_row_with_its_reason(line: Any, reason: str) -> None:
    (row,) = read(line)
    assert (row["drop_reason"], row["instruction"], row["response"]) == (reason, "", "")


def test_an_only_reply_without_a_rank_counts_if_the_recipe_says_so() -> None:
    recipe = SeedRecipe(accept_unranked_only_reply=True)
    only, two = read(tree(message("only")), tree(message("a"), message("b")), recipe=recipe)
    assert (only["response"], two["drop_reason"]) == ("only", "no_rank_0_reply")


def test_pairs_come_under_configurable_names_with_an_optional_input() -> None:
    first, second = read(
        {"instruction": "Translate.", "input": "cat", "output": "chat"},
        {"instruction": "Hi", "input": "", "output": "Yes"},
    )
    assert (first["instruction"], second["instruction"]) == ("Translate.\n\ncat", "Hi")
    (named,) = read({"q": "Why?", "a": "So."}, recipe=SeedRecipe(instruction_field="q", response_field="a"))
    assert (named["instruction"], named["response"]) == ("Why?", "So.")


def test_a_pair_stays_once_in_a_file_and_over_files() -> None:
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


@given(st.lists(JSON, min_size=1, max_size=4))
def test_any_json_gives_a_row_per_line(values: list[Any]) -> None:
    assert len(read(*values)) == len(values)


@pytest.mark.realdata
def test_the_hundred_real_trees_give_ninety_four_pairs(real_data: Path) -> None:
    with open(real_data / "seed" / "oasst-en-100-trees.jsonl", "rb") as stream:
        table = seed_file(stream, "oasst-en-100-trees.jsonl", SeedRecipe())
    assert Counter(table["drop_reason"].to_pylist()) == {None: 94, "synthetic": 5, "no_rank_0_reply": 1}
