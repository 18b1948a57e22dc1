"""Decoding of a page: bytes → characters.

Declarations are wrong so often that the bytes decide. In order: byte order mark; UTF-16 and UTF-32, recognized by their
zero bytes; UTF-8 that decodes, with a few bad bytes at most; HTTP header; `<meta>` or XML declaration; a guess. A
declaration is ignored if its text is visibly wrong (`damage`) and the text of the guess is not.
"""

import codecs
import functools
import re
from collections import Counter

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, since its mark begins with that of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_META_CHARSET = re.compile(
    rb"<meta\b[^>]{0,300}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})"
    rb"|<\?xml\b[^>]{0,100}?\bencoding\s*=\s*[\"']\s*([\w.:-]{1,40})",
    re.IGNORECASE,
)
_META_BYTES = 4096
_SAMPLE_BYTES = 64 * 1024
_FALLBACK = "cp1252"
_FEW_HIGH = 3
_MARKUP = re.compile(rb"<(?:script|style)\b.*?(?:</|\Z)|<!--.*?(?:-->|\Z)|<[^<>]*>", re.IGNORECASE | re.DOTALL)
_CUT_CHARACTER = re.compile(rb"(?:[\xc2-\xf4]|[\xe0-\xf4][\x80-\xbf]|[\xf0-\xf4][\x80-\xbf]{2})\Z")
_ISO_2022_JP = re.compile(rb"\x1b\$[@B]")
_HIGH = re.compile(rb"[\x80-\xff]")
_CENTRAL_EUROPEAN = frozenset({"cp1250", "iso8859-2"})
_CP1250_LETTER = re.compile(rb"[\x8a-\x8f\x9a-\x9f]")
_ISO_LETTER = re.compile(rb"[\xa1\xa5\xa6\xa9\xab\xac\xae\xb1\xb5\xb6\xb9\xbb\xbc\xbe]")
_WINDOWS = {
    "iso8859-1": "cp1252", "iso8859-7": "cp1253", "iso8859-8": "cp1255", "iso8859-9": "cp1254",
    "iso8859-13": "cp1257", "iso8859-15": "cp1252",
}  # fmt: skip
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030", "euc_kr": "cp949", "shift_jis": "cp932", "big5": "big5hkscs",
          "tis-620": "cp874", "iso8859-11": "cp874"}  # fmt: skip

_WRONG = 0.04
"""If a declared charset damages a larger share of the characters beyond ASCII, it is compared with the guess."""

_FEW = 20
"""The frequencies of fewer letters say nothing."""

# Every pattern is bounded or consumes the text that it looks at, so time is linear in the page.
# Letters and signs that Latin-1 and the Windows charsets have in place of other scripts. Unlike quotes, they do not
# occur next to each other.
_ACCENTED = "\u00a1-\u00a6\u00a8\u00aa\u00ac\u00af-\u00b6\u00b8-\u00ba\u00bc-\u024f\u02c6-\u02dd\u0192"
_RUN = re.compile(f"[{_ACCENTED}]{{2,}}")
_SIGN_IN_WORD = re.compile(
    r"(?<=[^\W\d_])[\u00a1-\u00a6\u00a9\u00ac\u00ae-\u00b6\u00b8\u00b9\u00bb-\u00bf\u00d7\u00f7]{1,4}(?=[^\W\d_])"
)
_BOX_AT_WORD = re.compile(r"(?<=\w)[\u2500-\u259f]+|[\u2500-\u259f](?=\w)")
_CASE_IN_WORD = re.compile("(?<=[\u0430-\u045f\u03b1-\u03c9])[\u0400-\u042f\u0391-\u03a9]")
_ALPHABET = "\u0370-\u052f\u0590-\u07ff\u0e00-\u0e7f"
_MIXED_WORD = re.compile(f"(?<=[a-zA-Z])[{_ALPHABET}]+|[{_ALPHABET}]{{1,20}}(?=[a-zA-Z])")
_EAST_ASIAN = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_LONE_EAST_ASIAN = re.compile(f"(?<=[a-zA-Z])[{_EAST_ASIAN}](?=[a-zA-Z])")
_IMPOSSIBLE = re.compile("[\ufffd\u0080-\u009f\ue000-\uf8ff\uff61-\uff9f]")
_NO_CHARACTER = re.compile("[\0-\x08\x0e-\x1f\x7f-\x9f\ufffd]")
_HAN = re.compile("[\u3400-\u9fff]")
_KANA = re.compile("[\u3041-\u30fa]")
_HANGUL = re.compile("[\uac00-\ud7af]")
_CYRILLIC = re.compile("[\u0400-\u04ff]")
_COMMON_CYRILLIC = frozenset("оеаинтсрвліОЕАИНТСРВЛІ")


def characters(page: bytes, declared: str | None = None) -> str:
    """Decode a page; bytes that its charset does not know become U+FFFD. Never raises.

    Args:
        page: its bytes.
        declared: the charset as written in the HTTP header.
    """
    for mark, name in _BOMS:
        if page.startswith(mark):
            return page[len(mark) :].decode(name, "replace")
    if wide := _wide(page):
        return page.decode(wide, "replace")
    found = _META_CHARSET.search(page, 0, _META_BYTES)
    names = [declared, (found[1] or found[2]).decode("ascii", "replace") if found else None]
    said = [name for name in map(codec, names) if name]
    if page.isascii():
        return page.decode("iso2022_jp" if _ISO_2022_JP.search(page) else "ascii", "replace")
    as_utf8 = page.decode("utf-8", "replace")
    bad = as_utf8.count("\ufffd") - page.count(b"\xef\xbf\xbd")
    cut_off = _CUT_CHARACTER.search(page, max(0, len(page) - 3)) is not None
    good = _beyond_ascii(as_utf8) - as_utf8.count("\ufffd")
    if not bad or 0 < good >= (1 if "utf-8" in said else 2) * (bad - cut_off):
        return as_utf8
    sample = _sample(page)
    damages = {name: damage(sample, name) for name in said}
    if said and damages[said[0]] <= _WRONG:
        return page.decode(said[0], "replace")
    least, best = min(((damage(sample, name), name) for name in _guesses(sample)), key=lambda guess: guess[0])
    chosen = next((name for name in said if damages[name] <= max(_WRONG, 2 * least)), best)
    return page.decode(chosen, "replace")


def codec(name: str | None) -> str | None:
    """Return Python's name of a charset as the web uses it (latin-1 is windows-1252); None if it does not exist."""
    from resiliparse.parse.encoding import map_encoding_to_html5

    mapped = map_encoding_to_html5(name, fallback_utf8=False) if name else None
    if not mapped or mapped.startswith("x-"):
        return None
    try:
        found = codecs.lookup(mapped).name
    except LookupError:
        return None
    if found.startswith(("utf-16", "utf-32")):  # `_wide` has ruled both out
        return "utf-8"
    return _WIDER.get(found, found)


def damage(sample: bytes, name: str) -> float:
    """Return the share of a text's characters beyond ASCII that look as if they were decoded in a wrong charset.

    Signs are bytes that the charset does not know, control characters, runs of accented letters, symbols inside words,
    two alphabets in one word, and Cyrillic or Chinese that consists of rare letters.
    """
    text = sample.decode(name, "replace")
    beyond = _beyond_ascii(text)
    if not beyond:
        return 0.0
    wrong = len(_IMPOSSIBLE.findall(text))
    for pattern in (_SIGN_IN_WORD, _BOX_AT_WORD, _CASE_IN_WORD, _MIXED_WORD, _LONE_EAST_ASIAN):
        wrong += sum(map(len, pattern.findall(text)))
    runs = sum(map(len, _RUN.findall(text)))
    wrong += runs if 2 * runs > beyond else 0  # Czech and Turkish have some
    wrong += _rare_cyrillic(_CYRILLIC.findall(text)) + _rare_east_asian(text)
    return min(1.0, wrong / beyond)


def _beyond_ascii(text: str) -> int:
    return len(text) - len(text.encode("ascii", "ignore"))


def _rare_cyrillic(letters: list[str]) -> int:
    common = sum(letter in _COMMON_CYRILLIC for letter in letters)
    upper = sum(letter.isupper() for letter in letters)
    return len(letters) if len(letters) >= _FEW and (common < 0.42 * len(letters) or upper > 0.9 * len(letters)) else 0


def _rare_east_asian(text: str) -> int:
    han, kana, hangul = _HAN.findall(text), len(_KANA.findall(text)), len(_HANGUL.findall(text))
    if len(han) + kana + hangul < _FEW:
        return 0
    if hangul > len(han) + kana:
        return 2 * (len(han) + kana)
    counts = Counter(han)
    if 10 * kana > len(han):
        return sum(count for one, count in counts.items() if not 0xB0 <= _lead(one, "euc_jp") <= 0xCF)
    simplified = sum(count for one, count in counts.items() if 0xB0 <= _lead(one, "gb2312") <= 0xD7)
    traditional = sum(count for one, count in counts.items() if 0xA4 <= _lead(one, "big5") <= 0xC6)
    first = sum(count for one, count in counts.items() if 0xB0 <= _lead(one, "gb2312") <= 0xC8)
    if first > 0.95 * len(han):  # from half of the alphabet only: Korean syllables, decoded as Chinese
        return len(han)
    return len(han) - max(simplified, traditional) + hangul


@functools.lru_cache(maxsize=20_000)
def _lead(one: str, name: str) -> int:
    encoded = one.encode(name, "ignore")
    return encoded[0] if encoded else 0


def _guesses(sample: bytes) -> list[str]:
    """Return the charsets that the page may be in, the most likely first."""
    from resiliparse.parse.encoding import detect_encoding

    try:
        found = codecs.lookup(detect_encoding(sample, html5_compatible=False) or _FALLBACK).name
    except LookupError:
        found = _FALLBACK
    if found == "ascii" or found.startswith("utf") or len(_HIGH.findall(sample)) < _FEW_HIGH:
        return [_FALLBACK]
    if found in _CENTRAL_EUROPEAN:  # the detector cannot tell the two apart, but only one has letters at these bytes
        found = "cp1250" if _CP1250_LETTER.search(sample) or not _ISO_LETTER.search(sample) else "iso8859-2"
        return [found, _FALLBACK]
    return [_WINDOWS.get(found) or _WIDER.get(found, found), _FALLBACK]


def _sample(page: bytes) -> bytes:
    """Return the text at the start of a page without markup; with it, if the text is all ASCII."""
    text = _MARKUP.sub(b" ", page[: 4 * _SAMPLE_BYTES])
    return (text if _HIGH.search(text) else page)[:_SAMPLE_BYTES]


def _wide(page: bytes) -> str | None:
    """Return which UTF-16 or UTF-32 a page is in, by the positions of its zero bytes; None if it is in neither."""
    start = page[:_SAMPLE_BYTES]
    units = len(start) // 4
    zeros = [start[at::4].count(0) for at in range(4)]
    if not sum(zeros):
        return None
    if units >= 4:
        if min(zeros[2:]) > 0.9 * units and zeros[0] < 0.5 * units:
            return "utf-32-le"
        if min(zeros[:2]) > 0.9 * units and zeros[3] < 0.5 * units:
            return "utf-32-be"
    even, odd = zeros[0] + zeros[2], zeros[1] + zeros[3]
    if max(even, odd) * 50 < len(start) // 2 or min(even, odd) * 5 > max(even, odd):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def is_text(characters: str) -> bool:
    """Return whether characters are text: at most a tenth of their start is control characters or undecodable bytes."""
    start = characters[:_SAMPLE_BYTES]
    return 10 * len(_NO_CHARACTER.findall(start)) <= len(start)
