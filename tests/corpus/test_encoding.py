import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.corpus.encoding import characters


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


@given(
    st.binary(max_size=200), st.sampled_from([None, "utf-8", "big5", "utf-16", "hex", "iso-2022-jp", "x-user-defined"])
)
def test_any_bytes_become_characters(html: bytes, declared: str | None) -> None:
    characters(html, declared).encode("utf-8")
