"""JSON Lines and Parquet: one document per line or row, as HTML or as plain text.

The recipe names the fields. A line that is not a JSON object or has neither text nor HTML gives a dropped row; a
damaged file gives one more, `archive_truncated` or `archive_corrupt`.
"""

import json
from collections.abc import Iterator
from typing import BinaryIO, Literal

from pydantic import Field

from humpback_ray.config import Config
from humpback_ray.corpus.readers.base import COMPRESSED, Document, Dropped, Inflated, broken_off
from humpback_ray.inputs.recordfiles import records
from humpback_ray.records import content_id
from humpback_ray.text.clean import clean

_PARQUET_MAGIC = b"PAR1"


class JsonlReader(Config):
    """Documents from JSONL files, compressed or not, and Parquet files."""

    kind: Literal["jsonl"] = "jsonl"

    suffixes: tuple[str, ...] = (
        *(name + end for name in (".jsonl", ".ndjson") for end in COMPRESSED),
        ".parquet",
    )
    """Suffixes of the files that this reader takes."""

    text_field: str | None = "text"
    """Plain text, used if the HTML field is missing or empty; None: never."""

    html_field: str | None = "html"
    """HTML as a JSON string; None: never."""

    id_field: str | None = "id"
    """Id of the document; if None, or missing in a line, a hash of the line."""

    url_field: str | None = "url"
    """Address of the document, by which selection caps domains; None: none."""

    max_line_bytes: int = Field(default=20_000_000, ge=1)
    """A longer line is dropped as `too_large`."""

    def read(self, stream: BinaryIO) -> Iterator[Document | Dropped]:
        """Yield every line that is not blank, as a document or dropped; then a row for damage to the file, if any."""
        is_parquet = stream.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC
        stream.seek(0)
        if is_parquet:
            yield from self._rows(stream)
            return
        source = Inflated(stream)
        trail = b""
        for line in source.lines(self.max_line_bytes):
            if line.strip():
                trail = content_id(trail, line).encode()
                yield self._document(line)
        yield from broken_off(source, trail)

    def _rows(self, stream: BinaryIO) -> Iterator[Document | Dropped]:
        trail = b""
        for record in records(stream):
            trail = content_id(trail, record.raw).encode()
            if record.fault:
                yield Dropped(trail.decode(), record.fault)
            elif len(record.raw) > self.max_line_bytes:
                yield Dropped(content_id(record.raw), "too_large")
            else:
                values = record.value if isinstance(record.value, dict) else {}
                yield self._fields(values, content_id(record.raw))

    def _document(self, line: bytes) -> Document | Dropped:
        line_id = content_id(line)
        if len(line) > self.max_line_bytes:
            return Dropped(line_id, "too_large")
        values = json_object(line)
        if values is None:
            return Dropped(line_id, "bad_json")
        return self._fields(values, line_id)

    def _fields(self, values: dict[str, object], content: str) -> Document | Dropped:
        named = _field(values, self.id_field)
        document_id = clean(str(named)) if isinstance(named, str | int) and str(named).strip() else content
        url, html, text = (_text(values, name) for name in (self.url_field, self.html_field, self.text_field))
        if html.strip():
            return Document(document_id, url, html=html.encode("utf-8"), charset="utf-8")
        if text.strip():
            return Document(document_id, url, text=text)
        return Dropped(document_id, "empty", url)


def json_object(line: bytes) -> dict[str, object] | None:
    """Return the JSON object on a line; None if Python cannot parse one."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):  # nested deeper than the interpreter's stack
        return None
    return values if isinstance(values, dict) else None


def _field(values: dict[str, object], name: str | None) -> object:
    return values.get(name) if name else None


def _text(values: dict[str, object], name: str | None) -> str:
    value = _field(values, name)
    return clean(value) if isinstance(value, str) else ""
