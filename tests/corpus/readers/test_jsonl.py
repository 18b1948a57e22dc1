import gzip
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.corpus.readers import Document, Dropped, JsonlReader


def read(data: bytes, reader: JsonlReader | None = None) -> list[Document | Dropped]:
    return list((reader or JsonlReader()).read(io.BytesIO(data)))


def test_lines_become_documents_of_text_or_html() -> None:
    data = b'{"id": 7, "url": "https://a.org", "text": "words"}\n\n'
    data += b'{"id": "b", "html": "<p>\\u00e9</p>", "text": "unused"}\n'
    expected = [
        Document("7", "https://a.org", text="words"),
        Document("b", "", html="<p>é</p>".encode(), charset="utf-8"),
    ]
    assert read(data) == read(gzip.compress(data)) == expected


def test_without_an_id_the_line_names_the_document() -> None:
    first, second, again = read(b'{"text": "a"}\n{"text": "b"}\n{"text": "a"}')
    assert first.document_id == again.document_id != second.document_id


def test_the_recipe_names_the_fields() -> None:
    reader = JsonlReader(text_field="body", html_field=None, id_field="key", url_field=None)
    assert read(b'{"key": "k", "body": "words", "html": "<p>", "url": "u"}', reader) == [
        Document("k", "", text="words")
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "bad_json"),
        (b"[1]", "bad_json"),
        (b"\xff\xfe", "bad_json"),
        (b"[" * 100_000, "bad_json"),
        (b'{"id": "x"}', "empty"),
        (b'{"text": "  "}', "empty"),
        (b'{"text": 5}', "empty"),
        (b'{"text": "' + b"x" * 2000 + b'"}', "too_large"),
    ],
)
def test_a_bad_line_is_a_row_of_its_own(line: bytes, reason: str) -> None:
    got = read(b'{"text": "before"}\n' + line + b'\n{"text": "after"}', JsonlReader(max_line_bytes=1000))
    if len(line) > 1000:
        reason = "too_large"
    assert [item.reason if isinstance(item, Dropped) else item.text for item in got] == ["before", reason, "after"]


def test_a_cut_file_gives_its_lines_and_one_more_row() -> None:
    data = gzip.compress(b"".join(b'{"id": "%d", "text": "words %d"}\n' % (n, n * 7919) for n in range(5000)))
    got = read(data[:-100])
    assert isinstance(got[0], Document)
    assert isinstance(got[-1], Dropped)
    assert got[-1].reason == "archive_truncated"
    assert [item.reason for item in read(b"") if isinstance(item, Dropped)] == ["archive_empty"]


@given(st.binary(max_size=300))
def test_any_bytes_give_a_row_per_line_that_is_not_blank(data: bytes) -> None:
    if not data.startswith(b"\x1f\x8b"):
        assert len(read(data)) == max(sum(bool(line.strip()) for line in data.split(b"\n")), not data)


def test_lines_after_damage_are_found() -> None:
    first, second = (gzip.compress(b'{"id": "%d", "text": "words"}\n' % number) for number in range(2))
    got = read(first + b"damage" + second)
    assert [item.document_id for item in got[:2]] == ["0", "1"]
    assert isinstance(got[2], Dropped)
    assert (got[2].reason, got[2].skipped) == ("archive_corrupt", 6)


ARCHIVES = Path(__file__).parents[1] / "archives"


@pytest.mark.parametrize("name", ["text.jsonl", "text.parquet", "html.jsonl.zst"])
def test_the_given_files(name: str) -> None:
    got = read((ARCHIVES / name).read_bytes())
    assert [item.document_id for item in got] == ["0", "1", "2", "3", "4"]
    assert all(isinstance(item, Document) and (item.html if "html" in name else item.text) for item in got)


def test_a_damaged_parquet_file_and_an_empty_row_are_dropped_by_name() -> None:
    made = io.BytesIO()
    pq.write_table(pa.table({"id": ["a", "b"], "text": ["words", ""]}), made)
    first, second = read(made.getvalue())
    assert first == Document("a", "", text="words")
    assert isinstance(second, Dropped)
    assert (second.document_id, second.reason) == ("b", "empty")
    (cut,) = read(made.getvalue()[:-20])
    assert isinstance(cut, Dropped)
    assert cut.reason == "archive_corrupt"
