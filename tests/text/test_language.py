"""Languages of short and long texts."""

import pytest

from humpback_ray.text.language import is_known, probabilities


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is a weir and what are weirs made of today?", "en"),
        ("Was ist ein Wehr und wofür wird es benutzt?", "de"),
        ("WAS IST EIN WEHR UND WOFÜR WIRD ES BENUTZT?", "de"),
        ("什么是堰？", "zh"),
        ("Что такое\nплотина?", "ru"),
        ("Was ist ein Wehr? \ud83d", "de"),
    ],
)
def test_the_language_of_a_short_text_is_likely(text: str, language: str) -> None:
    assert probabilities(text)[language] > 0.8


def test_what_has_no_language_has_none_that_is_likely() -> None:
    assert probabilities("  \n") == {}
    assert max(probabilities("12 + 7 = 19").values()) < 0.8


def test_codes_that_can_be_found_are_known() -> None:
    assert all(map(is_known, ("en", "de", "zh", "th", "sw")))
    assert not is_known("english")
