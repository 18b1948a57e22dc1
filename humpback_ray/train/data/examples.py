"""Training examples: token tables, each row a pair tokenized in one direction, sorted by id.

Forward examples (m0, m1, ...) are instruction → response with the source's tag; backward examples are response →
instruction, untagged. tokens.py makes the tables. Since examples are sorted by id, a step does not depend on files or
row order. Token ids stay in the buffers that Arrow read them into.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, overload

import numpy as np
import pyarrow as pa

from humpback_ray import storage
from humpback_ray.records import TOKENS

Direction = Literal["forward", "backward"]

TOO_LONG = "too_long"
"""Drop reason of an example that is longer than the limit."""

_COLUMNS = ["id", "source", "ids", "loss_start"]


@dataclass(frozen=True)
class Example:
    """A pair as the model reads it."""

    id: str
    ids: np.ndarray
    """Tokens of prompt and target, int32 [T]; read-only."""
    loss_start: int
    """Index of the first token that carries loss: the target's first."""

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.ids)

    @property
    def output_tokens(self) -> int:
        """Number of tokens that carry loss."""
        return len(self.ids) - self.loss_start


class Examples(Sequence[Example]):
    """Rows of a table of tokens, in a given order.

    Args:
        table: rows of TOKENS without a drop reason.
        rows: indices of the rows.
    """

    def __init__(self, table: pa.Table, rows: np.ndarray) -> None:
        self._table, self._rows = table, rows

    @staticmethod
    def of(tables: Sequence[pa.Table]) -> "Examples":
        """Return all rows of the tables, sorted by id."""
        table = pa.concat_tables([TOKENS.empty_table().select(_COLUMNS), *tables])
        keys = table.select(["id", "source"]).append_column("place", pa.array(range(table.num_rows), pa.int64()))
        return Examples(table, keys.sort_by([("id", "ascending"), ("source", "ascending")])["place"].to_numpy())

    def split(self, apart: Callable[[str, str], bool]) -> tuple["Examples", "Examples"]:
        """Return the examples for which `apart(id, source)` is false, and those for which it is true, in order."""
        ids, sources = (self._table[name].to_pylist() for name in ("id", "source"))
        chosen = np.array([apart(ids[row], sources[row]) for row in self._rows], bool)
        return Examples(self._table, self._rows[~chosen]), Examples(self._table, self._rows[chosen])

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self._example(row) for row in self._rows[index]]
        return self._example(self._rows[index])

    def _example(self, row: int | np.integer) -> Example:
        table, row = self._table, int(row)
        return Example(table["id"][row].as_py(), table["ids"][row].values.to_numpy(), table["loss_start"][row].as_py())

    def digest(self) -> str:
        """Return a digest of the examples: ids, tokens and where the loss starts, in order."""
        found = hashlib.sha256()
        for example in self:
            found.update(f"{example.id} {example.loss_start} {example.length} ".encode())
            found.update(example.ids.tobytes())
        return found.hexdigest()


def read_examples(uris: Sequence[str]) -> tuple[Examples, Counter[str]]:
    """Read files of TOKENS.

    Returns:
        The examples, and counts: `kept`, `too_long` (dropped), `truncated` (a part of the kept), and any other drop
        reason.
    """
    tables: list[pa.Table] = []
    counts: Counter[str] = Counter(kept=0, too_long=0, truncated=0)
    for uri in uris:
        table = storage.read_table(uri, columns=[*_COLUMNS, "truncated", "drop_reason"])
        counts.update(reason for reason in table["drop_reason"].drop_null().to_pylist())
        kept = table.filter(table["drop_reason"].is_null())
        counts["kept"] += kept.num_rows
        counts["truncated"] += kept["truncated"].to_pylist().count(True)
        tables.append(kept.select(_COLUMNS))
    return Examples.of(tables), counts
