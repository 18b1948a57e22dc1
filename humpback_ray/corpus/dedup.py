"""Exact duplicates across the whole corpus: choose which of the rows with the same text stays.

Two segments are duplicates if their normalized text is the same (`segments.text_hash`). The one with the smallest id
stays. Ids are hashes of content, so the choice does not depend on the order of rows, files or shards. Copies of a
record that was crawled twice under one id differ only in their order; the first of them stays.

Memory is bounded by 16 bytes per hash, 16 per id and some indices, about 60 bytes a row: 10^8 segments fit on a CPU
node with 16 GiB. With digests of this length, the chance of one false duplicate among 10^8 rows is about 10^-23.
"""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DIGEST_BYTES = 16
REASON = "exact_duplicate"
_SLICE_ROWS = 1 << 20

_HEX_VALUE = np.full(256, 255, dtype=np.uint8)
_HEX_VALUE[list(b"0123456789abcdef")] = np.arange(16, dtype=np.uint8)


def duplicates(ids: pa.ChunkedArray, hashes: pa.ChunkedArray) -> pa.Array:
    """Return the drop reason of every kept segment: `exact_duplicate`, or null for the rows that stay.

    Args:
        ids: row ids, string, all kept segments of the corpus.
        hashes: their `text_hash`, string, in the same order.

    Returns:
        string [rows]. Exactly one of the rows with the same hash is null, and no id is null twice.

    Raises:
        ValueError: the columns differ in length or contain nulls.
    """
    if len(ids) != len(hashes):
        raise ValueError(f"{len(ids)} ids for {len(hashes)} hashes: they must be columns of one table")
    if ids.null_count or hashes.null_count:
        raise ValueError(f"{ids.null_count} ids and {hashes.null_count} hashes are null: pass kept segments only")
    named = _digests(ids)
    stays = _first_of_each(_digests(hashes), named)
    survivors = np.flatnonzero(stays)
    stays[survivors[~_first_of_each(named[survivors])]] = False
    choices = [pa.array(stays), pa.scalar(None, pa.string()), pa.scalar(REASON)]
    return pc.call_function("if_else", choices)


def _first_of_each(keys: np.ndarray, ranks: np.ndarray | None = None) -> np.ndarray:
    """Return bool [rows]: True at the row of smallest rank, then the earliest, per equal key. Arguments: [rows, 2]."""
    columns = [keys[:, 1], keys[:, 0]] if ranks is None else [ranks[:, 1], ranks[:, 0], keys[:, 1], keys[:, 0]]
    order = np.lexsort(columns)  # stable; the last column sorts first
    first = np.ones(len(keys), dtype=bool)
    if len(keys):
        first[order[1:]] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    return first


def _digests(column: pa.ChunkedArray) -> np.ndarray:
    """Return uint64 [rows, 2]: each string's first 32 hex digits, or the start of its SHA-256 if it is not hex."""
    slices = (chunk.slice(at, _SLICE_ROWS) for chunk in column.chunks for at in range(0, len(chunk), _SLICE_ROWS))
    parts = [_digests_of(part) for part in slices]
    return np.concatenate(parts) if parts else np.empty((0, 2), dtype=np.uint64)


def _digests_of(chunk: pa.Array) -> np.ndarray:
    texts = chunk.cast(pa.large_binary())
    _, offset_buffer, data = texts.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    widths = np.diff(offsets)
    width = int(widths[0])
    if data is not None and width >= 2 * DIGEST_BYTES and (widths == width).all():
        rows = np.frombuffer(data, dtype=np.uint8)[offsets[0] : offsets[-1]].reshape(-1, width)
        digits = _HEX_VALUE[rows[:, : 2 * DIGEST_BYTES]]
        if digits.max() < 16:
            return _words((digits[:, ::2] << 4 | digits[:, 1::2]).tobytes())
    plain = (hashlib.sha256(value).digest()[:DIGEST_BYTES] for value in texts.to_pylist())
    return _words(b"".join(plain))


def _words(digests: bytes) -> np.ndarray:
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64).reshape(-1, 2)
