"""What a corpus reader yields, and the compressed stream under every reader.

A reader turns one input file into documents. A record that is no usable document is a `Dropped` with its reason, so
that nothing disappears between the archive and the table. Files come from the open web or from interrupted uploads:
`Inflated` therefore never raises on bad bytes, it stops and remembers why (`fault`), and it hands out bounded pieces,
so that a compression bomb costs time in proportion to its compressed size and no memory.
"""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

Fault = Literal["truncated", "corrupt"]

_PIECE_BYTES = 256 * 1024
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Document:
    """One page or text. Exactly one of `html` and `text` is set."""

    document_id: str
    url: str = ""
    html: bytes | None = None
    charset: str | None = None
    """What the HTTP header declared; None: undeclared."""
    text: str | None = None
    cut: bool = False
    """Whether its end is missing."""


@dataclass(frozen=True)
class Dropped:
    """A record that is no usable document."""

    document_id: str
    reason: str
    url: str = ""


class Inflated:
    """The bytes of a file, gunzipped where it is gzip (told by its first bytes, not by its name).

    `read` follows files: at most `size` bytes, b"" at the end. After b"", `fault` says whether the end was a real one;
    zero padding behind the last gzip member is a real end, any other trailing bytes are corruption.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.fault: Fault | None = None
        self.tail = b""
        """The last bytes read, up to 4: how the file ended."""
        self._stream = stream
        self._pending = stream.read(_PIECE_BYTES)
        if len(self._pending) == 1:  # a stream may hand out less than was asked for
            self._pending += stream.read(_PIECE_BYTES)
        self._gzip = self._pending[:2] == _GZIP_MAGIC
        self._member = zlib.decompressobj(wbits=31) if self._gzip else None
        self._started = False
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes (one bounded piece where `size` is negative); b"" at the end."""
        piece = self._inflate(_PIECE_BYTES if size < 0 else min(size, _PIECE_BYTES)) if size else b""
        self._position += len(piece)
        self.tail = (self.tail + piece[-4:])[-4:]
        return piece

    def tell(self) -> int:
        """Return the number of bytes handed out."""
        return self._position

    def lines(self, max_bytes: int) -> Iterator[bytes]:
        """Yield lines without their newline; of a longer line only its first `max_bytes` + 1 bytes."""
        line = bytearray()
        while piece := self.read():
            *ended, rest = piece.split(b"\n")
            for part in ended:
                line += part[: max_bytes + 1 - len(line)]
                yield bytes(line)
                line.clear()
            line += rest[: max_bytes + 1 - len(line)]
        if line:
            yield bytes(line)

    def _inflate(self, size: int) -> bytes:
        if self.fault:
            return b""
        if self._member is None:
            return self._take(size)
        while True:
            if self._member.eof and not self._next_member():
                return b""
            if not self._pending and not self._refill():
                self.fault = "truncated" if self._started else None
                return b""
            try:
                piece = self._member.decompress(self._pending, size)
            except zlib.error:
                self.fault = "corrupt"
                return b""
            self._started = True
            self._pending = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            if piece:
                return piece

    def _take(self, size: int) -> bytes:
        if not self._pending:
            self._refill()
        piece, self._pending = self._pending[:size], self._pending[size:]
        return piece

    def _refill(self) -> bool:
        self._pending = self._stream.read(_PIECE_BYTES)
        return bool(self._pending)

    def _next_member(self) -> bool:
        while not self._pending.strip(b"\0"):
            if not self._refill():
                return False
        self._pending = self._pending.lstrip(b"\0")
        if not self._pending.startswith(_GZIP_MAGIC[: len(self._pending)]):
            self.fault = "corrupt"
            return False
        self._member, self._started = zlib.decompressobj(wbits=31), True
        return True


def content_id(*parts: bytes) -> str:
    """Return an id made of bytes alone: 32 hex digits of SHA-256 over the parts and their lengths."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:32]


def clean(text: str) -> str:
    """Return text that Arrow and every tokenizer take: lone surrogates replaced, NUL and line-ending variants gone."""
    text = text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")
    return text.encode("utf-8", "replace").decode("utf-8")
