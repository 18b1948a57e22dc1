"""WARC files, as Common Crawl, wget or the Internet Archive write them.

Documents are `response` records that hold an HTML page with status 200, `resource` records that hold HTML or plain
text, and `conversion` records, which hold plain text unless they say otherwise. `warcinfo`, `request`, `metadata` and
`revisit` records describe other records and are never pages, so they are skipped. Every other record has a row. It is
dropped as `continuation` (the rest of a page that began elsewhere), as `crawler_log` (wget's own log and arguments), or
as `record_type` if the type is unknown. A document that the crawler marks as cut (`WARC-Truncated`, or the first
segment of several) has a missing end.

Damage loses only the records that it hits (`record_damaged`); reading resumes at the next one (see records.py). A
damaged archive has one more row, the last: `archive_truncated` or `archive_corrupt`, with the number of bytes skipped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO, Literal

from pydantic import Field

from humpback_ray.config import Config
from humpback_ray.corpus.encoding import characters
from humpback_ray.corpus.readers import http
from humpback_ray.corpus.readers.base import COMPRESSED, Document, Dropped, Inflated, Unusable, broken_off
from humpback_ray.corpus.readers.records import Records, WarcRecord
from humpback_ray.packages import FASTWARC, RESILIPARSE, Package
from humpback_ray.records import content_id
from humpback_ray.text.clean import clean

_HTML_TYPES = ("text/html", "application/xhtml+xml")
_DESCRIBING = ("warcinfo", "request", "metadata", "revisit")
_CRAWLER_SCHEME = "metadata:"  # wget stores its own log and arguments under it


class WarcReader(Config):
    """Pages and texts from WARC and WET files, compressed or not."""

    kind: Literal["warc"] = "warc"

    suffixes: tuple[str, ...] = tuple(name + end for name in (".warc", ".wet") for end in COMPRESSED)
    """Suffixes of the files that this reader takes."""

    max_record_bytes: int = Field(default=20_000_000, ge=1)
    """A response that takes more than this in the archive is dropped unread. Common Crawl cuts pages at 1 MiB, since
    2025 at 5 MiB."""

    max_document_bytes: int = Field(default=10_000_000, ge=1)
    """A page that is longer than this after decoding is dropped. Ours."""

    def packages(self) -> Sequence[Package]:
        """Return the libraries that read archives and guess encodings."""
        return (FASTWARC, RESILIPARSE)

    def read(self, stream: BinaryIO) -> Iterator[Document | Dropped]:
        """Yield every record that may hold a page, as a document or dropped; then a row for damage, if any."""
        source = Inflated(stream)
        records = Records(source, self.max_record_bytes)
        trail = b""  # identifies the readable part of the archive, for the id of its last row
        for record in records:
            trail = content_id(trail, record.headers.get("warc-record-id", "").encode("utf-8", "replace")).encode()
            if record.headers.get("warc-type", "").lower() not in _DESCRIBING:
                yield self._document(record)
        blank = not (trail or source.fault)
        fault = "corrupt" if records.corrupt or blank else "truncated" if records.cut else None
        yield from broken_off(source, trail, records.skipped, fault)

    def _document(self, record: WarcRecord) -> Document | Dropped:
        url = _bare(record.headers.get("warc-target-uri", ""))
        document_id = clean(_bare(record.headers.get("warc-record-id", "")))
        document_id = document_id or content_id(url.encode("utf-8", "replace"), record.block)
        try:
            if record.fault:
                raise Unusable(record.fault)
            page = self._page(record)
        except Unusable as unusable:
            return Dropped(document_id, unusable.reason, url)
        return replace(page, document_id=document_id, url=url)

    def _page(self, record: WarcRecord) -> Document:
        """Return the document that a record holds, without its id and URL."""
        headers, cut = record.headers, "warc-truncated" in record.headers or "warc-segment-number" in record.headers
        kind, stored = headers.get("warc-type", "").lower(), http.Head(200, headers)
        if kind == "response" or (kind == "resource" and stored.media_type == "application/http"):
            head, (html, ends_early) = self._response(record.block)
            cut |= ends_early
        elif kind in ("resource", "conversion"):
            if _bare(headers.get("warc-target-uri", "")).lower().startswith(_CRAWLER_SCHEME):
                raise Unusable("crawler_log")
            head, html = stored, record.block
            if len(html) > self.max_document_bytes:
                raise Unusable("too_large")
            if head.media_type == "text/plain" or (kind == "conversion" and not head.media_type):
                if not (text := clean(characters(html, head.charset))).strip():
                    raise Unusable("empty")
                return Document("", text=text, cut=cut)
        else:
            raise Unusable("continuation" if kind == "continuation" else "record_type")
        if head.media_type and head.media_type not in _HTML_TYPES:
            raise Unusable("not_html")
        if not html.strip():
            raise Unusable("empty")
        if not head.media_type and not http.is_html(html):
            raise Unusable("not_html")
        return Document("", html=html, charset=head.charset, cut=cut)

    def _response(self, block: bytes) -> tuple[http.Head, http.Body]:
        head, body = http.split(block)
        if head.status != 200:
            raise Unusable("http_status")
        if head.media_type and head.media_type not in _HTML_TYPES:
            raise Unusable("not_html")
        return head, http.decode(head, body, self.max_document_bytes)


def _bare(value: str) -> str:
    return value.removeprefix("<").removesuffix(">").strip()
