"""The index finds the same texts as comparing all pairs."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.curate.neardup import Leaders, grams

TEXTS = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=7).map(" ".join), max_size=25)


def similarity(left: str, right: str, words: int) -> float:
    mine, other = grams(left, words), grams(right, words)
    return len(mine & other) / len(mine | other)


def first_like(text: str, leaders: list[str], jaccard: float, words: int) -> int | None:
    return next((n for n, leader in enumerate(leaders) if similarity(text, leader, words) >= jaccard), None)


@given(TEXTS, st.sampled_from([0.1, 0.3, 0.5, 0.6, 2 / 3, 0.7, 0.75, 0.8, 0.9, 1.0]), st.integers(1, 3))
def test_the_first_leader_is_the_one_that_comparing_with_all_finds(
    texts: list[str], jaccard: float, words: int
) -> None:
    index, leaders = Leaders(texts, jaccard, words), []
    for text in texts:
        found = index.first_like(text)
        assert found == first_like(text, leaders, jaccard, words)
        if found is None:
            assert index.add(text) == len(leaders)
            leaders.append(text)


@pytest.mark.parametrize(("size", "common"), [(55, 10), (170, 140), (90, 80), (19, 18), (1, 1)])
def test_long_texts_at_the_very_threshold_are_found(size: int, common: int) -> None:
    rng = Random(size)
    shared = [f"shared{number}" for number in range(common)]
    texts = []
    for side in ("left", "right"):
        words = [*shared, *(f"{side}{number}" for number in range(size - common))]
        texts.append(" ".join(rng.sample(words, size)))
    near = common / (2 * size - common)
    for jaccard, found in ((near, 0), (near + 1e-9, None if near < 1 else 0)):
        index = Leaders(texts, min(jaccard, 1.0), 1)
        index.add(texts[0])
        assert index.first_like(texts[1]) == found


@pytest.mark.parametrize(
    ("left", "right", "words", "expected"),
    [
        ("What is a weir?", "what IS a Weir", 1, 1.0),
        ("What is a weir?", "A weir is what?", 1, 1.0),
        ("What is a weir?", "A weir is what?", 2, 0.2),
        ("Ｗｅｉｒ", "weir", 1, 1.0),
        ("?!", "?!", 1, 1.0),
        ("?!", "...", 1, 0.0),
        ("weir", "weir", 3, 1.0),
        ("", "", 1, 1.0),
        ("什么是堰？", "什么是坝？", 1, 0.5),
        ("请解释什么是堰", "什么是堰，请解释", 1, 5 / 6),
        ("बांध क्या है?", "नदी क्या है?", 1, 0.5),
    ],
)
def test_words_are_compared_without_case_form_and_signs(left: str, right: str, words: int, expected: float) -> None:
    assert similarity(left, right, words) == pytest.approx(expected)
