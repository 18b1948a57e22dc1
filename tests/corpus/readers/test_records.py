import gzip
import io
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.corpus.readers import Document, Dropped, WarcReader
from humpback_ray.corpus.readers.base import Inflated
from humpback_ray.corpus.readers.records import Records
from tests.corpus.archive import archive, record, response

ARCHIVES = Path(__file__).parents[1] / "archives"
PAGES = [response(b"<p>page %d</p>" % number * 40, record_id=f"<urn:{number}>") for number in range(4)]


class Trickle(io.BytesIO):
    """A file that returns a few bytes at a time."""

    step = 7

    def read(self, size: int | None = -1) -> bytes:
        return super().read(self.step if size is None or size < 0 else min(size, self.step))

    def read1(self, size: int | None = -1) -> bytes:
        return self.read(size)


def read(data: bytes, reader: WarcReader | None = None) -> list[Document | Dropped]:
    return list((reader or WarcReader()).read(io.BytesIO(data)))


def fates(data: bytes, reader: WarcReader | None = None) -> list[str]:
    return [item.reason if isinstance(item, Dropped) else item.document_id for item in read(data, reader)]


def with_length(page: bytes, change: str) -> bytes:
    length = int(re.findall(rb"Content-Length: (\d+)", page)[0])
    stated = change.format(length=length, longer=length + 300, shorter=length - 100)
    return page.replace(b"Content-Length: %d\r\n" % length, stated.encode(), 1)


LENGTHS = [
    "Content-Length: {longer}\r\n", "Content-Length: 1{length}\r\n", "Content-Length: 999999999999\r\n",
    "Content-Length: {shorter}\r\n", "Content-Length: 0\r\n", "Content-Length: -5\r\n", "Content-Length: ten\r\n",
    "Content-Length: 99999999999999999999999\r\n", "",
]  # fmt: skip


@pytest.mark.parametrize("pack", [archive, lambda *records: b"".join(records)])
@pytest.mark.parametrize("change", LENGTHS)
def test_a_wrong_length_loses_its_record_and_no_other(change: str, pack) -> None:
    wrong = with_length(PAGES[1], change)
    got = read(pack(PAGES[0], wrong, *PAGES[2:]))
    assert [item.document_id for item in got[:-1]] == ["urn:0", "urn:1", "urn:2", "urn:3"]
    assert [item.reason for item in got if isinstance(item, Dropped)] == ["record_damaged", "archive_corrupt"]
    assert isinstance(got[-1], Dropped)
    assert (got[-1].skipped, got[-1].url) == (len(wrong), f"{len(wrong)} bytes skipped")


@pytest.mark.parametrize("change", ["Content-Length: {longer}\r\n", "Content-Length: 999999999999\r\n"])
def test_a_last_record_that_is_longer_than_the_file_has_a_row_too(change: str) -> None:
    wrong = with_length(PAGES[1], change)
    assert fates(PAGES[0] + wrong) == ["urn:0", "record_damaged", "archive_truncated"]
    assert fates(archive(PAGES[0], wrong)) == ["urn:0", "record_damaged", "archive_truncated"]


@pytest.mark.parametrize(
    "page",
    [
        PAGES[1].replace(b"\r\n", b"\n").replace(b"Content-Length: ", b"Content-Length: ", 1),
        re.sub(rb"(?m)^[\w-]+: ", lambda name: name[0].lower(), PAGES[1]),
        re.sub(rb"(?m)^[\w-]+: ", lambda name: name[0].upper().replace(b": ", b":"), PAGES[1]),
        PAGES[1].replace(b"WARC-Target-URI: https://example.org/a\r\n", b""),
        PAGES[1].replace(b"WARC/1.0", b"WARC/1.1"),
        PAGES[1].replace(b"WARC/1.0", b"WARC/0.18"),
        PAGES[1][:-4],
        PAGES[1] + b"\r\n" * 400,
    ],
    ids=["line feeds", "lower case", "upper case", "no address", "1.1", "0.18", "no line ends", "blank lines"],
)
@pytest.mark.parametrize("pack", [archive, lambda *records: b"".join(records)])
def test_unusual_records_are_read_like_any_other(page: bytes, pack) -> None:
    if b"\r\n" not in page:
        block = page.partition(b"\n\n")[2].removesuffix(b"\n\n")
        page = re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(block), page)
    assert fates(pack(PAGES[0], page, PAGES[2])) == ["urn:0", "urn:1", "urn:2"]


def test_an_empty_record_has_a_fate_and_loses_no_other() -> None:
    assert fates(archive(PAGES[0], record(b"", record_id="<urn:1>"), PAGES[2])) == ["urn:0", "http_malformed", "urn:2"]


def test_a_page_that_shows_a_record_is_not_torn_apart() -> None:
    page = response(b"<pre>x\r\n\r\n" + PAGES[0] + b"</pre>", record_id="<urn:9>")
    assert fates(archive(page, PAGES[1])) == fates(page + PAGES[1]) == ["urn:9", "urn:1"]


def test_reading_resumes_after_a_record_over_the_limit() -> None:
    large = response(b"x" * 900_000, record_id="<urn:9>")
    small = WarcReader(max_record_bytes=2000)
    assert fates(PAGES[0] + large + PAGES[1], small) == ["urn:0", "too_large", "urn:1"]
    assert fates(archive(PAGES[0], large, PAGES[1]), small) == ["urn:0", "too_large", "urn:1"]
    assert fates(PAGES[0] + large, small) == ["urn:0", "too_large"]


JUNK = [b"junk", b"\0\0junk", b"\x1f\x8b", b"\x1f\x8b\x08\x00not a member", random.Random(3).randbytes(300_000)]


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
def test_junk_between_members_is_skipped_and_counted(junk: bytes) -> None:
    got = read(archive(PAGES[0]) + junk + archive(*PAGES[1:]))
    assert [item.document_id for item in got[:-1]] == ["urn:0", "urn:1", "urn:2", "urn:3"]
    assert isinstance(got[-1], Dropped)
    assert got[-1].reason == "archive_corrupt"
    assert abs(got[-1].skipped - len(junk)) <= 8


@pytest.mark.parametrize("place", [-8, -4], ids=["checksum", "length"])
def test_a_member_that_fails_its_checksum_loses_only_its_record(place: int) -> None:
    damaged = bytearray(gzip.compress(PAGES[1]))
    damaged[place] ^= 1
    assert fates(archive(PAGES[0]) + damaged + archive(*PAGES[2:])) == [
        "urn:0", "record_damaged", "urn:2", "urn:3", "archive_corrupt",
    ]  # fmt: skip


def test_a_member_that_was_cut_in_the_middle_of_the_file_loses_only_its_record() -> None:
    for member in (gzip.compress(PAGES[1]), gzip.compress(PAGES[1], 0)):
        for cut in range(1, len(member), 3):
            got = fates(archive(PAGES[0]) + member[:cut] + archive(*PAGES[2:]))
            assert [got[0], *got[-3:]] == ["urn:0", "urn:2", "urn:3", "archive_corrupt"], cut


@given(st.integers(0, 2**32), st.integers(1, 60), st.sampled_from(["members", "plain"]))
def test_damage_to_one_record_leaves_the_others_and_the_pieces_of_the_stream_do_not_matter(
    seed: int, size: int, form: str
) -> None:
    chance = random.Random(seed)
    pack = archive if form == "members" else bytes
    parts = [pack(page) for page in PAGES]
    spoiled = bytearray(parts[1])
    at = chance.randrange(len(spoiled))
    spoiled[at : at + size] = chance.randbytes(size if at + size <= len(spoiled) else len(spoiled) - at)
    data = b"".join([parts[0], spoiled, *parts[2:]])
    got = read(data)
    assert {"urn:0", "urn:2", "urn:3"} <= {item.document_id for item in got if isinstance(item, Document)}
    assert got == list(WarcReader().read(Trickle(data)))


def test_endless_blank_bytes_are_not_held_in_memory() -> None:
    source = Inflated(io.BytesIO(gzip.compress(PAGES[0] + b"\0" * 50_000_000 + PAGES[1], 1)))
    records = Records(source, 1_000_000)
    assert [record.headers["warc-record-id"] for record in records] == ["<urn:0>", "<urn:1>"]
    assert len(records._buffer) < 1_000_000


def test_many_false_beginnings_take_linear_time() -> None:
    data = archive(PAGES[0]) + b"junk" + b"\x1f\x8b\x08\x00\0\0\0\0\0\x03\xff\xff" * 5_000 + archive(PAGES[1])
    assert fates(data) == ["urn:0", "urn:1", "archive_corrupt"]


@pytest.mark.parametrize(
    ("name", "documents", "last"),
    [
        ("mid-damage.warc.gz", 3, ("archive_corrupt", 16)),
        ("wronglen.warc", 3, ("archive_corrupt", 2046)),
        ("resource.warc", 1, None),
        ("ok.warc.wet.gz", 3, None),
        ("ok.warc.zst", 5, None),
        ("ok.warc.lz4", 5, None),
        ("dict.warc.zst", 0, ("archive_unsupported", 0)),
    ],
)
def test_the_given_archives(name: str, documents: int, last: tuple[str, int] | None) -> None:
    got = read((ARCHIVES / name).read_bytes())
    assert sum(isinstance(item, Document) for item in got) == documents
    dropped = got[-1] if isinstance(got[-1], Dropped) else None
    assert (dropped and (dropped.reason, dropped.skipped)) == last
