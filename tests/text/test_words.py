"""Words in every script, and what is compared of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.text.words import content_words, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is a weir's use?", ["What", "is", "a", "weir", "s", "use"]),
        ("什么是堰？", ["什么", "么是", "是堰"]),
        ("堰", ["堰"]),
        ("iPhone手机 用", ["iPhone", "手机", "用"]),
        ("コンピュータ", ["コン", "ンピ", "ピュ", "ュー", "ータ"]),
        ("둑이란 무엇인가", ["둑이란", "무엇인가"]),
        ("बांध क्या है?", ["बांध", "क्या", "है"]),  # re's \w parts letters from vowel signs
        ("ما هُوَ السد", ["ما", "هُوَ", "السد"]),
        ("?!", []),
    ],
)
def test_words_are_runs_of_letters_or_ngrams_where_a_script_has_no_spaces(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize("text", ["เขื่อนคืออะไร", "ເຂື່ອນແມ່ນຫຍັງ", "ទំនប់ជាអ្វី", "ဆည်ဆိုတာဘာလဲ"])
def test_thai_lao_khmer_and_burmese_give_ngrams_of_four(text: str) -> None:
    assert words(text) == [text[at : at + 4] for at in range(len(text) - 3)]


@given(st.text())
def test_words_hold_all_letters_and_digits_of_a_text(text: str) -> None:
    assert {letter for letter in text if letter.isalpha() or letter.isdecimal()} <= set("".join(words(text)))


def test_content_words_are_long_words_numbers_and_ngrams_without_japanese_endings() -> None:
    assert content_words("The weir of 1820 is old") == {"weir", "1820"}
    assert content_words("古い堰です") == {"古い", "い堰", "堰で"}
