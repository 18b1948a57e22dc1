"""The documents that a corpus reader yields, and the compressed stream under every reader.

A reader turns one input file into documents. A record that is not a usable document becomes a `Dropped` with its
reason, so nothing disappears between the archive and the table. Files come from the open web or from interrupted
uploads, so `Inflated` never raises on bad bytes: it stops, remembers why (`fault`) and can resume after the damage. It
returns bounded pieces, so a compression bomb takes time in proportion to its compressed size, and no memory.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from humpback_ray.inputs.decompress import CORRUPT, TRUNCATED, UNSUPPORTED, Decompressed
from humpback_ray.records import content_id

Fault = Literal["truncated", "corrupt", "unsupported"]

COMPRESSED = ("", ".gz", ".bz2", ".xz", ".zst", ".lz4")
"""Suffixes of compression that may follow a file's own suffix."""

_PIECE_BYTES = 256 * 1024
_INPUT_BYTES = 16 * 1024
_BEHIND_BYTES = 80 * 1024  # more than a stored block, the longest part of a gzip member that cannot look wrong
_GZIP_MAGIC = b"\x1f\x8b"
_DICTIONARY_MAGIC = b"\x5d\x2a\x4d\x18"  # a leading Zstandard dictionary, as the WARC draft for Zstandard allows
_MAX_MAGIC_BYTES = 4
_FAULTS: dict[str, Fault] = {TRUNCATED: "truncated", CORRUPT: "corrupt", UNSUPPORTED: "unsupported"}
_MEMBER = re.compile(rb"\x1f\x8b\x08[\x00-\x1f].{4}[\x00\x02\x04][\x00-\x0d\xff]", re.DOTALL)
_MEMBER_HEAD_BYTES = 10


@dataclass(frozen=True)
class Document:
    """One page or text. Exactly one of `html` and `text` is set."""

    document_id: str
    url: str = ""
    html: bytes | None = None
    charset: str | None = None
    """The charset that the HTTP header declares; None: undeclared."""
    text: str | None = None
    cut: bool = False
    """True if its end is missing."""


@dataclass(frozen=True)
class Dropped:
    """A record that is not a usable document."""

    document_id: str
    reason: str
    url: str = ""
    skipped: int = 0
    """Bytes that could not be read, if the reason is damage to the file."""


class Unusable(ValueError):
    """The record gives no document or the page no text; the argument is the drop reason."""

    @property
    def reason(self) -> str:
        """The drop reason."""
        return str(self.args[0])


class Inflated:
    """The bytes of a file, decompressed if its first bytes (not its name) say that it is compressed.

    `read` works as for files: at most `size` bytes, b"" at the end and at damage. `fault` then says which, and `resume`
    continues after damage in a gzip file. Zero padding after the last gzip member is a proper end; any other bytes
    between members are corruption. The bytes read before damage do not depend on the pieces of the stream.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.fault: Fault | None = None
        self.broken = False
        """True if reading stopped inside a gzip member, so all its bytes up to there may be wrong."""
        self.skipped = 0
        """Bytes of the file between damage and the next gzip member, or the end."""
        self._stream = stream
        self._other: Decompressed | None = None
        self._pieces: Iterator[bytes] | None = None
        self._pending = b""
        while len(self._pending) < _MAX_MAGIC_BYTES and self._refill():  # a stream may return less than requested
            pass
        self._gzip = self._pending.startswith(_GZIP_MAGIC)
        if self._pending.startswith(_DICTIONARY_MAGIC):
            self.fault, self._pending, self._pieces = "unsupported", b"", iter(())
        elif not self._gzip:
            stream.seek(0)
            self._other, self._pending = Decompressed(stream), b""
            self._pieces = self._other.pieces()
        self._member = zlib.decompressobj(wbits=31) if self._gzip else None
        self._started = self._stopped = self._given = False
        self._behind = b""  # the last bytes read of the member
        self._member_bytes = 0  # number of bytes read of the member
        self._used = 0  # number of pending bytes that were read before and are not lost
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes (one bounded piece if `size` is negative); b"" at the end and at damage."""
        piece = self._inflate(_PIECE_BYTES if size < 0 else min(size, _PIECE_BYTES)) if size else b""
        self._position += len(piece)
        return piece

    def tell(self) -> int:
        """Return the number of bytes returned so far."""
        return self._position

    def resume(self) -> bool:
        """Go to the next gzip member after damage; tell whether one was found."""
        while self._stopped:
            if found := _MEMBER.search(self._pending):
                self._pass(found.start())
                self._open_member()
                self.fault, self._stopped, self.broken = "corrupt", False, False
                return True
            had = len(self._pending)
            if not self._refill():
                self._pass(had)
                return False
            self._pass(max(0, had - _MEMBER_HEAD_BYTES))
        return False

    def _pass(self, count: int) -> None:
        self._pending = self._pending[count:]
        self.skipped += max(0, count - self._used)
        self._used = max(0, self._used - count)

    def lines(self, max_bytes: int) -> Iterator[bytes]:
        """Yield lines without their newline, including those after damage. Damage ends a line.

        A line longer than `max_bytes` is cut to its first `max_bytes` + 1 bytes.
        """
        line = bytearray()
        while True:
            while piece := self.read():
                *ended, rest = piece.split(b"\n")
                for part in ended:
                    line += part[: max_bytes + 1 - len(line)]
                    yield bytes(line)
                    line.clear()
                line += rest[: max_bytes + 1 - len(line)]
            if line:
                yield bytes(line)
                line.clear()
            if not self.resume():
                return

    def _inflate(self, size: int) -> bytes:
        if self._stopped:
            return b""
        if self._member is None:
            return self._take(size)
        while True:
            if self._member.eof and not self._next_member():
                return b""
            if not self._pending and not self._refill():
                if self._started:
                    self._stop_inside("truncated")
                return b""
            before, some = self._member.copy(), self._pending[:_INPUT_BYTES]
            try:
                piece = self._member.decompress(some, size)
            except zlib.error:
                piece, used = _until_damage(before, some)
                self._use(some[:used])
                self._given |= bool(piece)
                self._stop_inside("corrupt")
                return piece
            left = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            self._use(some[: len(some) - len(left)])
            self._started, self._given = True, self._given or bool(piece)
            if piece:
                return piece

    def _use(self, some: bytes) -> None:
        """Mark pending bytes of the member as read."""
        self._pending = self._pending[len(some) :]
        self._member_bytes += len(some)
        self._behind = (self._behind + some)[-_BEHIND_BYTES:]

    def _stop_inside(self, fault: Fault) -> None:
        """Stop inside a member. If it was cut, later members may have been read as its own, so search its bytes too."""
        behind = self._behind[1:] if len(self._behind) == self._member_bytes else self._behind
        self.skipped += 0 if self._given else self._member_bytes - len(behind)
        self._pending, self._used = behind + self._pending, len(behind) if self._given else 0
        self.fault, self._stopped, self.broken = self.fault or fault, True, self._given and fault == "corrupt"

    def _take(self, size: int) -> bytes:
        if not self._pending:
            self._refill()
        piece, self._pending = self._pending[:size], self._pending[size:]
        return piece

    def _refill(self) -> bool:
        if self._pieces is None:
            piece = self._stream.read(_PIECE_BYTES)
        else:
            piece = next(self._pieces, b"")
            if not piece and self._other and self._other.fault:
                self.fault = _FAULTS[self._other.fault]
        self._pending += piece
        return bool(piece)

    def _next_member(self) -> bool:
        zeros = 0
        while not (rest := self._pending.lstrip(b"\0")) or len(rest) < len(_GZIP_MAGIC):
            zeros += len(self._pending) - len(rest)
            self._pending = rest
            if not self._refill():
                break
        zeros += len(self._pending) - len(rest)
        self._pending = rest
        if not rest:
            return False
        if not _GZIP_MAGIC.startswith(rest[: len(_GZIP_MAGIC)]):
            self.skipped += zeros
            self.fault, self._stopped, self._used = "corrupt", True, 0
            return False
        self._open_member()
        return True

    def _open_member(self) -> None:
        self._member, self._started, self._given = zlib.decompressobj(wbits=31), True, False
        self._behind, self._member_bytes = b"", 0


def _until_damage(member: "zlib._Decompress", some: bytes) -> tuple[bytes, int]:
    """Return the decompressed bytes before the first bad byte, and that byte's position."""
    good, at, step = bytearray(), 0, 1 << len(some).bit_length()
    while step := step // 2:
        trial = member.copy()
        try:
            good += trial.decompress(some[at : at + step])
        except zlib.error:
            continue
        member, at = trial, min(at + step, len(some))
    return bytes(good), at


def broken_off(source: Inflated, trail: bytes, skipped: int = 0, fault: Fault | None = None) -> Iterator[Dropped]:
    """Yield the last row of a damaged or empty file: the fault and the number of bytes skipped.

    Args:
        source: the file, read to its end.
        trail: identifies the readable part of the file.
        skipped: bytes that its reader skipped.
        fault: the fault that its reader found.
    """
    found = source.fault or fault
    if source.tell() == 0 and not source.fault:
        found = "empty"
    elif fault == "corrupt":
        found = fault
    skipped += source.skipped
    if found:
        said = f"{skipped} bytes skipped" if skipped else ""
        yield Dropped(content_id(b"archive", trail, found.encode()), f"archive_{found}", said, skipped)
