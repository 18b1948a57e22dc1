"""Pages of the toy web and their WARC files: realistic HTML, byte for byte the same for the same recipe.

A page has sections; a section is a header and the text below it, and knows what that text is (`KnownText`). Head,
navigation and footer surround them. One page in six is broken like real pages: unclosed paragraphs, stray end tags, a
missing end. Dates and record ids are fixed, and gzip members carry no time.
"""

import gzip
import html
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Literal, NamedTuple

from humpback_ray.sample.texts import KnownText

PageKind = Literal["town", "plain", "faq", "asked", "review", "puzzle", "junk"]
CRAWLED = "2024-01-01T00:00:00Z"


class PageSection(NamedTuple):
    """A header and the text below it."""

    header: str
    content: KnownText
    below: tuple[str, str] | None = None
    """A lower-level header inside the section, and the text below that."""

    def text(self) -> str:
        """Return the segment as it is cut: its paragraphs and those of its subtree, one per line."""
        return "\n".join([self.content.text, *(self.below or ())])


class Page(NamedTuple):
    """One page: paragraphs without a header (`lead`), then sections."""

    url: str
    title: str
    kind: PageKind
    lead: tuple[str, ...] = ()
    sections: tuple[PageSection, ...] = ()
    heading: str | None = None
    """The page's h1; None: no h1, so the sections are the outermost segments."""
    broken: bool = False

    def plain(self) -> str:
        """Return the page as the base model reads it: headers and paragraphs, one per line."""
        headed = [line for section in self.sections for line in (section.header, section.text())]
        return "\n".join(line for line in [self.heading or "", *self.lead, *headed] if line)


def render(page: Page, rng: Random) -> str:
    """Write a page as HTML."""
    end = "" if page.broken else "</p>"
    lines = [f"<h1>{html.escape(page.heading)}</h1>"] if page.heading else []
    lines += [f"<p>{html.escape(text)}{end}" for text in page.lead]
    for section in page.sections:
        lines.append(f"<h2>{html.escape(section.header)}</h2>")
        lines += [f"<p>{html.escape(text)}{end}" for text in section.content.text.split("\n")]
        if section.below:
            lines.append(f"<h3>{html.escape(section.below[0])}</h3>\n<p>{html.escape(section.below[1])}{end}")
        if page.broken:
            lines.append(rng.choice(("</div></span>", "<b></i></b>", "</td>", "<br></br>")))
    body = "\n".join(lines)
    title = html.escape(page.title)
    head = f'<head><meta charset="utf-8"><title>{title}</title><style>body {{margin: 2em}}</style></head>'
    links = (("/", "Home"), ("/towns", "Towns"), ("/about", "About"))
    nav = "".join(f'<li><a href="{target}">{name}</a></li>' for target, name in links)
    nav = f"<nav><ul>{nav}</ul></nav>"
    footer = "<footer><p>Written by people who live here. All rights reserved.</p></footer>"
    if page.broken:
        return f"<!DOCTYPE html>\n<html>{head}\n<body>\n{nav}\n<div>\n{body}\n"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n{head}\n<body>\n{nav}\n<main>\n{body}\n</main>\n{footer}\n'
        "<script>var visits = 1;</script>\n</body>\n</html>\n"
    )


def write_archives(pages: Sequence[Page], directory: Path, files: int, rng: Random) -> None:
    """Spread pages over WARC files `web-0.warc.gz`, …; the first file also holds an image and a 404 page."""
    directory.mkdir(parents=True, exist_ok=True)
    for index in range(files):
        records = [warcinfo(index)]
        if index == 0:
            records.append(response("https://towns.example/map.png", b"\x89PNG\r\n\x1a\n", "image/png"))
            records.append(response("https://towns.example/gone", b"<h1>Gone</h1>", status="404 Not Found"))
        records += [response(page.url, render(page, rng).encode()) for page in pages[index::files]]
        (directory / f"web-{index}.warc.gz").write_bytes(b"".join(_members(records)))


def _members(records: Iterable[bytes]) -> Iterable[bytes]:
    return (gzip.compress(record, mtime=0) for record in records)


def warcinfo(index: int) -> bytes:
    """Return the record that opens a WARC file."""
    body = b"software: humpback-ray toy web\r\nformat: WARC File Format 1.1\r\n"
    return _record("warcinfo", f"info-{index}", body, "application/warc-fields", {})


def response(url: str, payload: bytes, content_type: str = "text/html; charset=utf-8", status: str = "200 OK") -> bytes:
    """Return the record of one HTTP response."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(payload)}\r\n\r\n"
    return _record(
        "response", url, head.encode() + payload, "application/http; msgtype=response", {"WARC-Target-URI": url}
    )


def _record(kind: str, name: str, body: bytes, content_type: str, more: dict[str, str]) -> bytes:
    fields = {
        "WARC-Type": kind,
        "WARC-Record-ID": f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, name)}>",
        "WARC-Date": CRAWLED,
        **more,
        "Content-Type": content_type,
        "Content-Length": str(len(body)),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return b"WARC/1.1\r\n" + head.encode() + b"\r\n" + body + b"\r\n\r\n"
