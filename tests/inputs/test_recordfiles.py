"""A file is read by its content, and bad parts cost as few records as possible."""

import bz2
import gzip
import io
import json
import lzma
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.inputs.recordfiles import records

VALUES = [{"a": 1, "t": 'x"]}\n\\'}, {"a": [2, {"b": None}]}, {"a": "é\u2028😀"}]
LINES = "\n".join(json.dumps(value, ensure_ascii=False) for value in VALUES)


def read(data: bytes | str, max_bytes: int = 10_000) -> list[Any]:
    """The values of a file, or a fault in place of each missing one."""
    stream = io.BytesIO(data if isinstance(data, bytes) else data.encode())
    return [record.fault or record.value for record in records(stream, max_bytes)]


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


LAYOUTS = {
    "lines": LINES,
    "lines with CRLF, blank lines and an end": "\n \n" + LINES.replace("\n", "\r\n\r\n") + "\r\n",
    "lines with commas": LINES.replace("\n", ",\n") + "\n",
    "an array": json.dumps(VALUES),
    "an array over lines": json.dumps(VALUES, indent=4),
    "an array, an element a line": "[\n" + LINES.replace("\n", ",\n") + "\n]\n",
    "objects over lines": "\n".join(json.dumps(value, indent=2) for value in VALUES),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_every_layout_in_every_encoding_gives_the_same_values(layout: str, encoding: str) -> None:
    assert read(LAYOUTS[layout].encode(encoding)) == VALUES


@pytest.mark.parametrize("packed", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_compression_is_found_by_content_and_records_before_the_damage_are_kept(packed: Any) -> None:
    data = packed(LINES.encode())
    assert read(data) == read(data[: len(data)]) == VALUES
    assert read(data + data) == [*VALUES[:2], "bad_json", *VALUES[1:]], "the last and the first line are one"
    more = packed(("\n" + "\n".join(json.dumps({"n": n, "x": str(n**50)}) for n in range(4000))).encode())
    cut = read(data + more[: len(more) // 2])
    assert (cut[:3], cut[-1]) == (VALUES, "archive_truncated")
    spoiled = read(data + more[: len(more) // 2] + bytes(64) + more[len(more) // 2 :])
    assert (spoiled[:3], spoiled[-1]) == (VALUES, "archive_corrupt")


def test_two_files_written_one_after_the_other_are_read_as_one() -> None:
    assert read((LINES + "\n").encode("utf-8-sig") * 2) == VALUES * 2
    array = json.dumps(VALUES, indent=1)
    assert read(array + "\n" + array) == VALUES * 2


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ("", ["archive_empty"]),
        (" \r\n\n", ["archive_empty"]),
        ("[]", ["archive_empty"]),
        ("[\n]\n", ["archive_empty"]),
        (gzip.compress(b"", mtime=0), ["archive_empty"]),
        (b"PK\x03\x04rest", ["archive_unsupported"]),
        (b"PAR1 and nothing", ["archive_corrupt"]),
        ("a,b\n1;2\n", ["bad_json", "bad_json"]),
        ('{"a": 1}\n{"a"\n{"a": 3}', [{"a": 1}, "bad_json", {"a": 3}]),
        ('{"a"\n{"a": 2}', ["bad_json", {"a": 2}]),
        ('{"a": "cut\n{"a": 2}', ["bad_json", {"a": 2}]),
        ('{"a": 1}\n5\n"x"\n[1]', [{"a": 1}, 5, "x", [1]]),
        ('["q", "a"]\n["r", "b"]', [["q", "a"], ["r", "b"]]),
        ('[["q", "a"], ["r", "b"]]', [["q", "a"], ["r", "b"]]),
        (b'{"a": 1}\n{"a": "\xe9"}\n{"a": 3}', [{"a": 1}, "not_utf8", {"a": 3}]),
        (b'{"a": "\xe9"}\n{"a": 2}', ["not_utf8", {"a": 2}]),
        (b'[{"a": 1}, {"a": "\xe9"}, {"a": 3}]', [{"a": 1}, "not_utf8", {"a": 3}]),
        ("[" * 100_000, ["bad_json"]),
        ('{"a": ' + "9" * 5000 + '}\n{"a": 2}', ["bad_json", {"a": 2}]),
        ('{"a": "' + "x" * 10_000 + '"}\n{"a": 2}', ["too_large", {"a": 2}]),
        ('[{"a": "' + "x" * 10_000 + '"}, {"a": 2}]', ["too_large", {"a": 2}]),
    ],
)
def test_bad_json_costs_one_line_or_element(data: bytes | str, found: list[Any]) -> None:
    assert read(data) == found


def test_a_bad_element_of_an_array_extends_to_the_next_one_that_begins_like_the_first() -> None:
    for layout in ("an array over lines", "an array, an element a line"):
        first, _, rest = LAYOUTS[layout].partition('"a": [')
        assert read(f'{first}"a" [{rest}') == [VALUES[0], "bad_json", VALUES[2]]


def test_an_array_that_was_cut_off_says_so() -> None:
    text = LAYOUTS["an array over lines"]
    assert read(text[: text.rindex('"a"') + 2]) == [*VALUES[:2], "archive_truncated"]
    assert read(text[: text.rindex("]")]) == [*VALUES, "archive_truncated"]


def test_an_object_around_many_records_may_be_larger_than_one_record() -> None:
    wrapped = {"data": [{"a": "x" * 900}] * 20}
    assert read(json.dumps(wrapped)) == read(json.dumps(wrapped, indent=1)) == [wrapped]
    assert read(json.dumps({"data": "x" * 18_000})) == ["too_large"]


def test_parquet_rows_are_records_also_compressed_and_damaged_ones_end_the_file() -> None:
    sink = io.BytesIO()
    rows = [{"talk": [{"from": "human", "value": "q"}], "n": 1}, {"talk": None, "n": None}]
    pq.write_table(pa.Table.from_pylist(rows), sink)
    assert read(sink.getvalue()) == read(gzip.compress(sink.getvalue())) == rows
    assert read(sink.getvalue()[:-20]) == ["archive_corrupt"]


def test_parquet_times_are_left_out_and_bytes_that_are_not_text_cost_their_row() -> None:
    texts = pa.array([b"ok", b"\xe9", b"fine"]).view(pa.string())
    table = pa.table({"text": texts, "made": pa.array([1, 2, 3], pa.timestamp("ns")), "n": [1, 2, 3]})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    assert read(sink.getvalue()) == [{"text": "ok", "n": 1}, "not_utf8", {"text": "fine", "n": 3}]


def test_an_error_of_the_store_is_raised_and_not_recorded_as_damage() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 8:
                raise OSError(5, "the disk is gone")
            return super().read(9 if size is None or size < 0 else min(size, 9))

        read1 = read

    for data in (LINES.encode(), gzip.compress(LINES.encode()), bz2.compress(LINES.encode()), zstd(LINES.encode())):
        with pytest.raises(OSError, match="the disk is gone"):
            list(records(Failing(data)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=9,
)


@given(st.lists(st.dictionaries(st.text(max_size=3), JSON, min_size=1), min_size=1, max_size=5), st.booleans())
def test_any_json_value_comes_back(values: list[Any], ascii_alone: bool) -> None:
    texts = [json.dumps(value, ensure_ascii=ascii_alone) for value in values]
    spread = [json.dumps(value, ensure_ascii=ascii_alone, indent=1) for value in values]
    for layout in ("\n".join(texts), "\n".join(spread), f"[{','.join(texts)}]", f"[{','.join(spread)}]"):
        assert read(layout) == values
