import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.corpus.extract import ExtractRecipe, Section, Unusable, extract
from humpback_ray.corpus.readers import Document, WarcReader

RECIPE = ExtractRecipe(lenient_below_chars=0)


def sections(page: str, recipe: ExtractRecipe = RECIPE) -> list[Section]:
    return extract(Document("d", html=page.encode()), recipe)


def lines(page: str, recipe: ExtractRecipe = RECIPE) -> list[str]:
    return [line for section in sections(page, recipe) for line in section.paragraphs]


def test_headers_open_sections_and_text_before_them_is_level_zero() -> None:
    assert sections("<p>a<h1>One</h1><p>b<h3>Two <i>and</i></h3>c") == [
        Section(0, "", ("a",)),
        Section(1, "One", ("b",)),
        Section(3, "Two and", ("c",)),
    ]


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("<div>a<div>b</div>c</div>", ["a", "b", "c"]),
        ("a<br>b<br/><br>c", ["a", "b", "c"]),
        ("<p>a  \n b</p><p>c", ["a b", "c"]),
        ("<span>a</span><b>b</b> c", ["ab c"]),
        ("<ul><li>a<li>b<ol><li>c<li>d</ol><li>e</ul>f", ["- a", "- b", "1. c", "2. d", "- e", "f"]),
        ("<ol><li><p>a</p><p>b</p></ol>", ["1. a", "b"]),
        ("<table><tr><th>A<th>B<tr><td>1<td>2</table>", ["A | B", "1 | 2"]),
        ("<table><tr><td><p>a</p><p>b</p></td></tr></table>", ["a", "b"]),
        ("<pre>if x:\n    y\n</pre>z", ["if x:", "    y", "z"]),
        ("<dl><dt>a<dd>b</dl>", ["a", "b"]),
        ("&lt;b&gt; &eacute;&nbsp;&#8212;&#xD800;", ["<b> é —\ufffd"]),
        ("a<p hidden>b<p>c", ["a", "c"]),
        ("a<span style='display: none'>b<span>c</span>d</span>e", ["ae"]),
        (
            "<form><p>whole pages stand in a form<input><select><option>x</select></form>",
            ["whole pages stand in a form"],
        ),
    ],
)
def test_text_keeps_its_lines(page: str, expected: list[str]) -> None:
    assert lines(page) == expected


@pytest.mark.parametrize(
    "region",
    [
        "<nav>x</nav>", "<footer>x</footer>", "<aside>x</aside>", "<script>x</script>", "<style>x</style>",
        "<div hidden>x</div>", "<div role=navigation>x</div>", "<div aria-hidden=true>x</div>",
        "<noscript>x</noscript>",
        "<nav><div>x</nav>", "<div class='site-footer dark'>x<div>y</div></div>", "<div id=breadcrumbs>x</div>",
        "<ul class='nav menu'><li>x</ul>", "<div class=cookie-banner>x</div>", "<svg><text>x</text></svg>",
        "<template>x</template>", "<button>x</button>", "<section class='related-posts'>x</section>",
    ],
)  # fmt: skip
def test_boilerplate_around_a_page_is_left_out(region: str) -> None:
    assert lines(f"<p>a</p>{region}<p>b</p>") == ["a", "b"]


@pytest.mark.parametrize(
    "name", ["has-sidebar", "content", "page-nav-content", "article-body", "no-sidebar", "navy", "shared"]
)
def test_names_that_only_resemble_boilerplate_stay(name: str) -> None:
    assert lines(f"<div class='{name}'>a</div>") == ["a"]


def test_an_unclosed_region_ends_with_the_element_around_it() -> None:
    assert lines("<div><nav>x</div><p>a") == ["a"]


def test_end_tags_inside_a_table_cell_close_nothing_outside_it() -> None:
    assert lines("<div hidden><table><tr><td>x</div>y</table>z</div>a") == ["a"]


def test_menus_without_a_name_are_known_by_their_links() -> None:
    menu = "".join(f"<li><a href=/{n}>link {n}</a>" for n in range(5))
    assert lines(f"<p>a<ul>{menu}</ul><p>b <a>c</a>") == ["a", "b c"]
    assert len(lines(f"<ul>{menu}</ul>b", RECIPE.model_copy(update={"max_link_lines": None}))) == 6


@pytest.mark.parametrize(
    ("page", "header"),
    [
        ("<h2>T<p>text</p>", "T"),
        ("<h2><p>T</p></h2>text", "T"),
        ("<h2><div>T</div></h2>text", "T"),
        ("<h2>T</h3>text", "T"),
        ("<h2>T<a href=#t>¶</a></h2>text", "T"),
        ("<h2>T[edit]</h2>text", "T"),
        ("<h2>T<h4></h4>text", "T"),
    ],
)
def test_headers_are_read_however_they_are_written(page: str, header: str) -> None:
    found = sections(page)
    assert found[0].header == header
    assert [line for section in found for line in section.paragraphs] == ["text"]


def test_headers_that_are_never_closed_end_where_the_next_one_starts() -> None:
    assert [section.header for section in sections("<h1>a<h2>b<h1>c" * 300)] == ["a", "b", "c"] * 300


def test_a_header_as_long_as_a_paragraph_becomes_a_paragraph() -> None:
    assert sections("<h1>" + "word " * 100 + "</h1>b") == [Section(1, "", (("word " * 100).strip(), "b"))]


def test_a_page_that_hides_its_text_from_crawlers_is_read_leniently() -> None:
    page = "<p>Enable JavaScript</p><noscript><div class=comments><p>" + "The text. " * 50 + "</div></noscript>"
    assert lines(page) == ["Enable JavaScript"]
    assert len(lines(page, ExtractRecipe())) == 2


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("", "no_text"),
        ("<nav>x</nav><h1> </h1>", "no_text"),
        ("x" * 1001, "html_too_large"),
        ("<i>" * 150, "too_many_tags"),
        ("<div>" * 60, "too_deep"),
    ],
)
def test_pages_beyond_the_caps_are_dropped_by_name(page: str, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        sections(page, ExtractRecipe(max_html_bytes=1000, max_tags=100, max_depth=50))


def test_a_page_that_explodes_a_tree_parser_is_read() -> None:
    bomb = "".join(f"<font color={number}><p>" for number in range(50_000)) + "x"
    assert lines(bomb) == ["x"]


def test_plain_text_is_one_section_without_a_header() -> None:
    assert extract(Document("d", text="a\r\n\r\n  b  c\n"), RECIPE) == [Section(0, "", ("a", "b c"))]


TAGS = st.sampled_from(
    """<p> </p> <div> </div> <h1> </h1> <h2> <nav> </nav> <table> <tr> <td> </td> </table> <ul> <li> </ul> <ol> </ol>
    <pre> </pre> <p/hidden> <b> </b> <a> </a> <br> </br> </p> <form> </form> <script> </script> <!-- --> text &amp; <
    """.split()  # noqa: SIM905
)


@given(st.one_of(st.binary(max_size=400), st.lists(TAGS, max_size=60).map(lambda tags: " ".join(tags).encode())))
def test_any_page_ends_in_sections_or_a_named_drop(html: bytes) -> None:
    try:
        found = extract(Document("d", html=html), ExtractRecipe())
    except Unusable as unusable:
        found = [Section(0, unusable.reason, ("no_text",))]
    assert found
    for section in found:
        assert 0 <= section.level <= 6
        assert all(line.strip() and "\n" not in line for line in section.paragraphs)


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().lower()


@pytest.mark.realdata
def test_on_annotated_pages_most_wanted_text_is_found_and_most_unwanted_left_out(
    real_data: Path, record_property
) -> None:
    pages = map(json.loads, (real_data / "warc" / "wcxb-300.truth.jsonl").read_bytes().splitlines())
    truth = {page["url"]: page for page in pages}
    found, wanted, leaked, unwanted = 0, 0, 0, 0
    with open(real_data / "warc" / "wcxb-300.warc.gz", "rb") as stream:
        for document in WarcReader().read(stream):
            assert isinstance(document, Document)
            parts = [
                part for section in extract(document, ExtractRecipe()) for part in (section.header, *section.paragraphs)
            ]
            text, page = plain(" ".join(parts)), truth[document.url]
            found += sum(plain(snippet) in text for snippet in page["with"])
            leaked += sum(plain(snippet) in text for snippet in page["without"])
            wanted, unwanted = wanted + len(page["with"]), unwanted + len(page["without"])
    record_property("wanted", f"{found} of {wanted}")
    record_property("unwanted", f"{leaked} of {unwanted}")
    assert found / wanted > 0.84
    assert leaked / unwanted < 0.26
