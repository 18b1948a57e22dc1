"""The HTTP message inside a WARC response: its head, and its body undone of transfer and content encodings.

Crawlers differ in what they store. Some keep the bytes of the wire, some store the decoded body under the headers of
the wire. So an encoding is undone where the bytes bear it out; a body that is visibly not encoded is taken as it is.
Everything has a cap: a body that decodes to more than it is dropped, never held.
"""

import io
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastwarc.stream_io import BrotliReader, ZstdReader


class Unusable(ValueError):
    """The record gives no document; the argument is the drop reason."""

    @property
    def reason(self) -> str:
        """The drop reason."""
        return str(self.args[0])


@dataclass(frozen=True)
class Head:
    """Status and headers (names in lower case, the last of a name wins) of an HTTP response."""

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


_STATUS = re.compile(rb"HTTP/[\d.]{1,8}\s+(\d{3})\b", re.IGNORECASE)
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_CHUNK_SIZE = re.compile(rb"\s{0,4}([0-9a-fA-F]{1,8})[^\r\n]{0,200}\r?\n")
_MAX_HEAD_BYTES = 64 * 1024
_MAX_ENCODINGS = 4


def split(block: bytes) -> tuple[Head, bytes]:
    """Return head and body of an HTTP response.

    Raises:
        Unusable: `http_malformed`, no status line or no end of the head within 64 KiB.
    """
    status, end = _STATUS.match(block), _HEAD_END.search(block, 0, _MAX_HEAD_BYTES)
    if not status or not end:
        raise Unusable("http_malformed")
    headers: dict[str, str] = {}
    for line in block[: end.start()].splitlines()[1:]:
        name, colon, value = line.decode("latin-1").partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return Head(int(status[1]), headers), block[end.end() :]


def decode(head: Head, body: bytes, max_bytes: int) -> bytes:
    """Return the body as its author wrote it.

    Raises:
        Unusable: `too_large` beyond `max_bytes`, `encoding_unknown`, or `encoding_corrupt` where not one byte came out.
    """
    if "chunked" in head.headers.get("transfer-encoding", "").lower():
        body = unchunk(body)
    encodings = [name.strip().lower() for name in head.headers.get("content-encoding", "").split(",")]
    encodings = [name for name in encodings if name not in ("", "identity", "none", "utf-8")]
    if len(encodings) > _MAX_ENCODINGS:
        raise Unusable("encoding_unknown")
    for name in reversed(encodings):
        body = _undo(name, body, max_bytes)
    if len(body) > max_bytes:
        raise Unusable("too_large")
    return body


def unchunk(body: bytes) -> bytes:
    """Join the chunks of a chunked body; other bytes come back as they are, a cut body as far as it goes."""
    parts, at = [], 0
    while size := _CHUNK_SIZE.match(body, at):
        length = int(size[1], 16)
        if not length:
            return b"".join(parts)
        parts.append(body[size.end() : size.end() + length])
        at = size.end() + length
        if at >= len(body):
            return b"".join(parts)
        at += 2 if body[at : at + 2] == b"\r\n" else 1 if body[at : at + 1] == b"\n" else 0
    return b"".join(parts) if parts else body


def _undo(name: str, body: bytes, max_bytes: int) -> bytes:
    if name in ("gzip", "x-gzip"):
        decoded = _inflate(body, (31,), max_bytes) if body[:2] == b"\x1f\x8b" else body
    elif name == "deflate":
        decoded = _inflate(body, (15, -15), max_bytes)
    elif name in ("br", "zstd"):
        from fastwarc.stream_io import BrotliReader, ZstdReader

        decoded = _stream(BrotliReader if name == "br" else ZstdReader, body, max_bytes)
    else:
        raise Unusable("encoding_unknown")
    if body and not decoded:
        if _looks_plain(body):
            return body
        raise Unusable("encoding_corrupt")
    if len(decoded) > max_bytes:
        raise Unusable("too_large")
    return decoded


def _looks_plain(body: bytes) -> bool:
    return body[:256].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<"


def _inflate(body: bytes, windows: tuple[int, ...], max_bytes: int) -> bytes:
    for window in windows:
        decoder, out, at, step = zlib.decompressobj(wbits=window), bytearray(), 0, 16 * 1024
        try:  # in pieces, so that a stream cut or damaged at its end keeps what came before
            while at < len(body) and len(out) <= max_bytes and not decoder.eof:
                out += decoder.decompress(decoder.unconsumed_tail + body[at : at + step], max_bytes + 1 - len(out))
                at += step
        except zlib.error:
            pass
        if out:
            return bytes(out)
    return b""


def _stream(kind: "type[BrotliReader] | type[ZstdReader]", body: bytes, max_bytes: int) -> bytes:
    out = bytearray()
    try:
        reader = kind(io.BytesIO(body))
        while len(out) <= max_bytes and (piece := reader.read(min(64 * 1024, max_bytes + 1 - len(out)))):
            out += piece
    except (OSError, ValueError):  # as above: what was decoded before the damage counts
        pass
    return bytes(out)
