"""The characters of a web page → tags and text, in one pass and linear time (bytes → characters: encoding.py).

No tree is built. HTML's tree construction copies open formatting elements into every block after them, so a page of
350 kB (`<font color=1><p><font color=2><p>…`) becomes 50 million nodes and 18 GB in a conforming parser (measured with
lexbor) before any cap on nodes can be checked. Segments need only the text, the headers and the regions to leave out;
a scanner gives them in memory proportional to the page. Given up: misnested content is not always placed as in a
browser.

Every pattern here can match in only one way (possessive quantifiers) and accepts the end of input, so no input makes
it backtrack.
"""

import re
from collections.abc import Iterator
from html import unescape
from typing import NamedTuple


class Tag(NamedTuple):
    """A start or end tag; `attributes` is its raw source, parsed only on demand."""

    name: str
    ends: bool
    attributes: str


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

_MAX_DIGITS = 8  # the last character is 10FFFF, decimal 1114111: numbers with more digits are out of range
_LONG_REFERENCE = re.compile(rf"&#(?:[xX]([0-9a-fA-F]{{{_MAX_DIGITS + 1},}}+)|([0-9]{{{_MAX_DIGITS + 1},}}+))")

_RAW_TEXT = frozenset({"script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes"})
_RAW_END = {name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in _RAW_TEXT}


def scan(page: str) -> Iterator[Tag | str]:
    """Yield tags and the text between them, in order. Comments, scripts and other raw text are skipped."""
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
    """Resolve character references; numbers out of range become U+FFFD at any length (Python refuses long ones)."""
    return unescape(_LONG_REFERENCE.sub(_shortened, source)) if "&" in source else source


def _shortened(found: re.Match[str]) -> str:
    kind, digits = ("#x", found[1]) if found[1] else ("#", found[2])
    return f"&{kind}{digits.lstrip('0')[:_MAX_DIGITS] or '0'}"


def attribute_values(source: str) -> dict[str, str]:
    """Return the attributes in the first 4,000 characters of a tag's source; names in lower case, the first wins."""
    values: dict[str, str] = {}
    for name, double, single, bare in _ATTRIBUTE.findall(source[:_MAX_ATTRIBUTE_CHARS]):
        values.setdefault(name.lower(), double or single or bare)
    return values
