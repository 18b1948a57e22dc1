import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.corpus.markup import Tag, attribute_values, scan


def flat(page: str) -> list[str]:
    return [token if isinstance(token, str) else ("/" if token.ends else "") + token.name for token in scan(page)]


def test_tags_and_text_come_in_order() -> None:
    assert flat("a<b>c</b >d<br/>e &amp; f") == ["a", "b", "c", "/b", "d", "br", "e & f"]


@pytest.mark.parametrize(
    ("page", "tokens"),
    [
        ("a<!-- <p> -->b", ["a", "b"]),
        ("a<!-->b", ["a", "b"]),
        ("a<!-- never closed <p>b", ["a"]),
        ("a<!DOCTYPE html>b<?xml x?>c</ >d", ["a", "b", "c", "d"]),
        ("<script>if (a<b) '</p>'</SCRIPT >x", ["script", "/script", "x"]),
        ("<script>never closed", ["script"]),
        ("<title>a<b></title>c", ["title", "/title", "c"]),
        ('<a title="x > y">z', ["a", "z"]),
        ("<p it's>a<p>b'", ["p", "a", "p", "b'"]),
        ("<p title='never closed>a", ["p"]),
        ("1 < 2 <3 & 4", ["1 < 2 <3 & 4"]),
        ("x<p", ["x", "p"]),
    ],
)
def test_messy_markup_is_read_as_in_browsers(page: str, tokens: list[str]) -> None:
    assert [token for token in flat(page) if token.strip()] == tokens


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("&#" + "9" * 5_000 + ";a", "\ufffda"),
        ("&#" + "9" * 5_000, "\ufffd"),
        ("&#x" + "f" * 5_000 + ";a", "\ufffda"),
        ("&#" + "0" * 5_000 + "65;b", "Ab"),
        ("&#X" + "0" * 5_000 + "41;b", "Ab"),
        ("&#" + "0" * 5_000 + ";", "\ufffd"),
        ("&#1114112;&#x110000;&#xd800;&#123456789;", "\ufffd" * 4),
        ("&#1114109;", "\U0010fffd"),
        ("&#128512;&#x1F600", "😀😀"),
    ],
)
def test_numeric_character_references_are_read_at_any_length(source: str, text: str) -> None:
    assert list(scan(source)) == [text]


def test_attributes_are_parsed_with_any_quotes() -> None:
    source = ' CLASS="a b"\nid=\'c\' hidden data-x=1 id="second" style = "display:none" '
    assert attribute_values(source) == {
        "class": "a b", "id": "c", "hidden": "", "data-x": "1", "style": "display:none",
    }  # fmt: skip


@given(st.text(alphabet="<>/!-='\" abpx&;#1\n", max_size=200))
def test_any_text_is_scanned_to_its_end(page: str) -> None:
    for token in scan(page):
        assert isinstance(token, str) or (isinstance(token, Tag) and token.name)
        if isinstance(token, Tag):
            attribute_values(token.attributes)


@pytest.mark.parametrize(
    "unit",
    [
        "<",
        "<a ",
        "<a '",
        "<a x='",
        '<a x="',
        "<!--",
        "<!",
        "</",
        "<a =",
        "<a= '",
        "<script>",
        "<a x=''",
        "&",
        "&lt",
        "<p =\t",
    ],
)
def test_time_is_linear_in_the_page_whatever_is_repeated(unit: str) -> None:
    def seconds(count: int) -> float:
        started = time.process_time()
        for token in scan(unit * count):
            if isinstance(token, Tag):
                attribute_values(token.attributes)
        return time.process_time() - started

    assert seconds(200_000) < 20 * max(seconds(20_000), 0.02)
