"""The HTTP message inside a WARC response: its head, and its body with transfer and content encodings undone.

Crawlers differ in what they store. Some keep the bytes as sent, some store the decoded body under the original headers,
some rename the headers (`X-Crawl-Content-Encoding`), some lose them. So an encoding is undone only if the bytes confirm
it; a body that is visibly not encoded stays as it is. If a stream breaks off, the part before the break is kept and the
body is marked as cut. Sizes are capped: a body that decodes to more than the cap is dropped, never held in memory.
"""

import io
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from humpback_ray.corpus.encoding import characters, codec
from humpback_ray.corpus.readers.base import Unusable


@dataclass(frozen=True)
class Head:
    """Status and headers of an HTTP response; names are in lower case, the last header of a name wins."""

    status: int
    headers: dict[str, str]

    @property
    def media_type(self) -> str:
        """The media type without its parameters, in lower case; "" if undeclared."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def charset(self) -> str | None:
        """The charset that the content type declares."""
        found = re.search(r"charset\s*=\s*[\"']?([\w.:-]{1,40})", self.headers.get("content-type", ""), re.IGNORECASE)
        return found[1] if found else None


class Body(NamedTuple):
    """A body as its author wrote it."""

    content: bytes
    cut: bool
    """True if its end is missing: a compressed stream or a chunk broke off."""


_STATUS = re.compile(rb"\s{0,64}HTTP(?:/[\d.]{1,8})?[ \t]+(\d{3})\b", re.IGNORECASE)
_HEAD_END = re.compile(rb"\r?\n\r?\n|\r\r")
_FOLD = re.compile(rb"(?:\r\n?|\n)[ \t]+")
_CHUNK_SIZE = re.compile(rb"\s{0,4}([0-9a-fA-F]{1,8})[ \t]{0,200}(?:;[^\r\n]{0,4000})?\r?\n")
_NOT_TEXT = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_MARKUP = re.compile(rb"(?:\xef\xbb\xbf|\xff\xfe(?:\0\0)?|(?:\0\0)?\xfe\xff)?[\s\0]{0,256}<[\0]{0,3}[a-zA-Z!?/]")
_START_BYTES = 1024
_MAX_ENCODINGS = 4
_MAX_HEADS = 4
_MAX_MEMBERS = 1_000
_MAX_LIST_CHARS = 200
_GZIP_MAGIC = b"\x1f\x8b\x08"
_HTML_START = re.compile(
    r"\s*+(?:<\?xml\b[^>]*+>\s*+)?(?:<!--(?:(?!-->).)*+-->\s*+)*+<(?:!doctype\s+html|html|head|body)\b", re.I | re.S
)
_HTML_START_BYTES = 4096
_LISTS = frozenset({"content-encoding", "transfer-encoding", "x-crawl-content-encoding", "x-crawl-transfer-encoding"})
_NO_ENCODING = frozenset({"", "identity", "none", "chunked", "binary", "7bit", "8bit"})
_MAGIC = (
    (_GZIP_MAGIC, "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x78\x01", "deflate"),
    (b"\x78\x9c", "deflate"),
    (b"\x78\xda", "deflate"),
)


def split(block: bytes) -> tuple[Head, bytes]:
    """Return head and body of an HTTP response; interim responses (1xx) before it are skipped.

    Raises:
        Unusable: `http_malformed`, if the status line or the end of the head is missing.
    """
    for _ in range(_MAX_HEADS):
        status = _STATUS.match(block)
        end = _HEAD_END.search(block, status.end()) if status else None
        if not status or not end:
            break
        source, block = block[status.end() : end.start()], block[end.end() :]
        if not 100 <= int(status[1]) < 200:
            return Head(int(status[1]), _headers(source)), block
    raise Unusable("http_malformed")


def _headers(source: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in _FOLD.sub(b" ", source).splitlines()[1:]:
        name, colon, value = line.decode("latin-1").partition(":")
        if colon:
            name, value = name.strip().lower(), value.strip()
            before = headers.get(name) if name in _LISTS else None
            headers[name] = f"{before}, {value}" if before and len(before) < _MAX_LIST_CHARS else value
    return headers


def decode(head: Head, body: bytes, max_bytes: int) -> Body:
    """Return the body as its author wrote it.

    Raises:
        Unusable: `too_large` beyond `max_bytes`, `encoding_unknown`, or `encoding_corrupt` if no byte can be decoded.
    """
    transfer, content = (_names(head, kind) for kind in ("transfer-encoding", "content-encoding"))
    body, cut = unchunk(body, declared="chunked" in transfer + content)
    names = [name for name in content + transfer if name not in _NO_ENCODING and not codec(name)]
    if len(names) > _MAX_ENCODINGS:
        raise Unusable("encoding_unknown")
    for name in reversed(names):
        body, broken = _undo(name, body, max_bytes)
        cut |= broken
    for _ in range(_MAX_ENCODINGS):  # encodings that no header declares
        name = _by_magic(body)
        if name is None:
            break
        body, broken = _undo(name, body, max_bytes)
        cut |= broken
    if len(body) > max_bytes:
        raise Unusable("too_large")
    return Body(body, cut)


def is_html(body: bytes) -> bool:
    """Return whether a body of undeclared type begins like HTML, in any charset."""
    return bool(_HTML_START.match(characters(body[:_HTML_START_BYTES])))


def _names(head: Head, kind: str) -> list[str]:
    values = (head.headers.get(kind), head.headers.get(f"x-crawl-{kind}"))
    return [name.strip().strip("\"'").lower() for value in values if value for name in re.split("[,;]", value)]


def unchunk(body: bytes, *, declared: bool = True) -> Body:
    """Join the chunks of a chunked body, as far as it goes if it is cut; return other bodies unchanged.

    Args:
        body: the bytes after the head.
        declared: whether the head says that the body is chunked; otherwise it must begin with two valid chunks.
    """
    parts, at = [], 0
    while size := _CHUNK_SIZE.match(body, at):
        length = int(size[1], 16)
        end = size.end() + length
        if not parts and (
            body[end : end + 1] not in (b"", b"\r", b"\n")
            or (not declared and not (length and _CHUNK_SIZE.match(body, end)))
        ):
            return Body(body, cut=False)
        if not length:
            return Body(b"".join(parts), cut=False)
        parts.append(body[size.end() : end])
        if end > len(body):
            break
        at = end + (2 if body[end : end + 2] == b"\r\n" else 1 if body[end : end + 1] == b"\n" else 0)
    return Body(b"".join(parts), cut=True) if parts else Body(body, cut=False)


def _undo(name: str, body: bytes, max_bytes: int) -> Body:
    undo = _DECODERS.get(name)
    if undo is None:
        raise Unusable("encoding_unknown")
    if not body or _MARKUP.match(body):
        return Body(body, cut=False)
    shown = _by_magic(body)
    if shown and shown != name.removeprefix("x-"):  # the headers name a wrong encoding, or two in the wrong order
        undo = _DECODERS[shown]
    decoded = undo(body, max_bytes)
    if decoded.cut and not shown and _looks_plain(body):
        return Body(body, cut=False)
    if not decoded.content:
        raise Unusable("encoding_corrupt")
    if len(decoded.content) > max_bytes:
        raise Unusable("too_large")
    return decoded


def _by_magic(body: bytes) -> str | None:
    return next((name for magic, name in _MAGIC if body.startswith(magic)), None)


def _looks_plain(body: bytes) -> bool:
    start = body[:_START_BYTES]
    if _NOT_TEXT.search(start):
        return False
    return 3 * sum(byte < 0x80 for byte in start) >= len(start) or bool(start.decode("utf-8", "ignore"))


def _gunzip(body: bytes, max_bytes: int) -> Body:
    out, at = bytearray(), 0
    for _ in range(_MAX_MEMBERS):  # a body may have several members
        if not body.startswith(_GZIP_MAGIC, at):
            return Body(bytes(out), cut=not out)
        decoder = zlib.decompressobj(wbits=31)
        piece, at = _inflate(decoder, body, at, max_bytes - len(out))
        out += piece
        if not decoder.eof:
            break
    return Body(bytes(out), cut=True)


def _undeflate(body: bytes, max_bytes: int) -> Body:
    for window in (15, -15):  # servers send both, with and without the zlib header
        decoder = zlib.decompressobj(wbits=window)
        out, _ = _inflate(decoder, body, 0, max_bytes)
        if out:
            return Body(out, cut=not decoder.eof)
    return Body(b"", cut=True)


def _inflate(decoder: "zlib._Decompress", body: bytes, at: int, max_bytes: int) -> tuple[bytes, int]:
    """Return the decoded stream, at most one byte beyond the limit, and the position in the body where it ends."""
    out, step = bytearray(), 16 * 1024
    try:  # in pieces, to keep the part before a cut or damage
        while at < len(body) and len(out) <= max_bytes and not decoder.eof:
            out += decoder.decompress(decoder.unconsumed_tail + body[at : at + step], max_bytes + 1 - len(out))
            at = min(at + step, len(body))
    except zlib.error:
        pass
    return bytes(out), at - len(decoder.unused_data)


def _unbrotli(body: bytes, max_bytes: int) -> Body:
    import brotli

    decoder, out = brotli.Decompressor(), bytearray()
    try:
        piece = decoder.process(body, output_buffer_limit=64 * 1024)
        while piece and len(out) <= max_bytes:
            out += piece
            piece = b"" if decoder.is_finished() else decoder.process(b"", output_buffer_limit=64 * 1024)
    except brotli.error:
        return Body(bytes(out), cut=True)
    return Body(bytes(out), cut=not decoder.is_finished())


def _unzstd(body: bytes, max_bytes: int) -> Body:
    from fastwarc.stream_io import ZstdReader

    out = bytearray()
    try:
        reader = ZstdReader(io.BytesIO(body))
        while len(out) <= max_bytes and (piece := reader.read(min(64 * 1024, max_bytes + 1 - len(out)))):
            out += piece
    except (OSError, ValueError):
        return Body(bytes(out), cut=True)
    return Body(bytes(out), cut=False)


_DECODERS: dict[str, Callable[[bytes, int], Body]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _undeflate,
    "x-deflate": _undeflate,
    "br": _unbrotli,
    "brotli": _unbrotli,
    "zstd": _unzstd,
}
