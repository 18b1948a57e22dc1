"""Numbers that one text holds and another does not: those that a rewrite made up.

Numbers are compared by value, so `1,000`, `1000`, `1 000`, `1K` and "a thousand" are the same, as are `3` and "three",
`½` and "half", 50 % and 0.5, May and 5. If a spelling has two readings (`1.500`), either will do. Numbers before list
items ("1.") do not count. Limits: no arithmetic (17:00 for 5 pm counts as new), and number words only in English.
"""

import re
import unicodedata
from collections.abc import Iterator

_DIGITS = re.compile(
    r"(?<![A-Za-z_\d])(?<![A-Za-z]-)(?<![A-Za-z]\.)(?P<number>\d{1,3}(?:['’   ]\d{3})+(?!\d)(?:[.,]\d+)?"
    r"|\d+(?:[.,]\d+)*)(?P<percent>\s?(?:%|per ?cent\b))?"
    r"(?:[ -]?(?P<scale>hundred|thousand|million|billion|trillion)\b|(?P<letter>k|m|bn|b|tn)\b)?",
    re.IGNORECASE,
)
_LIST_NUMBER = re.compile(
    r"^[ \t>*_#|(\[]*(?:(?:step|part|tip|section|option|no\.|q|stage|phase|day) )?\d{1,3}[.):\]*_]+(?=[\s*_])",
    re.I | re.M,
)
_LIST_ITEM = re.compile(r"^[ \t]*(?:[-*•]|\d{1,3}[.)])\s", re.MULTILINE)
_UNITS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen""".split()  # noqa: SIM905
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
_ORDINALS = """zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth
fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth""".split()  # noqa: SIM905
_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()  # noqa: SIM905
_SCALES = {
    "hundred": 1e2, "thousand": 1e3, "k": 1e3, "million": 1e6, "m": 1e6, "billion": 1e9, "b": 1e9, "bn": 1e9,
    "trillion": 1e12, "tn": 1e12,
}  # fmt: skip
_SMALL = (
    {word: float(value) for value, word in enumerate(_UNITS)}
    | {word: float(value) for value, word in enumerate(_ORDINALS)}
    | {word: 20.0 + 10 * value for value, word in enumerate(_TENS)}
    | {word[:-1] + "ieth": 20.0 + 10 * value for value, word in enumerate(_TENS)}
)
_ALSO = {
    "once": (1,), "single": (1,), "twice": (2,), "double": (2,), "doubled": (2,), "both": (2,), "pair": (2,),
    "couple": (2,), "triple": (3,), "thrice": (3,), "half": (0.5, 1, 2, 50), "halves": (0.5, 2),
    "quarter": (0.25, 1, 4, 25, 15), "quarters": (0.25, 4, 75, 0.75, 3), "third": (1,), "dozen": (12,),
    "decade": (10,), "decades": (10,), "century": (100,), "hundred": (100,), "hundreds": (100,),
    "thousand": (1000,), "thousands": (1000,), "million": (1e6,), "billion": (1e9,), "noon": (12,),
    "midnight": (0, 12), "annual": (1,), "fortnight": (14, 2), "week": (7,), "none": (0,), "no": (0,),
    "fifth": (20,), "biannual": (2,), "triangle": (3,),
}  # fmt: skip
_WORD = re.compile(r"[a-z]+")
_ROMAN = re.compile(r"\b(?=[IVX])X{0,3}(?:IX|IV|V?I{0,3})\b")
_HAN = dict(
    zip("〇一二三四五六七八九十百千万两零", (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 100, 1e3, 1e4, 2, 0), strict=True)
)
_GROUP_DIGITS = 3
_MIN_WORD_VALUE = 13
"""Smaller numbers in words ("one", "two ways") are mostly figures of speech: a rewrite may use them."""


def new_numbers(text: str, *, given: str) -> list[str]:
    """Return the numbers of a text, as written, that a given text does not hold in any form."""
    plain = unicodedata.normalize("NFKC", text).replace("⁄", "/")
    known = _known(unicodedata.normalize("NFKC", given).replace("⁄", "/"))
    known.add(float(len(_LIST_ITEM.findall(plain))))
    plain = _LIST_NUMBER.sub(" ", plain)
    digits = [match[0].strip() for match in _DIGITS.finditer(plain) if not _is_known(match, known)]
    spelled = [word for word, value in _spelled(plain) if value >= _MIN_WORD_VALUE and value not in known]
    return digits + spelled


def _is_known(match: re.Match[str], known: set[float]) -> bool:
    """Tell whether a reading of a written number is known, or each of its parts is (`1,2,3`, a version)."""
    parts = re.findall(r"\d+", match["number"])
    apart = any(len(part) != _GROUP_DIGITS for part in parts[1:])
    return not known.isdisjoint(_values(match)) or (apart and known.issuperset(map(float, parts)))


def _known(given: str) -> set[float]:
    known = {value for match in _DIGITS.finditer(given) for value in _values(match)}
    known |= {value for _, value in _spelled(given)}
    known |= {float(value) for word in _WORD.findall(given.casefold()) for value in _ALSO.get(word, ())}
    known |= {1.0 + _MONTHS.index(word[:3]) for word in _WORD.findall(given.casefold()) if word[:3] in _MONTHS}
    known |= {_roman(match[0]) for match in _ROMAN.finditer(given)}
    known |= {float(_HAN[letter]) for letter in given if letter in _HAN}
    known |= {value % 100 for value in known if 1000 <= value < 2100}
    known |= {float(digits) for digits in re.findall(r"\d+", given)}
    return known


def _values(match: re.Match[str]) -> Iterator[float]:
    scale = _SCALES.get((match["scale"] or match["letter"] or "").casefold(), 1.0)
    for value in _readings(match["number"]):
        yield from (value * scale, value) if scale > 1 else (value,)
        if match["percent"]:
            yield value / 100


def _readings(written: str) -> set[float]:
    """Return the possible values of a written number: its last separator is a decimal point, or all mark thousands."""
    parts = re.split(r"\D+", written)
    found = {float("".join(parts))} if all(len(part) == _GROUP_DIGITS for part in parts[1:]) else set()
    if len(parts) > 1 and re.search(r"[.,]\d+$", written):
        found.add(float(f"{''.join(parts[:-1])}.{parts[-1]}"))
    return found


def _spelled(text: str) -> Iterator[tuple[str, float]]:
    """Yield the numbers that a text writes in English words, with their values: "twenty-one", "two million"."""
    total, current, said = 0.0, None, []
    for word in [*re.findall(r"[a-z]+|\d+|[^\sa-z\d-]", text.casefold()), ""]:
        value, scale = _SMALL.get(word), _SCALES.get(word) if len(word) > 2 else None
        if value is not None and (
            current is None or (current % 100 in range(20, 100, 10) and value < 10) or current % 100 == 0
        ):
            current = (current or 0) + value
        elif scale is not None and current is not None:
            total, current = (total, current * scale) if scale == 1e2 else (total + current * scale, 0.0)
        elif not (word == "and" and said and said[-1] in _SCALES):
            if current is not None:
                yield " ".join(said), total + current
            total, current, said = 0.0, value, []
        if value is not None or scale is not None:
            said.append(word)


def _roman(letters: str) -> float:
    values = [{"I": 1, "V": 5, "X": 10}[letter] for letter in letters]
    return float(sum(-one if one < after else one for one, after in zip(values, [*values[1:], 0], strict=True)))
