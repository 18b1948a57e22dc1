"""Outside text (file names, a worker's words, another driver's lease) made safe for a terminal and a log."""

import re

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except tab and newline, direction-changing characters, and lone surrogates."""


def printable(text: str) -> str:
    r"""Write control characters as escapes (`\x1b`), so that no text clears a screen, sets a title or hides a line."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), text)
