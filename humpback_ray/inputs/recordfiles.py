"""Read records from files as people publish them: JSON lines, arrays or objects, or Parquet; UTF-8, UTF-16 or UTF-32.

The first bytes of a file say what it is, never its name. gzip, bzip2, xz, Zstandard and LZ4 are decompressed; a byte
order mark, or zeros between ASCII characters, indicate UTF-16 and UTF-32. If the first line is a JSON object, the file
is read line by line, and a bad line costs one line. Otherwise a file that begins with a bracket is read value by value:
an array (its elements are the records), objects over several lines, or objects with commas between them.

Each line that is not blank and each element gives a `Record`, a bad one with its `fault`. Bad bytes never raise; they
end the file with the fault `archive_truncated` or `archive_corrupt`. Errors of the storage itself do raise.

Limits: archives of several files (zip, tar), CSV and Arrow files are not read.
"""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from humpback_ray.inputs.decompress import CORRUPT, PIECE_BYTES, TRUNCATED, Decompressed

BAD_JSON, TOO_LARGE, NOT_UTF8 = "bad_json", "too_large", "not_utf8"
EMPTY = "archive_empty"

MAX_RECORD_BYTES = 20_000_000
"""Default size limit of a line or an element."""

_MAX_VALUE_CHARS = 1 << 29
"""Reading gives up on a value that has not ended after this many characters. Arrays are read element by element."""
_PARQUET_ROWS = 256
_BOM = "\ufeff".encode()
_BLANK = b" \t\r\n" + _BOM


@dataclass(frozen=True)
class Record:
    """A value of a file, or the reason why it has none."""

    place: str
    """Where it is, in words: "line 3", "record 2"."""
    raw: bytes
    """Its bytes, for an id; b"" if its end is unknown."""
    value: object = None
    fault: str | None = None
    """Why there is no value, as a drop reason. A fault that begins with `archive_` is the file's and comes last."""


def records(stream: BinaryIO, max_bytes: int = MAX_RECORD_BYTES) -> Iterator[Record]:
    """Yield the records of a file in order; for a file without any, one with the fault `archive_empty`.

    Args:
        stream: the file, from its start; seekable.
        max_bytes: a longer line or element gets the fault `too_large`.
    """
    file, last = Decompressed(stream), None
    for last in _parquet(file) if file.starts_with(b"PAR1") else _json(file, max_bytes):
        yield last
    fault = file.fault or (None if last else EMPTY)
    if fault and not (last and last.fault and last.fault.startswith("archive_")):
        yield Record("the file", b"", fault=fault)


def _parquet(file: Decompressed) -> Iterator[Record]:
    """Yield the rows of a Parquet file without columns of times: Python cannot hold all times, and pairs need none."""
    number = 0
    with file.seekable() as stream:
        try:
            parquet = pq.ParquetFile(pa.PythonFile(stream, mode="r"))
            for batch in parquet.iter_batches(batch_size=_PARQUET_ROWS, use_threads=False):
                told = [i for i, column in enumerate(batch.schema) if not pa.types.is_temporal(column.type)]
                for row in range(batch.num_rows):
                    number += 1
                    yield _row(f"row {number}", batch.slice(row, 1).select(told))
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            file.fault = file.fault or CORRUPT


def _row(place: str, batch: pa.RecordBatch) -> Record:
    try:
        (value,) = batch.to_pylist()
    except UnicodeDecodeError:
        return Record(place, b"", fault=NOT_UTF8)
    return Record(place, json.dumps(value, sort_keys=True, default=str).encode(), value)


def _json(file: Decompressed, max_bytes: int) -> Iterator[Record]:
    """Read lines or values, depending on how the file begins."""
    pieces, head = _utf8(file.pieces()), bytearray()
    line, goes_on = b"", False
    for piece in pieces:  # the first line, and whether another one follows
        head += piece
        line, _, rest = head.lstrip(_BLANK).partition(b"\n")
        goes_on = bool(rest.lstrip(_BLANK))
        if goes_on or len(line) > max_bytes:
            break
    text = bytes(head.lstrip(_BLANK))
    skipped = head.count(b"\n", 0, len(head) - len(text))
    first, read = _NONE, chain([text], pieces)
    if len(line) <= max_bytes:
        first = _value(line.decode("utf-8", "replace").encode())
    if not text.startswith((b"[", b"{")) or isinstance(first, dict) or (isinstance(first, list) and goes_on):
        yield from _lines(read, max_bytes, skipped)
        return
    values = _Values(read)
    if text.startswith(b"[") or values.decoded():
        yield from values.records(max_bytes)
    else:
        yield from _lines(values.unread(), max_bytes, skipped)


def _utf8(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Convert UTF-16 and UTF-32 to UTF-8; other encodings pass unchanged."""
    first = next(pieces, b"")
    encoding = json.detect_encoding(first)
    if encoding.startswith("utf-8"):
        yield first
        yield from pieces
        return
    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    for piece in chain([first], pieces):
        yield decoder.decode(piece).encode("utf-8", "replace")
    yield decoder.decode(b"", final=True).encode("utf-8", "replace")


def _lines(pieces: Iterator[bytes], max_bytes: int, skipped: int) -> Iterator[Record]:
    """Yield a record for each line that is not blank; `skipped` lines precede the first."""
    number, line = skipped, bytearray()
    for piece in chain(pieces, [b"\n"]):
        *ended, rest = piece.split(b"\n")
        for part in ended:
            line += part[: max_bytes + 1 - len(line)]
            number += 1
            if text := bytes(line).strip(_BLANK):
                yield _record(f"line {number}", text, max_bytes)
            line.clear()
        line += rest[: max_bytes + 1 - len(line)]


def _record(place: str, raw: bytes, max_bytes: int) -> Record:
    if len(raw) > max_bytes:
        return Record(place, raw, fault=TOO_LARGE)
    try:
        raw.decode()
    except UnicodeDecodeError:
        return Record(place, raw, fault=NOT_UTF8)
    value = _value(raw)
    return Record(place, raw, fault=BAD_JSON) if value is _NONE else Record(place, raw, value)


_NONE = object()


def _value(raw: bytes) -> object:
    """Return the JSON value that bytes hold, or `_NONE` if Python cannot parse them."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):  # no usable record is nested deeper than the interpreter's stack
        return _NONE


class _Values:
    """JSON values one after another, each over any number of lines."""

    _DECODER = json.JSONDecoder()
    _BETWEEN = re.compile(r"[\s,\ufeff]*(?:\][\s,\ufeff]*(?:\[[\s,\ufeff]*)?)?")
    """The text between two values. An array may end there and another one may begin."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._decoder = pieces, codecs.getincrementaldecoder("utf-8")(errors="surrogateescape")
        self._text, self._at, self._open, self._cut = "", 0, False, False

    def unread(self) -> Iterator[bytes]:
        """Return everything that was read, and the rest."""
        return chain([_bytes(self._text)], self._pieces)

    def records(self, max_bytes: int) -> Iterator[Record]:
        """Yield every value; for an array, every element.

        Text that is not JSON extends to the next line that begins like the first value. A value that was cut off has
        the fault `archive_truncated`.
        """
        if self._text.startswith("[") or (self._more() and self._text.startswith("[")):
            self._at, self._open = 1, True
        again, number = None, 0
        while self._skip():
            number += 1
            again = again or self._beginning()
            if found := self.decoded():
                raw, self._at = _bytes(self._text[self._at : found[1]]), found[1]
                yield _record(f"record {number}", raw, _MAX_VALUE_CHARS if _wraps(found[0]) else max_bytes)
                continue
            yield Record(f"record {number}", b"", fault=TRUNCATED if self._cut else BAD_JSON)
            if self._cut or not self._find(again):
                return
        if self._open:
            yield Record("the end", b"", fault=TRUNCATED)

    def _beginning(self) -> "re.Pattern[str]":
        """Return a pattern for the start of the first value's line: other values begin alike, nested ones do not."""
        indent = self._text[: self._at].rpartition("\n")[2]
        return re.compile(rf"\n{indent if indent.isspace() else ''}(?=[{{\[])")

    def decoded(self) -> tuple[object, int] | None:
        """Return the value at this position and its end; None if there is no value."""
        while True:
            try:
                value, end = self._DECODER.raw_decode(self._text, self._at)
                if end < len(self._text) or not self._more():  # a number may continue in the next piece
                    return value, end
            except json.JSONDecodeError as error:
                last = len(self._text) - _LONGEST_TOKEN
                self._cut = error.pos >= last or error.msg.startswith("Unterminated string")
                if not self._cut or len(self._text) - self._at > _MAX_VALUE_CHARS or not self._more():
                    return None
            except (ValueError, RecursionError):
                self._cut = False
                return None

    def _skip(self) -> bool:
        """Move to the next value; return whether there is one."""
        while True:
            match = self._BETWEEN.match(self._text, self._at)
            assert match is not None
            if match.end() < len(self._text) or not self._more():
                break
        if "]" in match[0]:
            self._open = "[" in match[0]
        self._at = match.end()
        return self._at < len(self._text)

    def _find(self, again: "re.Pattern[str]") -> bool:
        """Move to the next line that begins like a value; return whether there is one."""
        while True:
            if match := again.search(self._text, self._at + 1):
                self._at = match.end()
                return True
            self._at = max(self._at, len(self._text) - PIECE_BYTES)
            if not self._more():
                return False

    def _more(self) -> bool:
        """Read at least as much again as is still unused, and at least one piece; return whether there was more."""
        parts = [self._text[self._at :]]
        had = have = len(parts[0])
        while have <= 2 * had:
            piece = next(self._pieces, None)
            parts.append(self._decoder.decode(piece or b"", final=piece is None))
            have += len(parts[-1])
            if piece is None:
                break
        if have > had:
            self._text, self._at = "".join(parts), 0
        return have > had


def _wraps(value: object) -> bool:
    """Tell whether a value is an object around many others, like `{"data": [...]}`: it may be larger than a record."""
    inner = value.values() if isinstance(value, dict) else ()
    return any(isinstance(items, list) and len(items) > 1 and isinstance(items[0], dict) for items in inner)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


_LONGEST_TOKEN = 16
"""Upper bound, in characters, of a literal or an escape that is cut off where reading stopped."""
