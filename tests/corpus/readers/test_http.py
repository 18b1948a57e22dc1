import gzip
import io
import zlib

import pytest
from fastwarc.stream_io import BrotliWriter, ZstdWriter
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.corpus.readers.http import Head, Unusable, decode, is_html, split, unchunk

PAGE = b"<html><p>" + bytes(range(32, 127)) * 50


def head(**headers: str) -> Head:
    return Head(200, {name.replace("_", "-"): value for name, value in headers.items()})


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def brotli(data: bytes) -> bytes:
    out = io.BytesIO()
    writer = BrotliWriter(out)
    writer.write(data)
    writer.close()
    return out.getvalue()


def chunked(data: bytes, size: int) -> bytes:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x;name=value\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("br", brotli),
        ("identity", bytes),
    ],
)
def test_every_content_encoding_is_undone_and_capped(encoding: str, pack) -> None:
    assert decode(head(content_encoding=encoding), pack(PAGE), 10_000) == (PAGE, False)
    with pytest.raises(Unusable, match="too_large"):
        decode(head(content_encoding=encoding), pack(PAGE), 1_000)


def test_a_bomb_is_dropped_without_being_held() -> None:
    bomb = gzip.compress(b"a" * 100_000_000)
    with pytest.raises(Unusable, match="too_large"):
        decode(head(content_encoding="gzip"), bomb, 1_000_000)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, br"])
def test_a_decoded_body_under_its_original_headers_stays_as_it_is(encoding: str) -> None:
    assert decode(head(content_encoding=encoding), PAGE, 10_000) == (PAGE, False)


def test_a_compressed_body_that_is_cut_keeps_what_came_before_the_cut() -> None:
    content = bytes(PAGE) + b"".join(b"%d " % (number * 7919) for number in range(20_000))
    got, cut = decode(head(content_encoding="gzip"), gzip.compress(content)[:-2000], 1_000_000)
    assert cut
    assert content.startswith(got)
    assert len(got) > 100_000


def test_unknown_and_corrupt_encodings_have_names() -> None:
    with pytest.raises(Unusable, match="encoding_unknown"):
        decode(head(content_encoding="rot13"), PAGE, 10_000)
    with pytest.raises(Unusable, match="encoding_corrupt"):
        decode(head(content_encoding="br"), b"\xff" * 50, 10_000)


@given(st.binary(max_size=500), st.integers(1, 100))
def test_chunks_are_joined(body: bytes, size: int) -> None:
    assert unchunk(chunked(body, size)) == (body, False)


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate", "br", "zstd"]))
def test_any_body_decodes_or_is_dropped_by_name(body: bytes, encoding: str) -> None:
    try:
        fate = len(decode(head(content_encoding=encoding, transfer_encoding="chunked"), body, 1_000).content)
    except Unusable as unusable:
        fate = unusable.reason
    assert fate in {"too_large", "encoding_corrupt", *range(1_001)}


def zstd(data: bytes) -> bytes:
    out = io.BytesIO()
    writer = ZstdWriter(out)
    writer.write(data)
    writer.close()
    return out.getvalue()


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, zstd])
@pytest.mark.parametrize("declared", ["", "gzip", "br", "deflate", "zstd"])
def test_a_recognizable_stream_needs_no_correct_header(pack, declared: str) -> None:
    assert decode(head(content_encoding=declared), pack(PAGE), 10_000) == (PAGE, False)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"x_crawl_content_encoding": "br"}, brotli(PAGE)),
        ({"x_crawl_content_encoding": "br"}, PAGE),
        ({"content_encoding": "gzip, br"}, brotli(gzip.compress(PAGE))),
        ({"content_encoding": "gzip"}, gzip.compress(gzip.compress(PAGE))),
        ({"content_encoding": "gzip, gzip"}, gzip.compress(PAGE)),
        ({"content_encoding": "deflate, gzip"}, gzip.compress(raw_deflate(PAGE))),
        ({"transfer_encoding": "gzip, chunked"}, chunked(gzip.compress(PAGE), 100)),
        ({"content_encoding": "gzip"}, chunked(gzip.compress(PAGE), 10)),
        ({"content_encoding": "gzip"}, gzip.compress(PAGE[:100]) + gzip.compress(PAGE[100:])),
        ({"content_encoding": "ISO-8859-1"}, PAGE),
        ({"transfer_encoding": "chunked"}, PAGE),
        ({"transfer_encoding": "chunked"}, b"Add up\n" + PAGE),
    ],
)
def test_encodings_are_undone_if_the_bytes_confirm_them(headers: dict[str, str], body: bytes) -> None:
    wanted = body if body.endswith(PAGE) else PAGE
    assert decode(head(**headers), body, 10_000) == (wanted, False)


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate), ("br", brotli), ("zstd", zstd)],
)
def test_a_cut_stream_is_marked_and_keeps_its_start(encoding: str, pack) -> None:
    content = PAGE + b"".join(b"%d " % (number * 7919 % 1_000_003) for number in range(60_000))
    packed = pack(content)
    got, cut = decode(head(content_encoding=encoding), packed[: len(packed) * 3 // 4], 1_000_000)
    assert cut
    assert content.startswith(got)
    assert len(got) > len(content) // 4


def test_a_small_cut_brotli_page_keeps_its_start() -> None:
    content = PAGE + b"".join(b"<p>%d</p>" % (number * 7919) for number in range(500))
    got, cut = decode(head(content_encoding="br"), brotli(content)[:-300], 100_000)
    assert cut
    assert len(got) > len(content) // 2
    assert content.startswith(got)


def test_a_cut_chunk_is_marked() -> None:
    assert decode(head(transfer_encoding="chunked"), chunked(PAGE, 1_000)[:1_500], 10_000).cut
    assert not decode(head(transfer_encoding="chunked"), chunked(PAGE, 1_000), 10_000).cut


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_noise_under_an_encoding_is_corrupt_and_not_text(encoding: str) -> None:
    noise = bytes(number * number * 31 % 251 for number in range(7, 2_000))
    with pytest.raises(Unusable, match="encoding_corrupt"):
        decode(head(content_encoding=encoding), noise, 10_000)


@pytest.mark.parametrize(
    "block",
    [
        b"\r\nHTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>",
        b"\n\nHTTP/1.0 200\nContent-Type: text/html\n\n<p>",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/2 200\r\nContent-Type:\r\n text/html\r\n\r\n<p>",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\nContent-Type: text/html\r\n\r\n<p>",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\n\r\n<p>",
    ],
)
def test_heads_as_servers_and_crawlers_write_them(block: bytes) -> None:
    found, body = split(block)
    assert (found.status, found.media_type, body) == (200, "text/html", b"<p>")


@pytest.mark.parametrize("charset", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32-be"])
def test_a_page_without_a_type_is_recognized_by_its_start(charset: str) -> None:
    for start in (
        '<?xml version="1.0" encoding="koi8-r"?>\n<!-- a --><!-- b -->\n<!DOCTYPE html>',
        " <html><p>page",
        "<body>",
    ):
        assert is_html((start + " and its text" * 9).encode(charset))
    for start in ('<?xml version="1.0"?><rss>', "text", "<!-- <html>"):
        assert not is_html(start.encode(charset))
    assert not is_html(b"<?xml " * 1_000 + b"<!---->" * 1_000)


def test_many_gzip_members_are_one_body() -> None:
    parts = [b"%d " % number * 9_000 for number in range(20)]
    packed = b"".join(map(gzip.compress, parts))
    assert decode(head(), packed, 1_000_000) == (b"".join(parts), False)


@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n\x1f\x8b\x08", b"HTTP/1.1 200\n\n5\n"]),
)
def test_any_block_is_read_or_dropped_by_name(rest: bytes, start: bytes) -> None:
    try:
        fate = len(decode(*split(start + rest), 1_000).content)
    except Unusable as unusable:
        fate = unusable.reason
    assert fate in {"http_malformed", "too_large", "encoding_corrupt", "encoding_unknown", *range(1_001)}


def test_the_head_ends_at_the_first_blank_line_of_either_kind() -> None:
    for end in (b"\r\n", b"\n"):
        found, body = split(
            end.join([b"HTTP/1.1 404 Not Found", b"Content-Type: Text/HTML; charset='x'", b"", b"a", b"", b"b"])
        )
        assert (found.status, found.media_type, found.charset, body) == (
            404,
            "text/html",
            "x",
            end.join([b"a", b"", b"b"]),
        )
    with pytest.raises(Unusable, match="http_malformed"):
        split(b"<html>\r\n\r\n")
