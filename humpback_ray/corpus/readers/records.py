"""The records of a WARC file, including those after damage.

A record is accepted if it ends where its head says: with two line ends, the next record or the end of the file.
Otherwise it is damaged and its length cannot be trusted, so reading continues at the next head of a record; the bytes
in between are skipped and counted. The content of a record does not depend on the pieces in which the file is read.

Given up: a record longer than the limit that contains another archive verbatim. Its length is not trusted either, so
the records of that archive come out too.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from humpback_ray.corpus.readers.base import Inflated

DAMAGED, TOO_LARGE = "record_damaged", "too_large"
"""Drop reasons of records."""

_MARK = re.compile(rb"WARC/\d\.\d{1,2}[ \t]{0,8}\r?\n[\w-]{1,64}[ \t]{0,8}:")
_MARK_BYTES = 128
_TWO_LINE_ENDS = re.compile(rb"\r?\n\r?\n")
_MAX_HEAD_BYTES = 64 * 1024
_BLANK = b"\r\n\t \0"
_MAGIC = b"WARC/"


@dataclass(frozen=True)
class WarcRecord:
    """A record of a file; the names of `headers` are in lower case, the first header of a name counts."""

    headers: dict[str, str]
    block: bytes
    fault: Literal["record_damaged", "too_large"] | None = None
    """Why there is no block."""


class Records:
    """The records of a file, in order. After the last one, the attributes say what was wrong with the file."""

    def __init__(self, source: Inflated, max_bytes: int) -> None:
        self.skipped = 0
        """Bytes of the decompressed file outside readable records."""
        self.corrupt = self.cut = False
        """`corrupt`: bytes were skipped before the end of the file; `cut`: the file ends inside a record."""
        self._source, self._max_bytes, self._buffer = source, max_bytes, bytearray()

    def __iter__(self) -> Iterator[WarcRecord]:
        """Yield every record that has a readable head."""
        while True:
            while self._skip_blank():
                if record := self._record():
                    yield record
            if not self._source.resume():
                return

    def _record(self) -> WarcRecord | None:
        """Read the record that begins here, or skip to the next one."""
        buffer, head_end = self._buffer, self._head_end()
        begun = _MAGIC.startswith(buffer[: len(_MAGIC)])
        headers = _headers(bytes(buffer[:head_end]))
        stated = headers.get("content-length", "")
        if not re.fullmatch("[0-9]{1,18}", stated):
            self._lose(self._seek(1), begun)
            return WarcRecord(headers, b"", DAMAGED) if headers else None
        length = int(stated)
        end = head_end + length
        if length > self._max_bytes:
            passed = self._seek(head_end)
            if end <= passed <= end + _MARK_BYTES:
                return WarcRecord(headers, b"", TOO_LARGE)
        else:
            if self._ends_at(end):
                block = bytes(buffer[head_end:end])
                del buffer[:end]
                return WarcRecord(headers, block)
            passed = self._seek(head_end)
        self._lose(passed, begun)
        return WarcRecord(headers, b"", DAMAGED)

    def _lose(self, count: int, begun: bool) -> None:
        self.skipped += count
        if begun and not self._buffer:
            self.cut = True
        else:
            self.corrupt = True

    def _head_end(self) -> int:
        """Return the length of the head that begins here; 0 if there is no head."""
        self._fill(_MARK_BYTES)
        if not _MARK.match(self._buffer):
            return 0
        while not (found := _TWO_LINE_ENDS.search(self._buffer, 0, _MAX_HEAD_BYTES)):
            if len(self._buffer) >= _MAX_HEAD_BYTES or not self._fill(len(self._buffer) + 1):
                return 0
        return found.end()

    def _ends_at(self, end: int) -> bool:
        """Tell whether the record ends here.

        If the compressed bytes break off or fail their checksum right after a record, that record is the faulty one.
        """
        self._fill(end + 2 * _MARK_BYTES)
        behind = self._buffer[end : end + 2 * _MARK_BYTES]
        closed = bool(_TWO_LINE_ENDS.match(behind))
        if following := behind.lstrip(_BLANK):
            return closed or bool(_MARK.match(following))
        if len(behind) == 2 * _MARK_BYTES:
            return closed
        whole = len(self._buffer) >= end and not self._source.broken
        self.cut |= whole and not closed
        return whole

    def _skip_blank(self) -> bool:
        """Go to the next byte that is not blank; tell whether one was found."""
        while self._fill(1):
            blank = len(self._buffer) - len(self._buffer.lstrip(_BLANK))
            del self._buffer[:blank]
            if self._buffer:
                return True
        return False

    def _seek(self, start: int) -> int:
        """Go to the next head at or after `start`, or to the end; return the number of bytes passed."""
        buffer, passed = self._buffer, 0
        while not (found := _MARK.search(buffer, start)):
            done = max(start, len(buffer) - _MARK_BYTES)
            if not self._fill(max(len(buffer), done) + 1):
                passed += len(buffer)
                buffer.clear()
                return passed
            del buffer[:done]
            passed, start = passed + done, 0
        at = found.start()
        del found
        del buffer[:at]
        return passed + at

    def _fill(self, size: int) -> bool:
        """Read until the buffer holds `size` bytes; tell whether it does."""
        while len(self._buffer) < size and (piece := self._source.read()):
            self._buffer += piece
        return len(self._buffer) >= size


def _headers(head: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in head.splitlines()[1:]:
        name, colon, value = line.decode("utf-8", "replace").partition(":")
        if colon:
            headers.setdefault(name.strip().lower(), value.strip())
    return headers
