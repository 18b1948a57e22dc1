import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.corpus.encoding import characters, is_text
from humpback_ray.corpus.extract import ExtractRecipe, Unusable, extract
from humpback_ray.corpus.readers import Document, WarcReader

DATA = Path(__file__).parent / "data"
RUSSIAN = "Тепловой насос переносит тепло из наружного воздуха в дом. Ему нужна энергия только для вентиляторов."
TEXTS = {
    "ja": "冬の朝、港の市場には新鮮な魚が並び、料理人たちがそれを静かに選んでいます。",
    "zh": "冬天的早晨，港口的市场里摆满了新鲜的鱼，厨师们安静地挑选着。",
    "tw": "冬天的早晨，港口的市場裡擺滿了新鮮的魚，廚師們安靜地挑選著。",
    "ko": "겨울 아침이면 항구 시장에 싱싱한 생선이 놓이고 요리사들이 조용히 고릅니다.",
    "pl": "Zimą rano na targu w porcie leżą świeże ryby, a kucharze wybierają je w ciszy. Źródło ciepła jest blisko.",
    "cs": "V zimě ráno leží na tržišti v přístavu čerstvé ryby a kuchaři je tiše vybírají, než přijde déšť.",
    "fr": "En hiver, le marché du port reçoit très tôt des poissons frais, que des cuisiniers choisissent là.",
    "de": "Im Winter liegen früh auf dem Markt am Hafen frische Fische, die Köche wählen sie für später aus.",
    "en": "It’s winter — the harbour’s “best” fish lie on the market, and the cooks choose…",
    "el": "Το χειμώνα το πρωί στην αγορά του λιμανιού υπάρχουν φρέσκα ψάρια.",
}


def page(text: str, head: str = "") -> str:
    return f"<html><head>{head}<title>t</title></head><body>" + f"<p>{text} And so on.</p>" * 3 + "</body></html>"


@pytest.mark.parametrize(
    ("html", "declared", "text"),
    [
        ("é".encode(), None, "é"),
        ("é".encode(), "iso-8859-1", "é"),
        ("\ufeffé".encode(), "iso-8859-1", "é"),
        ("é".encode("utf-16"), None, "é"),
        ("é".encode("latin-1"), "iso-8859-1", "é"),
        ("я".encode("cp1251"), "windows-1251", "я"),
        (b'<meta charset="windows-1251">' + "я".encode("cp1251"), None, '<meta charset="windows-1251">я'),
        ("中文".encode("gb2312"), "gb2312", "中文"),
        ("価".encode("iso-2022-jp"), "iso-2022-jp", "価"),
        ("日本語のページです。".encode("shift_jis") * 20, None, "日本語のページです。" * 20),
        ("naïve café".encode("latin-1"), "no-such-charset", "naïve café"),
        ("éé".encode()[:3], None, "é\ufffd"),
        (b"plain", "utf-7", "plain"),
        (b"", None, ""),
    ],
)
def test_the_encoding_is_found(html: bytes, declared: str | None, text: str) -> None:
    assert characters(html, declared) == text


@pytest.mark.parametrize("declared", [None, "utf-8", "iso-8859-1", "windows-1252"])
@pytest.mark.parametrize(
    ("text", "written"),
    [
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8-r"),
        (RUSSIAN, "iso-8859-5"),
        (TEXTS["ja"], "shift_jis"),
        (TEXTS["ja"], "euc-jp"),
        (TEXTS["ja"], "iso-2022-jp"),
        (TEXTS["zh"], "gb18030"),
        (TEXTS["zh"], "gb2312"),
        (TEXTS["tw"], "big5"),
        (TEXTS["ko"], "euc-kr"),
        (TEXTS["el"], "cp1253"),
        (TEXTS["pl"], "iso-8859-2"),
        (TEXTS["en"], "cp1252"),
        (TEXTS["fr"], "latin-1"),
        (TEXTS["de"], "latin-1"),
    ],
)
def test_a_wrong_or_missing_declaration_does_not_hide_the_text(text: str, written: str, declared: str | None) -> None:
    assert characters(page(text).encode(written), declared) == page(text)


@pytest.mark.parametrize("where", ["header", "meta", "xml"])
@pytest.mark.parametrize(
    ("text", "written"),
    [
        (RUSSIAN, "windows-1251"),
        (RUSSIAN, "koi8-r"),
        (TEXTS["ja"], "shift_jis"),
        (TEXTS["ja"], "euc-jp"),
        (TEXTS["zh"], "gb18030"),
        (TEXTS["tw"], "big5"),
        (TEXTS["ko"], "euc-kr"),
        (TEXTS["pl"], "iso-8859-2"),
        (TEXTS["pl"], "windows-1250"),
        (TEXTS["cs"], "iso-8859-2"),
        (TEXTS["cs"], "windows-1250"),
        (TEXTS["fr"], "iso-8859-1"),
    ],
)
def test_a_correct_declaration_counts_wherever_it_is(text: str, written: str, where: str) -> None:
    meta = f'<meta http-equiv="Content-Type" content="text/html; charset={written}">' if where == "meta" else ""
    whole = (f'<?xml version="1.0" encoding="{written}"?>' if where == "xml" else "") + page(text, meta)
    assert characters(whole.encode(written), written if where == "header" else None) == whole


@pytest.mark.parametrize(("text", "written"), [(TEXTS["cs"], "windows-1250"), (TEXTS["pl"], "windows-1250")])
@pytest.mark.parametrize("declared", [None, "utf-8", "iso-8859-2", "windows-1251", "shift_jis"])
def test_central_european_charsets_are_told_apart(text: str, written: str, declared: str | None) -> None:
    assert characters(page(text).encode(written), declared) == page(text)


@pytest.mark.parametrize("declared", [None, "utf-8", "iso-8859-1", "windows-1251", "utf-16"])
@pytest.mark.parametrize(
    "written", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-16", "utf-32", "utf-8-sig"]
)
@pytest.mark.parametrize("text", [RUSSIAN, TEXTS["ja"], TEXTS["en"]])
def test_wide_encodings_need_neither_mark_nor_declaration(text: str, written: str, declared: str | None) -> None:
    assert characters(page(text).encode(written), declared) == page(text)


@pytest.mark.parametrize("declared", [None, "utf-8", "iso-8859-1"])
@pytest.mark.parametrize("text", [RUSSIAN, TEXTS["ja"], TEXTS["fr"], TEXTS["en"]])
@pytest.mark.parametrize("bad", [b"\xff", b"\xe9", b"\x92", b"\xe3\x81", b"\0\xff"])
def test_a_bad_byte_costs_itself_and_not_the_page(text: str, declared: str | None, bad: bytes) -> None:
    start, end = page(text).encode(), b"<p>" + text.encode() + b"</p>"
    assert characters(start + bad + end, declared) == page(text) + bad.decode("utf-8", "replace") + end.decode()


@given(
    st.binary(max_size=200),
    st.sampled_from([None, "utf-8", "big5", "utf-16", "utf-32", "hex", "iso-2022-jp", "x-user-defined", "é"]),
)
def test_any_bytes_become_characters(html: bytes, declared: str | None) -> None:
    is_text(characters(html, declared).encode("utf-8").decode())


@pytest.mark.parametrize(
    "unit", [b"<script>", b"<!--", b"<", b"\xe0", b"\xb5", b"\xe0a", b"\xc4\xc5", b"<meta ", b"\xe0\0", b"<?xml "]
)
def test_time_is_linear_in_the_page(unit: bytes) -> None:
    for charset in ("windows-1251", "utf-8", "koi8-r"):
        started = time.process_time()
        characters(unit * 300_000 + b"\xff", charset)
        assert time.process_time() - started < 2


def test_bytes_in_no_charset_are_dropped_by_name() -> None:
    noise = bytes(number * number * 31 % 251 for number in range(4_000))
    with pytest.raises(Unusable, match="undecodable"):
        extract(Document("a", html=b"<html>" + noise), ExtractRecipe())


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("cs-utf16le-nobom-http", "Тепловой насос переносит тепло из наружн"),
        ("cs-win1251-wrong-utf8", "Тепловой насос переносит тепло из наружн"),
        ("http-gzip-no-header", "A heat pump moves warmth"),
        ("http-x-cc-encoding", "A heat pump moves warmth"),
        ("http-leading-blank", "A heat pump moves warmth"),
    ],
)
def test_archives_that_were_read_wrongly(name: str, start: str) -> None:
    with (DATA / f"{name}.warc").open("rb") as stream:
        (document,) = WarcReader().read(stream)
    assert isinstance(document, Document)
    assert not document.cut
    assert extract(document, ExtractRecipe())[-1].paragraphs[0].startswith(start)
