"""Count ids in little memory: 16 bytes per id, and files on disk if there are many."""

import hashlib
import os
import tempfile
from collections import Counter

import numpy as np
import numpy.typing as npt
import pyarrow as pa

HELD_IDS = 1 << 17
"""Number of ids that a multiset holds in memory: 2 MB."""
PARTS = 64
"""Number of files on disk, by the digest; they are compared in memory, one at a time."""

Digests = npt.NDArray[np.uint64]
"""[N, 2]: digests of N ids."""


class Multiset:
    """A multiset of ids, by their digests.

    Args:
        folder: on disk; the caller deletes it.
    """

    def __init__(self, folder: str) -> None:
        self.count = 0
        self._folder, self._held, self._held_count, self._spilled = folder, list[Digests](), 0, ""

    @staticmethod
    def digest(id_: str) -> bytes:
        """Return the 16 bytes that stand for an id."""
        return hashlib.blake2b(id_.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def add(self, ids: "pa.ChunkedArray") -> None:
        """Add ids."""
        together = b"".join(map(self.digest, ids.to_pylist()))
        digests = np.frombuffer(together, dtype=np.uint64).reshape(-1, 2)
        self.count += len(digests)
        self._held.append(digests)
        self._held_count += len(digests)
        if self._held_count > HELD_IDS:
            self._spill()

    def _spill(self) -> None:
        self._spilled = self._spilled or tempfile.mkdtemp(dir=self._folder)
        digests = self._together()
        parts = digests[:, 0] % PARTS
        for part in range(PARTS):
            with open(os.path.join(self._spilled, str(part)), "ab") as file:
                digests[parts == part].tofile(file)
        self._held, self._held_count = [], 0

    def _together(self) -> Digests:
        if len(self._held) > 1:
            self._held = [np.concatenate(self._held)]
        return self._held[0] if self._held else np.zeros((0, 2), np.uint64)

    def _part(self, part: int) -> Digests:
        """Return the digests of a part, sorted."""
        held = self._together()
        mine = held[held[:, 0] % PARTS == part]
        if self._spilled:
            stored = np.fromfile(os.path.join(self._spilled, str(part)), dtype=np.uint64).reshape(-1, 2)
            mine = np.concatenate([stored, mine])
        return mine[np.lexsort((mine[:, 1], mine[:, 0]))]

    def difference(self, other: "Multiset") -> tuple[int, int, bytes] | None:
        """Compare with another multiset.

        Returns:
            The number of ids that only this one has, the number that only the other has, and the digest of one such id;
            None if they are equal.
        """
        missing = surplus = 0
        example = b""
        for part in range(PARTS):
            mine, theirs = self._part(part), other._part(part)
            if np.array_equal(mine, theirs):
                continue
            left, right = (Counter(map(bytes, digests)) for digests in (mine, theirs))
            missing += (left - right).total()
            surplus += (right - left).total()
            example = example or next(iter((left - right) or (right - left)))
        return (missing, surplus, example) if example else None

    def repeated(self) -> bytes:
        """Return the digest of an id that occurs more than once; b"" if every id is unique."""
        for part in range(PARTS):
            mine = self._part(part)
            again = np.flatnonzero((mine[1:] == mine[:-1]).all(axis=1))
            if len(again):
                return mine[again[0]].tobytes()
        return b""
