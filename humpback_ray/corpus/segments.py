"""Corpus files → segments: the text under a header, with the subtrees of its lower-level headers.

Every header of a page opens one candidate segment (Li et al. 2023, arXiv:2308.06259, data preparation), and a segment
includes the segments of the headers below its own, so candidates overlap by design. The outermost candidates that pass
every filter are kept; those inside a kept one are dropped as `overlaps_outer`. If all were kept, the same sentences
would enter training two or three times as answers to different instructions, and exact deduplication would not notice.
If an outer segment is too long, its parts are judged on their own. `overlap: keep_all` is the literal reading of the
paper.

A page without headers is one segment under the header "". Text before the first header belongs to no segment. A
plain-text document has no headers: it is one segment, and header rules do not apply. If the end of a document is
missing, segments that reach it are `cut_off`; the others count.

Every document gives at least one row: one per segment, or one at position -1 that says why there is no segment. Dropped
rows keep id, header and length; their text is blank.
"""

import hashlib
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import BinaryIO, Literal

import pyarrow as pa
from pydantic import Field

from humpback_ray.config import Config
from humpback_ray.corpus.extract import ExtractRecipe, Section, Unusable, extract
from humpback_ray.corpus.filters import FilterRecipe, header_reason, is_foreign, length_reason, repetition_reason
from humpback_ray.corpus.readers import Document, Dropped, Reader, default_readers, reader_for
from humpback_ray.needs import Resources
from humpback_ray.records import QUARANTINED, SEGMENT, record_id, seed_of
from humpback_ray.storage import InputFile, reading

CUT_OFF = "cut_off"
"""Drop reason of segments that reach the end of a truncated document."""

NOT_SAMPLED = "not_sampled"
"""Drop reason of a document that a pilot leaves out."""


class SegmentRecipe(Config):
    """Definition of a segment. Hashed into the manifest: a change here is another corpus."""

    version: int = 3
    """Bumped by hand when the meaning of this module, of extraction or of the filters changes."""

    extract: ExtractRecipe = ExtractRecipe()
    """How pages become headers and paragraphs."""

    filters: FilterRecipe = FilterRecipe()
    """Which segments are dropped."""

    overlap: Literal["outermost", "keep_all"] = "outermost"
    """Segments inside a kept one: "outermost" drops them as `overlaps_outer`, "keep_all" keeps them like any other."""

    max_segments: int = Field(default=2_000, ge=1)
    """Most headers per document; a document with more is dropped as `too_many_headers`. Ours."""

    sample_share: float | None = Field(default=None, gt=0, le=1)
    """The share of documents that are cut, chosen by a hash of their ids; the others are dropped as `not_sampled`. A
    pilot sets it. None: all."""

    def identity(self) -> dict[str, object]:
        """Return the fields that are hashed."""
        return self.model_dump(mode="json", exclude={"sample_share"} if self.sample_share is None else set())

    def takes(self, document_id: str) -> bool:
        """Tell whether a document is in the sample."""
        return self.sample_share is None or seed_of(document_id, "pilot") < self.sample_share * 2**63


class Segmenter:
    """One worker of the segments stage: opens a file, chooses its reader by name and cuts its documents."""

    def __init__(
        self, recipe: SegmentRecipe, readers: Sequence[Reader] | None = None, resources: Resources | None = None
    ) -> None:
        del resources  # cutting is one thread of plain Python
        self.recipe, self.readers = recipe, tuple(readers or default_readers())

    def __call__(self, file: InputFile) -> pa.Table:
        """Return the segments of a file, schema SEGMENT."""
        with reading(file) as stream:
            return segment_file(stream, file.uri, self.recipe, self.readers)

    def count(self, file: InputFile) -> int:
        """Return the number of records in a file."""
        return sum(1 for _ in self._records(file))

    def part(self, file: InputFile, first: int, last: int) -> pa.Table:
        """Return the rows of the records `first` to `last` (exclusive) as if the file held no others."""
        records = islice(self._records(file), first, last)
        return table_of(row for record in records for row in segments(record, self.recipe))

    def merge(self, parts: pa.Table) -> pa.Table:
        """Return the rows of all records of a file, made in parts, with copies marked."""
        return table_of(with_copies_marked(SegmentRow(**row) for row in parts.to_pylist()))

    def unread(self, file: InputFile, index: int) -> tuple[dict[str, object], str]:
        """Return the row of a record that cannot be cut, and the record's URL and text."""
        record = next(islice(self._records(file), index, None))
        row = _no_segment(record, QUARANTINED)
        text = record.text or (record.html or b"").decode("utf-8", "replace") if isinstance(record, Document) else ""
        return asdict(row), f"{record.url}\n{text}"

    def _records(self, file: InputFile) -> Iterator[Document | Dropped]:
        with reading(file) as stream:
            yield from reader_for(file.uri, self.readers).read(stream)


def segment_file(
    stream: BinaryIO, name: str, recipe: SegmentRecipe, readers: Sequence[Reader] | None = None
) -> pa.Table:
    """Return the segments of one corpus file, schema SEGMENT; ids are unique within the table.

    Args:
        stream: the file, from its start.
        name: its suffix selects the reader.
        recipe: what a segment is.
        readers: the readers to choose from; None: the default readers.

    Raises:
        ConfigError: no reader takes files with that name.
    """
    return table_of(rows_of(reader_for(name, readers or default_readers()).read(stream), recipe))


def rows_of(
    records: Iterable[Document | Dropped], recipe: SegmentRecipe, lost: Collection[str] = ()
) -> "Iterator[SegmentRow]":
    """Yield the rows of all records of a file; a document in `lost` gets its one quarantine row."""
    return with_copies_marked(
        row
        for record in records
        for row in ([_no_segment(record, QUARANTINED)] if record.document_id in lost else segments(record, recipe))
    )


def with_copies_marked(rows: "Iterable[SegmentRow]") -> "Iterator[SegmentRow]":
    """Keep the first row of each id unchanged; give copies a numbered id and the reason `repeated_record`.

    Copies of a quarantined row stay quarantined: each can be retried.
    """
    seen: dict[str, int] = {}
    for row in rows:
        copies = seen.get(row.id, 0)
        seen[row.id] = copies + 1
        reason = QUARANTINED if row.drop_reason == QUARANTINED else "repeated_record"
        yield row if not copies else row.dropped(reason, record_id(row.id, "copy", copies))


def table_of(rows: "Iterable[SegmentRow]") -> pa.Table:
    """Return rows as a table of schema SEGMENT."""
    made = list(rows)
    return pa.table({field.name: [getattr(row, field.name) for row in made] for field in SEGMENT}, schema=SEGMENT)


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """A row of SEGMENT."""

    id: str
    document_id: str
    url: str
    header: str
    position: int
    text: str
    chars: int
    text_hash: str
    drop_reason: str | None

    def dropped(self, reason: str, new_id: str) -> "SegmentRow":
        """Return this row without its text, for another reason and under another id."""
        return SegmentRow(new_id, self.document_id, self.url, self.header, self.position, "", self.chars, "", reason)


def segments(record: Document | Dropped, recipe: SegmentRecipe) -> Iterator[SegmentRow]:
    """Yield the rows of one record: its segments in order, or one row at position -1 with the reason."""
    if isinstance(record, Dropped):
        yield _no_segment(record, record.reason)
        return
    if not recipe.takes(record.document_id):
        yield _no_segment(record, NOT_SAMPLED)
        return
    try:
        sections = extract(record, recipe.extract)
        headed = [index for index, section in enumerate(sections) if section.level]
        if len(headed) > recipe.max_segments:
            raise Unusable("too_many_headers")
    except Unusable as unusable:
        yield _no_segment(record, unusable.reason)
        return
    foreign = _Foreign(sections, recipe.filters)
    covered = -1  # sections up to this one lie inside a kept segment
    for position, start in enumerate(headed or [0]):
        end = _end(sections, start)
        text = _text(sections[start:end])
        if record.cut and end == len(sections):
            reason = CUT_OFF
        else:
            reason = _reason(sections[start].header if record.html is not None else None, text, recipe.filters)
        if reason is None and foreign(text):
            reason = "other_language"
        if reason is None and recipe.overlap == "outermost":
            if start <= covered:
                reason = "overlaps_outer"
            else:
                covered = end - 1
        yield _segment(record, position, sections[start].header, text, reason)


def _end(sections: list[Section], start: int) -> int:
    level = sections[start].level
    for index in range(start + 1, len(sections)):
        if sections[index].level <= level:
            return index
    return len(sections)


def _text(inside: list[Section]) -> str:
    lines = list(inside[0].paragraphs)
    for section in inside[1:]:
        lines += [section.header, *section.paragraphs] if section.header else section.paragraphs
    return "\n".join(lines)


def _reason(header: str | None, text: str, recipe: FilterRecipe) -> str | None:
    """Return why a segment is dropped; plain text has no header, so header rules do not apply."""
    bad_header = None if header is None else header_reason(header, recipe)
    return length_reason(len(text), recipe) or bad_header or repetition_reason(text, recipe)


class _Foreign:
    """Decides whether a segment and its page are both in another language; the page is checked once, when needed."""

    PAGE_CHARS = 20_000

    def __init__(self, sections: list[Section], recipe: FilterRecipe) -> None:
        self.sections, self.recipe = sections, recipe
        self.page: bool | None = None

    def __call__(self, text: str) -> bool:
        if not is_foreign(text, self.recipe):
            return False
        if self.page is None:
            self.page = is_foreign(self._page_text(), self.recipe)
        return self.page

    def _page_text(self) -> str:
        lines, chars = [], 0
        for section in self.sections:
            for line in (section.header, *section.paragraphs):
                lines.append(line)
                chars += len(line)
                if chars >= self.PAGE_CHARS:
                    return "\n".join(lines)
        return "\n".join(lines)


def _segment(document: Document, position: int, header: str, text: str, reason: str | None) -> SegmentRow:
    row_id, hashed = record_id(document.document_id, position, text), "" if reason else text_hash(text)
    kept = "" if reason else text
    return SegmentRow(row_id, document.document_id, document.url, header, position, kept, len(text), hashed, reason)


def _no_segment(record: Document | Dropped, reason: str) -> SegmentRow:
    row_id = record_id(record.document_id, -1, reason)
    chars = record.skipped if isinstance(record, Dropped) else 0
    return SegmentRow(row_id, record.document_id, record.url, "", -1, "", chars, "", reason)


def text_hash(text: str) -> str:
    """Return the SHA-256, in hex, of the text in NFKC, case-folded, with runs of whitespace collapsed to one space."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()
