"""Bytes of a web page → characters → tags and text, in one pass and linear time.

No tree is built. HTML's tree construction copies open formatting elements into every block behind them, so a page of
350 kB (`<font color=1><p><font color=2><p>…`) becomes 50 million nodes and 18 GB in a conforming parser (measured with
lexbor), before any cap on nodes can be looked at. What segments need of a page is its text, its headers and which
regions to leave out; a scanner gives that in memory proportional to the page. Given up: the placement of misnested
content exactly as a browser would.

Every pattern here can match in one way only (possessive quantifiers) and accepts the end of input, so no input makes
it go back over what it has read.
"""

import codecs
import re
from collections.abc import Iterator
from html import unescape
from typing import NamedTuple


class Tag(NamedTuple):
    """A start or end tag; `attributes` is its raw source, parsed only where somebody asks."""

    name: str
    ends: bool
    attributes: str


_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_META_CHARSET = re.compile(rb"<meta\b[^>]{0,300}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)
_META_BYTES = 4096
_DETECT_BYTES = 64 * 1024
_FALLBACK = "windows-1252"

_MARKUP = re.compile(
    r"<(?:"
    r"(?P<comment>!--)"
    r"|(?P<slash>/?)(?P<name>[a-zA-Z][^\s/>]*+)"
    r"(?P<attributes>(?:[^>=]++|=\s*+(?:\"[^\"]*+(?:\"|\Z)|'[^']*+(?:'|\Z))?)*+)(?:>|\Z)"
    r"|[!?/][^>]*+(?:>|\Z)"
    r")"
)
_ATTRIBUTE = re.compile(r"([^\s=/>\"']++)(?:\s*+=\s*+(?:\"([^\"]*+)\"?|'([^']*+)'?|([^\s>]*+)))?")
_MAX_ATTRIBUTE_CHARS = 4000

_RAW_TEXT = frozenset({"script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes"})
_RAW_END = {name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in _RAW_TEXT}


def characters(html: bytes, declared: str | None = None) -> str:
    """Decode a page: byte order mark, then UTF-8 that shows itself, then HTTP, then `<meta>`, then a guess.

    UTF-8 with characters beyond ASCII does not come about by accident, while wrong declarations are common; so it wins
    over them. Bytes that the charset does not know become U+FFFD; nothing raises.

    Args:
        html: the page.
        declared: the charset in the HTTP header, as written there.
    """
    for mark, name in _BOMS:
        if html.startswith(mark):
            return html[len(mark) :].decode(name, "replace")
    if not html.isascii():
        try:
            return html.decode("utf-8")
        except UnicodeDecodeError as error:
            cut_off = error.start >= len(html) - 3 and not html[: error.start].isascii()
            if cut_off:  # inside a character, behind others that are UTF-8
                return html.decode("utf-8", "replace")
    meta = _META_CHARSET.search(html, 0, _META_BYTES)
    candidates = [declared, meta[1].decode("ascii", "replace") if meta else None]
    if not html.isascii():
        from resiliparse.parse.encoding import detect_encoding

        candidates.append(detect_encoding(html[:_DETECT_BYTES]))
    codec = next((found for name in candidates if (found := _codec(name))), _FALLBACK)
    return html.decode(codec, "replace")


def _codec(name: str | None) -> str | None:
    from resiliparse.parse.encoding import map_encoding_to_html5

    mapped = map_encoding_to_html5(name, fallback_utf8=False) if name else None
    if not mapped or mapped.startswith("x-"):
        return None
    if mapped.startswith("utf-16"):  # a page whose declaration could be read as ASCII is not UTF-16
        return "utf-8"
    try:
        return codecs.lookup(mapped).name
    except LookupError:
        return None


def scan(page: str) -> Iterator[Tag | str]:
    """Yield tags and the text between them, in order. Comments, scripts and other raw text are passed over."""
    at, ended = 0, len(page)
    search = _MARKUP.search
    while at < ended:
        found = search(page, at)
        if found is None:
            break
        if found.start() > at:
            yield _text(page[at : found.start()])
        at = found.end()
        name = found["name"]
        if name:
            name = name.lower()
            yield Tag(name, bool(found["slash"]), found["attributes"])
            if name in _RAW_TEXT and not found["slash"]:
                close = _RAW_END[name].search(page, at)
                at = close.start() if close else ended
        elif found["comment"]:
            close_at = page.find("-->", at - 2)  # "<!-->" is a whole comment
            at = close_at + 3 if close_at >= 0 else ended
    if at < ended:
        yield _text(page[at:])


def _text(source: str) -> str:
    return unescape(source) if "&" in source else source


def attribute_values(source: str) -> dict[str, str]:
    """Return the attributes in a tag's source (its first 4,000 characters), names in lower case, the first wins."""
    values: dict[str, str] = {}
    for name, double, single, bare in _ATTRIBUTE.findall(source[:_MAX_ATTRIBUTE_CHARS]):
        values.setdefault(name.lower(), double or single or bare)
    return values
