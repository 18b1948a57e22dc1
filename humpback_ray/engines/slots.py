"""Keys and values of the sequences in progress: a row each in one buffer per layer, all ending at the same column.

    columns   0 ... first ............................. end
    row 0           [ prompt and what was written so far ]
    row 1                  [ a shorter one, joined later  ]

Since all rows end together, a step writes one column for all of them. transformers' own growing cache would build new
buffers at every step. When a row ends, the last row takes its place. The columns before a row's start hold old values
of other rows, which the attention mask hides.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import torch
    from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

GRAIN = 64
"""Columns are allocated in multiples of this, or of more."""


def rounded(count: int, least: int) -> int:
    """Round up to a multiple of `least`, or from 16 times `least` to a multiple of 1/16 to 1/8 of the number."""
    grain = max(least, 1 << max(0, (count - 1).bit_length() - 4))
    return -(-count // grain) * grain


@dataclass(frozen=True)
class Prefix:
    """Tokens that many prompts begin with, and their keys and values, [1, heads, tokens, width] per layer."""

    ids: tuple[int, ...]
    keys: "list[torch.Tensor]"
    values: "list[torch.Tensor]"

    def cut(self, length: int) -> "Prefix":
        """Return its first `length` tokens; their keys and values do not depend on later tokens."""
        keys, values = ([tensor[:, :, :length] for tensor in tensors] for tensors in (self.keys, self.values))
        return Prefix(self.ids[:length], keys, values)


@dataclass
class Slots:
    """The rows and the buffers that hold them. A transformers model takes `cache` as `past_key_values`."""

    layer_count: int
    starts: list[int] = field(default_factory=list)
    """The column at which each row begins."""
    end: int = 0
    """The column at which all rows end."""

    def __post_init__(self) -> None:
        from transformers.cache_utils import Cache, CacheLayerMixin

        CacheLayerMixin.register(_Layer)
        self.layers = [_Layer(self, index) for index in range(self.layer_count)]
        self.cache = Cache(layers=cast("list[CacheLayerMixin | LinearAttentionCacheLayerMixin]", self.layers))
        self.tokens = self.rows = self.columns = 0  # size of the buffers' memory, and how it is divided
        self.most_needed = 0  # most tokens, padding included, for which there had to be room so far
        self.part = slice(0, 0)  # rows of the current forward pass
        self.first = self.at = 0  # first column that it sees, and first column that it writes
        self.given: tuple[Prefix, torch.Tensor, torch.Tensor] | None = None  # written to rows [R, 1], columns [R, P]
        self.fixed: tuple[int, int, torch.Tensor] | None = None  # rows, columns and column written [1] of a fixed pass
        self.allocations = 0  # number of times that buffers took a new place in memory

    @property
    def begin(self) -> int:
        """The first column of any row."""
        return min(self.starts, default=self.end)

    def reserve(self, rows: int, before: int, after: int, most_rows: int, most_tokens: int) -> None:
        """Make room for `rows` rows, with columns before and after the common end.

        A buffer's memory grows as needed, up to `most_tokens` rows times columns or what these rows need. It does not
        shrink. How it is divided into rows and columns changes when either run out, and there are few such divisions.
        """
        width = max(before, self.end - self.begin)
        needed = width + after
        self.most_needed = max(self.most_needed, rows * needed)
        if rows > self.rows or needed > self.columns:
            columns = min(rounded(needed, GRAIN), max(needed, most_tokens // rows))
            grown = rows * columns > self.tokens
            if grown:
                self.tokens = max(rows * columns, min(2 * self.tokens, most_tokens))
            self.rows = max(rows, min(most_rows, self.tokens // columns))
            self.columns = max(columns, self.tokens // self.rows // GRAIN * GRAIN)
            for layer in self.layers:
                layer.divide(grown, len(self.starts), slice(self.begin, self.end), width)
            self._end_at(width)
        elif self.end + after > self.columns or before > self.end:
            self.move(width)

    def move(self, end: int) -> None:
        """Move all rows, to end at `end`."""
        for layer in self.layers:
            layer.move(len(self.starts), slice(self.begin, self.end), end)
        self._end_at(end)

    def _end_at(self, end: int) -> None:
        self.starts = [start + end - self.end for start in self.starts]
        self.end = end

    @contextmanager
    def reading(self, lengths: Sequence[int], longest: int, prefix: Prefix | None) -> Iterator[list[int]]:
        """Let a forward pass in the block read new rows, after the existing ones, and write `longest` columns of each.

        Args:
            lengths: tokens of each new row, the prefix included.
            longest: columns of the pass: tokens without the prefix, padded on the left.
            prefix: written before the tokens of each row.
        """
        import torch

        begins = [self.end - length for length in lengths]
        self.part = slice(len(self.starts), len(self.starts) + len(lengths))
        self.at = self.end - longest
        self.first = self.at - (len(prefix.ids) if prefix else 0)
        if prefix:
            rows_R1 = torch.arange(self.part.start, self.part.stop)[:, None]
            self.given = prefix, rows_R1, torch.tensor(begins)[:, None] + torch.arange(len(prefix.ids))
        try:
            yield begins
        finally:
            self.given = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Let a forward pass in the block write the next column of all rows."""
        self.part, self.first, self.at = slice(0, len(self.starts)), self.begin, self.end
        yield
        self.end += 1

    @contextmanager
    def fixing(self, rows: int, columns: int, at_1: "torch.Tensor") -> Iterator[None]:
        """Let a forward pass in the block see the first rows and columns, and write the column that the device names.

        So the pass has the same shapes and addresses at every step, and a mask hides what is not the rows' own.
        """
        self.fixed = rows, columns, at_1
        try:
            yield
        finally:
            self.fixed = None

    def blank(self, rows: Sequence[int]) -> None:
        """Overwrite rows that are not finite with zeros: a mask hides finite values from later rows, but not NaN."""
        if rows:
            for layer in self.layers:
                layer.blank(rows)

    def drop(self, rows: Sequence[int]) -> list[int]:
        """Remove rows; return the old index of each row that remains."""
        gone, left = set(rows), [row for row in range(len(self.starts)) if row not in set(rows)]
        movers = [row for row in left if row >= len(left)]
        holes = [row for row in sorted(gone) if row < len(left)]
        order = list(range(len(left)))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
            for layer in self.layers:
                layer.copy_row(mover, hole, slice(self.starts[mover], self.end))
        self.starts = [self.starts[row] for row in order]
        return order


class _Layer:
    """The buffers of one layer, [rows, heads, columns, width]; a transformers `CacheLayerMixin` by registration."""

    is_sliding = False  # whole rows are kept; a sliding layer's mask hides tokens that are too far back
    is_compileable = is_croppable = False
    is_initialized = True

    def __init__(self, slots: Slots, index: int) -> None:
        self.slots, self.index = slots, index
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    def update(
        self, keys: "torch.Tensor", values: "torch.Tensor", *_: object, **__: object
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """Write the tokens of a pass; return everything that its rows see, [rows, heads, columns seen, width]."""
        slots, last = self.slots, self.slots.at + keys.shape[2]
        if self.keys is None or self.values is None:
            self.keys, self.values = self._allocate(keys), self._allocate(values)
        if slots.fixed:
            rows, columns, at_1 = slots.fixed
            seen = self.keys[:rows, :, :columns], self.values[:rows, :, :columns]
            seen[0].index_copy_(2, at_1, keys)
            seen[1].index_copy_(2, at_1, values)
            return seen
        self.keys[slots.part, :, slots.at : last] = keys
        self.values[slots.part, :, slots.at : last] = values
        if slots.given:
            prefix, rows_R1, columns_RP = slots.given
            self.keys.transpose(1, 2)[rows_R1, columns_RP] = prefix.keys[self.index].transpose(1, 2)
            self.values.transpose(1, 2)[rows_R1, columns_RP] = prefix.values[self.index].transpose(1, 2)
        return self.keys[slots.part, :, slots.first : last], self.values[slots.part, :, slots.first : last]

    def get_seq_length(self) -> "int | torch.Tensor":
        """Return the number of columns that a pass sees, without those it writes; a tensor in a fixed pass."""
        return self.slots.fixed[2] if self.slots.fixed else self.slots.at - self.slots.first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of columns that a pass sees in all, and where they begin."""
        slots = self.slots
        return (slots.fixed[1] if slots.fixed else slots.at - slots.first + query_length), 0

    def get_max_length(self) -> int:
        """Return -1: no maximum."""
        return -1

    def _allocate(self, like: "torch.Tensor") -> "torch.Tensor":
        """Return a new buffer for tensors [B, heads, T, width]; zeros, since masked values must be finite too."""
        self.slots.allocations += 1
        return self._divided(like.new_zeros(self.slots.tokens * like.shape[1] * like.shape[3]), like)

    def _divided(self, memory: "torch.Tensor", like: "torch.Tensor") -> "torch.Tensor":
        """Return memory as a buffer of the current number of rows and columns."""
        shape = self.slots.rows, like.shape[1], self.slots.columns, like.shape[3]
        return memory.as_strided(shape, (math.prod(shape[1:]), math.prod(shape[2:]), shape[3], 1))

    def divide(self, grown: bool, used: int, live: slice, end: int) -> None:
        """Divide the memory, or more of it, into rows and columns; the used rows' live columns then end at `end`."""
        if self.keys is None or self.values is None:
            return
        kept = [buffer[:used, :, live] for buffer in (self.keys, self.values)]
        if grown:
            self.keys, self.values = self._allocate(self.keys), self._allocate(self.values)
        else:
            kept = [tensor.clone() for tensor in kept]
            self.keys, self.values = (self._divided(buffer, buffer) for buffer in (self.keys, self.values))
        for buffer, tensor in zip((self.keys, self.values), kept, strict=True):
            buffer[:used, :, end - (live.stop - live.start) : end] = tensor

    def move(self, used: int, live: slice, end: int) -> None:
        """Move the used rows' live columns, to end at `end`."""
        for buffer in (self.keys, self.values):
            if buffer is not None:
                buffer[:used, :, end - (live.stop - live.start) : end] = buffer[:used, :, live].clone()

    def blank(self, rows: Sequence[int]) -> None:
        """Write zeros to all columns of the given rows."""
        for buffer in (self.keys, self.values):
            if buffer is not None:
                buffer[list(rows)] = 0

    def copy_row(self, source: int, target: int, columns: slice) -> None:
        """Copy columns of one row to another."""
        for buffer in (self.keys, self.values):
            if buffer is not None:
                buffer[target, :, columns] = buffer[source, :, columns]
