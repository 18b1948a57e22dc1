import gzip
import io
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.config import ConfigError
from humpback_ray.corpus.filters import FilterRecipe
from humpback_ray.corpus.readers import Document
from humpback_ray.corpus.segments import Segmenter, SegmentRecipe, SegmentRow, segment_file, segments, text_hash
from humpback_ray.records import SEGMENT, record_id
from humpback_ray.storage import find
from tests.corpus.archive import archive, response

FILTERS = FilterRecipe(min_chars=10, max_chars=60, language=None)
RECIPE = SegmentRecipe(filters=FILTERS)


def rows(page: str, recipe: SegmentRecipe = RECIPE) -> list[SegmentRow]:
    return list(segments(Document("d", "https://a.org", html=page.encode()), recipe))


def fates(page: str, recipe: SegmentRecipe = RECIPE) -> list[tuple[str, str | None]]:
    return [(row.header, row.drop_reason) for row in rows(page, recipe)]


def test_a_segment_includes_the_subtrees_of_its_lower_headers() -> None:
    page = "<p>before<h1>A</h1>alpha beta<h2>B</h2>gamma delta<h1>C</h1>epsilon zeta"
    assert [row.text for row in rows(page) if not row.drop_reason] == ["alpha beta\nB\ngamma delta", "epsilon zeta"]
    assert fates(page) == [("A", None), ("B", "overlaps_outer"), ("C", None)]


def test_parts_of_a_segment_that_is_too_long_are_judged_on_their_own() -> None:
    page = "<h1>A</h1><h2>B</h2>" + "b" * 40 + "<h2>C</h2>" + "c" * 40 + "<h3>D</h3>" + "d" * 5
    assert fates(page) == [("A", "too_long"), ("B", None), ("C", None), ("D", "too_short")]


def test_parts_of_a_segment_dropped_by_its_header_are_judged_on_their_own() -> None:
    page = "<h1>MENUS HERE</h1><h2>B</h2>" + "b" * 30
    assert fates(page) == [("MENUS HERE", "header_uppercase"), ("B", None)]


def test_overlapping_segments_can_all_be_kept() -> None:
    page = "<h1>A</h1>alpha beta<h2>B</h2>gamma delta"
    assert fates(page, RECIPE.model_copy(update={"overlap": "keep_all"})) == [("A", None), ("B", None)]


def test_kept_segments_do_not_share_text() -> None:
    page = "".join(
        f"<h{level}>H{n}</h{level}>word{n} word{n} word{n}" for n, level in enumerate([1, 2, 3, 3, 2, 1, 4, 2, 6])
    )
    kept = [row.text for row in rows(page) if row.drop_reason is None]
    words = [word for text in kept for word in set(text.split()) if word.startswith("word")]
    assert kept
    assert len(words) == len(set(words))


def test_a_page_without_headers_is_one_segment_that_the_header_rule_drops() -> None:
    assert fates("<p>alpha beta gamma") == [("", "header_empty")]
    keep = SegmentRecipe(filters=FILTERS.model_copy(update={"drop_empty_headers": False}))
    assert [row.text for row in rows("<p>alpha beta gamma", keep)] == ["alpha beta gamma"]


def test_a_cut_page_loses_the_segments_that_reach_the_cut_and_no_others() -> None:
    page = b"<h1>A</h1>alpha beta<h2>B</h2>gamma delta<h2>C</h2>epsilon zeta and th"
    whole, cut = (list(segments(Document("d", html=page, cut=cut), RECIPE)) for cut in (False, True))
    assert [row.drop_reason for row in whole] == [None, "overlaps_outer", "overlaps_outer"]
    assert [row.drop_reason for row in cut] == ["cut_off", None, "cut_off"]
    assert [row.text for row in cut] == ["", "gamma delta", ""]
    text = Document("d", text="alpha beta gamma de", cut=True)
    assert [row.drop_reason for row in segments(text, RECIPE)] == ["cut_off"]


def test_plain_text_is_a_segment_with_default_settings() -> None:
    words = "The baker keeps a young starter on the shelf above the oven, where it is warm all night. "
    other = "In the morning she feeds it flour and water and waits until bubbles rise to the top of the jar. "
    fates = {
        row.drop_reason
        for text in (words + other + "See the list. " * 40, (words + other) * 30, "short")
        for row in segments(Document("d", text=text), SegmentRecipe())
    }
    assert fates == {None, "too_long", "too_short"}


def test_a_given_text_that_is_too_long_says_so() -> None:
    name = "longtext.jsonl"
    data = (Path(__file__).parent / "archives" / name).read_bytes()
    assert table(data, name, SegmentRecipe())["drop_reason"].to_pylist() == ["too_long"]


def test_the_row_of_a_damaged_file_counts_the_bytes_that_were_skipped() -> None:
    page = archive(response(b"<h1>A</h1>alpha beta"))
    row = table(page + b"junk").to_pylist()[-1]
    assert (row["drop_reason"], row["chars"], row["url"]) == ("archive_corrupt", 4, "4 bytes skipped")


def test_a_dropped_row_keeps_its_length_and_loses_its_text() -> None:
    (row,) = rows("<h1>A</h1>" + "x" * 100)
    assert (row.text, row.text_hash, row.chars, row.drop_reason) == ("", "", 100, "too_long")
    assert row.id == record_id("d", 0, "x" * 100)


def test_a_document_that_gives_no_segment_has_a_row_at_minus_one() -> None:
    (row,) = rows("<nav>x</nav>")
    assert (row.position, row.drop_reason, row.document_id, row.url) == (-1, "no_text", "d", "https://a.org")
    many = SegmentRecipe(filters=FILTERS, max_segments=2)
    assert [row.drop_reason for row in rows("<h1>A</h1>" * 3, many)] == ["too_many_headers"]


def test_a_foreign_page_is_dropped_and_a_list_that_only_looks_foreign_stays() -> None:
    recipe = SegmentRecipe(filters=FilterRecipe(min_chars=10))
    german = "<h1>Brot</h1>" + "Der Sauerteig geht langsam auf, weil wilde Hefe in einem jungen Ansatz selten ist."
    english = "<p>" + "The people who work here are listed below, with the year in which they joined us. " * 40
    names = "<h2>Staff</h2>" + "Amanda Nuria Cordero, Lucia Marina Silva, Paolo Rossi, Julia Romano, Claudia Moretti. "
    assert [row.drop_reason for row in rows(german, recipe)] == ["other_language"]
    assert [row.drop_reason for row in rows(english + names, recipe)] == [None]


def test_the_hash_ignores_case_width_and_whitespace() -> None:
    assert text_hash("Ｆull  Width\n") == text_hash("full width")
    assert text_hash("full width") != text_hash("fullwidth")


def table(data: bytes, name: str = "a.warc.gz", recipe: SegmentRecipe = RECIPE) -> pa.Table:
    return segment_file(io.BytesIO(data), name, recipe)


def test_every_record_of_an_archive_has_its_rows() -> None:
    data = archive(
        response(b"<h1>A</h1>alpha beta", record_id="<urn:1>"),
        response(b"", record_id="<urn:2>"),
        response(b"x", status="500 No", record_id="<urn:3>"),
    )
    made = table(data + b"junk")
    assert made.schema == SEGMENT
    assert made["drop_reason"].to_pylist() == [None, "empty", "http_status", "archive_corrupt"]


def test_a_record_that_a_file_holds_twice_stays_once() -> None:
    page = response(b"<h1>A</h1>alpha beta<h1>B</h1>x")
    made = table(archive(page, page, page))
    assert Counter(made["drop_reason"].to_pylist()) == {None: 1, "too_short": 1, "repeated_record": 4}
    assert len(set(made["id"].to_pylist())) == 6


def test_json_lines_give_segments_where_empty_headers_may_stay() -> None:
    keep = SegmentRecipe(filters=FILTERS.model_copy(update={"drop_empty_headers": False}))
    data = json.dumps({"text": "alpha beta\ngamma"}).encode() + b"\n{"
    assert table(data, "a.jsonl", keep)["text"].to_pylist() == ["alpha beta\ngamma", ""]


def test_the_segmenter_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "web.warc.gz"
    path.write_bytes(archive(response(b"<h1>A</h1>alpha beta")))
    assert Segmenter(RECIPE)(*find(str(path)))["text"].to_pylist() == ["alpha beta"]
    with pytest.raises(ConfigError, match=r"no reader takes web\.txt"):
        table(b"", "web.txt")


@given(st.lists(st.binary(max_size=120), max_size=4), st.binary(max_size=30))
def test_every_document_gives_a_row_and_ids_are_unique_whatever_the_pages_hold(pages: list[bytes], junk: bytes) -> None:
    records = [response(b"<h1>A</h1>" + page, record_id=f"<urn:{n}>") for n, page in enumerate(pages)]
    made = table(archive(*records) + junk)
    assert {f"urn:{n}" for n in range(len(pages))} <= set(made["document_id"].to_pylist())
    assert len(set(made["id"].to_pylist())) == made.num_rows
    for row in made.to_pylist():
        assert bool(row["text"]) == (row["drop_reason"] is None)


@given(st.binary(max_size=400))
def test_any_file_gives_rows(data: bytes) -> None:
    for packed in (data, gzip.compress(data)):
        assert table(packed).num_rows >= (b"WARC" not in data)
        table(packed, "a.jsonl")


@pytest.mark.realdata
def test_real_archives_give_segments_with_sensible_fates(real_data: Path) -> None:
    kept = {}
    for path in sorted((real_data / "warc").glob("*.warc.gz")):
        made = Segmenter(SegmentRecipe())(*find(str(path)))
        fates = Counter(made["drop_reason"].to_pylist())
        kept[path.name] = fates[None]
        assert len(set(made["id"].to_pylist())) == made.num_rows
        assert fates["other_language"] < 0.1 * made.num_rows
        assert fates["repetitive"] < 0.1 * (fates[None] + fates["repetitive"] + 20)
    assert kept["commoncrawl-16.warc.gz"] == 0  # Chinese, Russian and Dutch pages, and a list of English names
    assert kept["dolma-0000.warc.gz"] > 50
    assert kept["wcxb-300.warc.gz"] > 1000
