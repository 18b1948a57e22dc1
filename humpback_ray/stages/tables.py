"""Tables of a stage: checks before they are written, and counts."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from humpback_ray.records import QUARANTINED


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Cast a table to a stage's schema; a missing or surplus column is an error that names it."""
    missing, surplus = set(schema.names) - set(table.column_names), set(table.column_names) - set(schema.names)
    if missing or surplus:
        raise ValueError(f"worker returned columns that differ from the schema: {missing=} {surplus=}")
    return table.select(schema.names).cast(schema)


def check_same_ids(shard: str, loaded: pa.Table, made: pa.Table) -> None:
    """Raise unless every id came out exactly as often as it went in (P1)."""
    went, came = Counter(loaded["id"].to_pylist()), Counter(made["id"].to_pylist())
    if went != came:
        lost, surplus = (went - came).total(), (came - went).total()
        raise ValueError(f"shard {shard}: the worker lost {lost} of {went.total()} ids and made up {surplus}")


def blank_row(schema: pa.Schema, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return a quarantined row: the given values, the reason, empty text, and null elsewhere."""
    blank = {field.name: "" if pa.types.is_string(field.type) else None for field in schema}
    return {**blank, **identity, "drop_reason": QUARANTINED}


def drop_counts(table: pa.Table) -> dict[str, int]:
    """Count the dropped rows of a table by reason."""
    counts = table["drop_reason"].drop_null().value_counts().to_pylist()
    return {str(entry["values"]): entry["counts"] for entry in counts}


def is_quarantined(table: pa.Table) -> pa.ChunkedArray:
    """Return a boolean column: whether each row of a table is quarantined."""
    equal = pc.call_function("equal", [table["drop_reason"], pa.scalar(QUARANTINED)])
    return pc.call_function("coalesce", [equal, pa.scalar(False)])


def tokens_of(table: pa.Table) -> int:
    """Sum the token columns of a table, if it has any."""
    names = [name for name in ("prompt_tokens", "completion_tokens") if name in table.column_names]
    return sum(sum(value or 0 for value in table[name].to_pylist()) for name in names)
