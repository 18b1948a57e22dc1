"""WARC records made by hand, for tests that need to know every byte."""

import gzip


def response(
    html: bytes, url: str = "https://example.org/a", status: str = "200 OK", headers: str = "Content-Type: text/html",
    record_id: str | None = "<urn:uuid:1>", kind: str = "response",
) -> bytes:  # fmt: skip
    block = f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n".encode() + html
    return record(block, url, record_id, kind)


def record(
    block: bytes, url: str = "https://example.org/a", record_id: str | None = "<urn:uuid:1>", kind: str = "response",
    more: str = "",
) -> bytes:  # fmt: skip
    names = [f"WARC-Type: {kind}", f"WARC-Target-URI: {url}", f"Content-Length: {len(block)}", *more.splitlines()]
    if record_id:
        names.append(f"WARC-Record-ID: {record_id}")
    return ("WARC/1.0\r\n" + "\r\n".join(names) + "\r\n\r\n").encode() + block + b"\r\n\r\n"


def archive(*records: bytes) -> bytes:
    """One gzip member per record, as crawlers write them."""
    return b"".join(gzip.compress(record) for record in records)
