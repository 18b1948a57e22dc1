"""Tables: Parquet files written from memory, and read whole or only their kept rows."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from humpback_ray.storage.connection import s3
from humpback_ray.storage.uri import is_s3


def parquet_bytes(table: pa.Table, row_group_rows: int = 1000) -> bytes:
    """Write a table to Parquet in memory, so an exception halfway publishes nothing."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=row_group_rows)
    return sink.getvalue()


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Read a whole Parquet file."""
    with _open_parquet(uri) as file:
        return pq.read_table(file, columns=columns)


def read_kept_rows(uri: str, start: int, stop: int) -> pa.Table:
    """Read kept rows (`drop_reason` null) start to stop, counted among the kept; only their row groups are read."""
    with _open_parquet(uri) as file:
        parquet = pq.ParquetFile(file)
        seen, tables = 0, []
        for group in range(parquet.num_row_groups):
            kept = parquet.read_row_group(group, columns=["drop_reason"]).column(0).is_null()
            count = kept.to_pylist().count(True)
            low, high = max(start - seen, 0), min(stop - seen, count)
            if low < high:
                tables.append(parquet.read_row_group(group).filter(kept).slice(low, high - low))
            seen += count
            if seen >= stop:
                break
        return pa.concat_tables(tables) if tables else parquet.schema_arrow.empty_table()


def _open_parquet(uri: str) -> Any:
    """Open a file for Arrow, a local one natively: threads that hold a Python file at exit abort the process."""
    return s3().open(uri, from_end=True) if is_s3(uri) else pa.OSFile(uri, "rb")  # the footer is at the end
