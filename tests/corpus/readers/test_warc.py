import collections
import gzip
import io
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.corpus.readers import Document, Dropped, WarcReader
from tests.corpus.archive import archive, record, response

READER = WarcReader()
PAGES = [response(b"<p>page %d</p>" % number, record_id=f"<urn:uuid:{number}>") for number in range(5)]


def read(data: bytes, reader: WarcReader = READER) -> list[Document | Dropped]:
    return list(reader.read(io.BytesIO(data)))


DAMAGE = [b"", b"\r\n", b"\0", b"WARC/1.0\r\n", b"\r\n\r\n", b"\xff" * 4, b"Content-Length: 5\r\n"]


def fates(data: bytes, reader: WarcReader = READER) -> list[str]:
    return [item.reason if isinstance(item, Dropped) else "document" for item in read(data, reader)]


def test_a_response_is_a_document_with_its_id_url_and_charset() -> None:
    page = response(b"<p>x</p>", "<https://example.org/a>", headers="Content-Type: text/html; charset=GB2312")
    assert read(archive(page)) == [Document("urn:uuid:1", "https://example.org/a", html=b"<p>x</p>", charset="GB2312")]


def test_without_a_record_id_url_and_content_name_the_document() -> None:
    one, same, other = (
        read(archive(response(html, url, record_id=None)))[0].document_id
        for html, url in [(b"<p>x", "https://a.org"), (b"<p>x", "https://a.org"), (b"<p>y", "https://a.org")]
    )
    assert one == same != other


@pytest.mark.parametrize(
    ("made", "fate"),
    [
        (response(b"<p>x</p>", status="404 Not Found"), ["http_status"]),
        (response(b"<p>x</p>", status="301 Moved"), ["http_status"]),
        (response(b"%PDF-1.4", headers="Content-Type: application/pdf"), ["not_html"]),
        (response(b"plain words", headers="Server: x"), ["not_html"]),
        (response(b" <!DOCTYPE html><p>x", headers="Server: x"), ["document"]),
        (response(b"<p>x", headers="Content-Type: application/xhtml+xml"), ["document"]),
        (response(b"  \n "), ["empty"]),
        (response(b"<p>x", headers="Content-Type: text/html\r\nContent-Encoding: compress"), ["encoding_unknown"]),
        (response(b"x" * 3000), ["too_large"]),
        (record(b"no http at all"), ["http_malformed"]),
        (record(b""), ["http_malformed"]),
        (response(b"<p>x</p>", kind="request"), []),
        (response(b"<p>x</p>", kind="metadata"), []),
        (response(b"<p>x</p>", kind="revisit"), []),
        (response(b"<p>x</p>", kind="warcinfo"), []),
        (response(b"<p>x</p>", kind="Response"), ["document"]),
        (response(b"<p>x</p>", kind="resource"), ["not_html"]),
        (record(b"the rest of a page", kind="continuation"), ["continuation"]),
        (record(b"<p>x</p>", kind="screenshot"), ["record_type"]),
        (record(b"<p>x</p>", kind=""), ["record_type"]),
        (record(b"", kind="resource"), ["empty"]),
        (record(b"log", "<metadata://x/wget.log>", kind="resource", more="Content-Type: text/plain"), ["crawler_log"]),
        (record(b" \n", kind="conversion"), ["empty"]),
        (record(b"\x89PNG", kind="resource"), ["not_html"]),
    ],
)
def test_every_response_has_a_fate_and_other_records_are_not_documents(made: bytes, fate: list[str]) -> None:
    assert fates(archive(made), WarcReader(max_record_bytes=2000)) == fate


@pytest.mark.parametrize(
    ("kind", "content_type", "block", "expected"),
    [
        ("resource", "text/html", b"<p>x", {"html": b"<p>x"}),
        ("resource", "Text/HTML; charset=gbk", b"<p>x", {"html": b"<p>x", "charset": "gbk"}),
        ("resource", "application/xhtml+xml", b"<p>x", {"html": b"<p>x"}),
        ("resource", "", b"<!doctype html><p>x", {"html": b"<!doctype html><p>x"}),
        ("resource", "text/plain", b"one\r\ntwo", {"text": "one\ntwo"}),
        ("resource", "text/plain; charset=iso-8859-1", b"caf\xe9", {"text": "caf\xe9"}),
        (
            "resource", "application/http; msgtype=response",
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>x", {"html": b"<p>x"},
        ),
        ("conversion", "text/plain", "caf\xe9".encode(), {"text": "caf\xe9"}),
        ("conversion", "", b"words", {"text": "words"}),
        ("conversion", "text/html", b"<p>x", {"html": b"<p>x"}),
    ],
)  # fmt: skip
def test_stored_files_and_conversions_are_read_by_their_type(
    kind: str, content_type: str, block: bytes, expected: dict
) -> None:
    more = f"Content-Type: {content_type}" if content_type else ""
    assert read(archive(record(block, kind=kind, more=more))) == [
        Document("urn:uuid:1", "https://example.org/a", **expected)
    ]


@pytest.mark.parametrize("more", ["WARC-Truncated: length", "warc-truncated: disconnect", "WARC-Segment-Number: 1"])
@pytest.mark.parametrize("kind", ["response", "resource", "conversion"])
def test_pages_that_the_crawler_cut_are_marked_as_cut(more: str, kind: str) -> None:
    block = b"HTTP/1.1 200 OK\r\n\r\n<html><p>x" if kind == "response" else b"<html><p>x"
    (cut,) = read(archive(record(block, kind=kind, more=more)))
    assert isinstance(cut, Document)
    assert cut.cut


@pytest.mark.parametrize(
    "pack", [archive, lambda *records: gzip.compress(b"".join(records)), lambda *records: b"".join(records)]
)
def test_records_come_in_gzip_members_in_one_stream_or_plain(pack) -> None:
    assert fates(pack(*PAGES)) == ["document"] * 5


@given(st.data())
def test_an_archive_cut_anywhere_gives_the_documents_before_and_says_so(data: st.DataObject) -> None:
    plain = data.draw(st.booleans())
    whole = b"".join(PAGES) if plain else archive(*PAGES)
    ends = [sum(len(page if plain else archive(page)) for page in PAGES[:count]) for count in range(6)]
    cut = data.draw(st.integers(2, len(whole) - 1).filter(lambda at: at not in ends))
    got = read(whole[:cut])
    complete = sum(cut >= end for end in ends[1:])
    documents = [item.document_id for item in got if isinstance(item, Document)]
    assert documents[:complete] == [f"urn:uuid:{number}" for number in range(complete)]
    assert len(documents) <= complete + 1  # the payload may be complete and only the blank lines after it cut
    assert isinstance(got[-1], Dropped)
    assert got[-1].reason in ({"archive_truncated", "archive_corrupt"} if plain else {"archive_truncated"})


@pytest.mark.parametrize(
    ("data", "fate"),
    [
        (b"", ["archive_empty"]),
        (gzip.compress(b"", mtime=0), ["archive_empty"]),
        (b"<html>an error page</html>" * 100, ["archive_corrupt"]),
        (archive(*PAGES[:2]) + b"not gzip", ["document"] * 2 + ["archive_corrupt"]),
        (b"".join(PAGES[:2]) + b"padding " * 200, ["document"] * 2 + ["archive_corrupt"]),
        (archive(PAGES[0]) + b"\0\0junk" + archive(*PAGES[1:3]), ["document"] * 3 + ["archive_corrupt"]),
        (archive(PAGES[0], b"junk of a member", PAGES[1]), ["document"] * 2 + ["archive_corrupt"]),
        (PAGES[0] + b"lost " * 200 + b"\r\n" + PAGES[1], ["document"] * 2 + ["archive_corrupt"]),
        (archive(*PAGES[:2]) + b"\0" * 100, ["document"] * 2),
    ],
)
def test_what_is_wrong_with_an_archive_is_its_last_row(data: bytes, fate: list[str]) -> None:
    assert fates(data) == fate


def test_a_record_that_claims_more_than_the_archive_holds_is_not_waited_for() -> None:
    lies = PAGES[1].replace(b"Content-Length: ", b"Content-Length: 9999999999")
    assert fates(PAGES[0] + lies) == ["document", "record_damaged", "archive_truncated"]


def test_ids_of_damaged_archives_depend_on_their_readable_part() -> None:
    ids = [read(archive(*PAGES[:count]) + b"junk")[-1].document_id for count in (1, 1, 2)]
    assert ids[0] == ids[1] != ids[2]


@given(st.one_of(st.binary(max_size=500), st.binary(max_size=300).map(lambda data: b"WARC/1.0\r\n" + data)))
def test_any_bytes_end_in_named_drops(data: bytes) -> None:
    for variant in (data, gzip.compress(data)):
        got = read(variant)
        assert not variant or got or b"WARC" in data
        assert all(isinstance(item, Document) or item.reason for item in got)


def test_archives_with_random_damage_end_in_documents_and_named_drops() -> None:
    chance = random.Random(7)
    reasons = collections.Counter()
    for _ in range(1500):
        data = bytearray(b"".join(PAGES))
        for _ in range(chance.randint(1, 8)):
            at = chance.randrange(len(data))
            damage = chance.choice(
                [b"", b"\r\n", b"\0", b"WARC/1.0\r\n", b"\r\n\r\n", b"\xff" * 4, b"Content-Length: 5\r\n"]
            )
            data[at : at + chance.choice([0, 1, 50])] = damage
        for item in read(archive(bytes(data)) if chance.random() < 0.2 else bytes(data)):
            reasons[item.reason if isinstance(item, Dropped) else "document"] += 1
    assert reasons["document"] > 1000
    assert reasons["archive_corrupt"] + reasons["archive_truncated"] > 100


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "documents"), [("commoncrawl-16", 16), ("dolma-0000", 22), ("dolma-0001", 15), ("wcxb-300", 300)]
)
def test_real_archives_are_read_to_their_end(real_data: Path, name: str, documents: int) -> None:
    with open(real_data / "warc" / f"{name}.warc.gz", "rb") as stream:
        records = list(READER.read(stream))
    got = [item for item in records if not isinstance(item, Dropped) or item.reason != "crawler_log"]
    assert len(records) - len(got) == (2 if name.startswith("dolma") else 0)
    assert len(got) == documents
    assert all(isinstance(item, Document) for item in got)
    assert sum(item.url.startswith("http") for item in got) >= documents - 1  # one record there has no URL
    assert len({item.document_id for item in got}) == documents
