"""Decompress an external file; its first bytes, not its name, decide how.

gzip, bzip2, xz, Zstandard and LZ4, also with several members or frames. Bad bytes never raise: they end the file and
leave a fault. Errors of the storage itself do raise.
"""

import bz2
import contextlib
import gzip
import lzma
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol, cast

import pyarrow as pa

TRUNCATED, CORRUPT, UNSUPPORTED = "archive_truncated", "archive_corrupt", "archive_unsupported"
"""Drop reasons for the missing rest of a file."""

PIECE_BYTES = 256 * 1024


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; b"" at the end."""
        ...


class Decompressed:
    """The decompressed bytes of a file in bounded pieces; bad bytes end the file and leave a `fault`."""

    def __init__(self, stream: BinaryIO) -> None:
        head = stream.read(8)
        stream.seek(0)
        self.fault: str | None = UNSUPPORTED if head.startswith(b"PK\x03\x04") else None  # a zip holds several
        self._plain, self._opened = stream, _decompressed(stream, head)
        self._first = self._read()

    def starts_with(self, magic: bytes) -> bool:
        """Tell whether the content begins with these bytes."""
        return self._first.startswith(magic)

    def pieces(self) -> Iterator[bytes]:
        """Yield the content."""
        piece = self._first
        while piece:
            yield piece
            piece = self._read()

    def _read(self) -> bytes:
        if self.fault:
            return b""
        read = getattr(self._opened, "read1", self._opened.read)  # `read` loses what precedes an error
        try:
            return read(PIECE_BYTES)
        except EOFError:
            self.fault = TRUNCATED
        except (zlib.error, lzma.LZMAError):
            self.fault = CORRUPT
        except OSError as error:
            if error.errno is not None:  # the storage failed, not the content
                raise
            self.fault = TRUNCATED if "runcated" in str(error) else CORRUPT
        return b""

    @contextlib.contextmanager
    def seekable(self) -> Iterator[BinaryIO]:
        """Yield the content as a seekable file: the file itself, or a temporary copy."""
        if self._opened is self._plain:
            yield self._plain
            return
        with tempfile.SpooledTemporaryFile(max_size=64 << 20) as copy:
            for piece in self.pieces():
                copy.write(piece)
            yield cast(BinaryIO, copy)


def _decompressed(stream: BinaryIO, head: bytes) -> Readable:
    """Return a stream of the content, chosen by the file's magic number."""
    pythons: dict[bytes, Callable[[BinaryIO], Readable]] = {
        b"\x1f\x8b": lambda stream: gzip.GzipFile(fileobj=stream),
        b"BZh": bz2.BZ2File,
        b"\xfd7zXZ\0": lzma.LZMAFile,
    }
    for magic, opened in pythons.items():
        if head.startswith(magic):
            return opened(stream)
    skippable = head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5  # a frame that parallel compressors write first
    for codec, magic in (("zstd", b"\x28\xb5\x2f\xfd"), ("lz4", b"\x04\x22\x4d\x18")):
        if head.startswith(magic) or (skippable and codec == "zstd"):
            return pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), codec)
    return stream
