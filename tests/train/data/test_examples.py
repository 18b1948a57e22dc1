import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.records import TOKENS
from humpback_ray.train.data.examples import Examples, read_examples
from tests.train.conftest import make_tokenizer, rows, tokens_of


def contents(examples: Examples) -> list[tuple[str, list[int], int]]:
    return [(example.id, example.ids.tolist(), example.loss_start) for example in examples]


TABLE = tokens_of(rows(12), make_tokenizer()).select(["id", "source", "ids", "loss_start"])


@given(st.randoms(use_true_random=False), st.integers(0, 10))
def test_examples_do_not_depend_on_files_or_row_order(shuffle: random.Random, cut: int) -> None:
    order = list(range(TABLE.num_rows))
    shuffle.shuffle(order)
    mixed = TABLE.take(pa.array(order))
    found, expected = Examples.of([mixed.slice(0, cut), mixed.slice(cut)]), Examples.of([TABLE])
    assert contents(found) == contents(expected)
    assert found.digest() == expected.digest()
    assert [example.id for example in found] == sorted(TABLE["id"].to_pylist())


def test_any_token_changes_the_digest() -> None:
    whole = Examples.of([TABLE]).digest()
    changed = TABLE.to_pylist()
    changed[3]["ids"][0] += 1
    moved = TABLE.to_pylist()
    moved[3]["loss_start"] += 1
    for some in (changed, moved, TABLE.to_pylist()[1:]):
        assert Examples.of([pa.Table.from_pylist(some, TABLE.schema)]).digest() != whole


def test_tokens_stay_where_arrow_put_them() -> None:
    examples = Examples.of([TABLE])
    (buffer,) = [chunk.values.buffers()[1] for chunk in TABLE["ids"].chunks]
    for example in examples:
        assert buffer.address <= example.ids.ctypes.data < buffer.address + buffer.size


def test_dropped_rows_are_counted_and_not_trained_on(tmp_path: Path, tokenizer: Any) -> None:
    table = tokens_of(rows(12), tokenizer, limit=130)
    lost = {"id": "q", "source": "", "ids": None, "loss_start": None, "drop_reason": "quarantined"}
    pq.write_table(pa.concat_tables([table, pa.Table.from_pylist([lost], TOKENS)]), tmp_path / "tokens.parquet")
    examples, counts = read_examples([str(tmp_path / "tokens.parquet")])
    kept = [row for row in table.to_pylist() if row["drop_reason"] is None]
    assert 0 < len(kept) < table.num_rows
    assert counts == {"kept": len(kept), "too_long": table.num_rows - len(kept), "truncated": 0, "quarantined": 1}
    assert {example.id for example in examples} == {row["id"] for row in kept}
    assert [len(example.ids) for example in examples[:3]] == [example.length for example in list(examples)[:3]]
