"""Rows of a table by their index among the kept rows."""

import pyarrow as pa

from humpback_ray import storage
from humpback_ray.records import PAIR


def test_kept_rows_are_counted_among_the_kept_and_read_across_row_groups(root: str) -> None:
    rows = [{"id": str(i), "drop_reason": "odd" if i % 2 else None} for i in range(100)]
    table = pa.Table.from_pylist(rows, schema=pa.schema([PAIR.field("id"), PAIR.field("drop_reason")]))
    uri = storage.join(root, "rows.parquet")
    storage.write_bytes(uri, storage.parquet_bytes(table, row_group_rows=7))
    assert storage.read_kept_rows(uri, 10, 15)["id"].to_pylist() == ["20", "22", "24", "26", "28"]
    assert storage.read_kept_rows(uri, 0, 1000)["id"].to_pylist() == [str(i) for i in range(0, 100, 2)]
    assert storage.read_kept_rows(uri, 50, 60).num_rows == 0
