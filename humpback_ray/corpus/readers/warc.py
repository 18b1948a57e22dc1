"""WARC files, as Common Crawl, wget or the Internet Archive write them.

Only `response` records can be documents: requests, metadata and the like describe them and are passed over. A response
that is not an HTML page with status 200 is dropped by name. An archive that breaks off or turns to garbage gives the
documents before that point and one `archive_truncated` or `archive_corrupt`; FastWARC, which finds the records, passes
over most of these in silence, so what it skipped is added up here. Behind a damaged gzip member nothing is searched.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

from pydantic import Field

from humpback_ray.config import Config
from humpback_ray.corpus.readers import http
from humpback_ray.corpus.readers.base import Document, Dropped, Inflated, content_id
from humpback_ray.packages import FASTWARC, RESILIPARSE, Package

if TYPE_CHECKING:
    from fastwarc.warc import WarcRecord

_HTML_TYPES = ("text/html", "application/xhtml+xml")


class WarcReader(Config):
    """HTML pages out of WARC and WARC.gz files."""

    kind: Literal["warc"] = "warc"

    suffixes: tuple[str, ...] = (".warc", ".warc.gz")
    """File names that this reader takes."""

    max_record_bytes: int = Field(default=20_000_000, ge=1)
    """A response that occupies more than this in the archive is dropped unread. Common Crawl cuts pages at 1 MiB, at
    5 MiB since 2025."""

    max_document_bytes: int = Field(default=10_000_000, ge=1)
    """A page that is longer than this once its encodings are undone is dropped. Chosen by us."""

    def packages(self) -> Sequence[Package]:
        """Return what reads archives and guesses encodings."""
        return (FASTWARC, RESILIPARSE)

    def read(self, stream: BinaryIO) -> Iterator[Document | Dropped]:
        """Yield every response of the archive, as a document or dropped; last, what is wrong with the archive."""
        from fastwarc.warc import WarcRecordType

        source, extent = Inflated(stream), _Extent()
        trail = b""  # identifies how far the archive could be read, for the id of its last row
        broken = False
        try:
            for record in _records(source):
                extent.enter(record)
                trail = content_id(trail, (record.record_id or "").encode("utf-8", "replace")).encode()
                if record.record_type == WarcRecordType.response:
                    wanted = min(record.content_length, self.max_record_bytes + 1)
                    block = record.reader.read(wanted)
                    if len(block) == wanted:  # else the archive ends inside this record
                        yield self._response(record, block)
        except OSError:
            broken = True
        fault = source.fault or ("corrupt" if broken else extent.fault(source))
        if fault:
            yield Dropped(content_id(b"archive", trail, fault.encode()), f"archive_{fault}")

    def _response(self, record: "WarcRecord", block: bytes) -> Document | Dropped:
        url = (record.headers.get("WARC-Target-URI") or "").strip().removeprefix("<").removesuffix(">")
        document_id = (record.headers.get("WARC-Record-ID") or "").strip().removeprefix("<").removesuffix(">")
        document_id = document_id or content_id(url.encode("utf-8", "replace"), block)
        try:
            if len(block) > self.max_record_bytes:
                raise http.Unusable("too_large")
            head, body = http.split(block)
            if head.status != 200:
                raise http.Unusable("http_status")
            if head.media_type and head.media_type not in _HTML_TYPES:
                raise http.Unusable("not_html")
            html, cut = http.decode(head, body, self.max_document_bytes)
            if not html.strip():
                raise http.Unusable("empty")
            if not head.media_type and not http.is_html(html):
                raise http.Unusable("not_html")
        except http.Unusable as unusable:
            return Dropped(document_id, unusable.reason, url)
        return Document(document_id, url, html=html, charset=head.charset, cut=cut)


def _records(source: Inflated) -> Iterator["WarcRecord"]:
    from fastwarc.warc import ArchiveIterator

    stream = cast(BinaryIO, source)  # of a stream, FastWARC reads and tells, nothing else
    return ArchiveIterator(stream, parse_http=False, stream_detect=False, quirks_mode=True)


class _Extent:
    """Where records began and should have ended: finds bytes that FastWARC skipped without a word."""

    SLACK_BYTES = 512
    """Blank lines and header whitespace that real archives hold between records beyond what the form asks for."""

    def __init__(self) -> None:
        self.end = 0
        self.records = 0
        self.gap = False

    def enter(self, record: "WarcRecord") -> None:
        self.gap |= abs(record.stream_pos - self.end) > self.SLACK_BYTES
        head = sum(len(name) + len(value) + 4 for name, value in record.headers.items_bytes())
        self.end = record.stream_pos + head + record.content_length
        self.records += 1

    def fault(self, source: Inflated) -> str | None:
        read = source.tell()
        if read == 0:
            return "empty"
        if self.gap or not self.records or read - self.end > self.SLACK_BYTES:
            return "corrupt"
        return None if read >= self.end and source.tail.endswith((b"\n\n", b"\n\r\n")) else "truncated"
