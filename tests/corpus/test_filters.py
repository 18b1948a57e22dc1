import time

import pytest
from pydantic import ValidationError

from humpback_ray.corpus.filters import (
    FilterRecipe,
    header_reason,
    is_foreign,
    length_reason,
    repetition_reason,
    repetitive_share,
    sentences,
)

RECIPE = FilterRecipe()
PROSE = (
    "Sourdough rises slowly because wild yeast is scarce in a young starter. Feed the starter twice a day for a week. "
    "When it doubles within six hours, it is strong enough to lift a loaf. Keep the dough at room temperature."
)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("How to bake bread", None),
        ("", "header_empty"),
        (" – * – ", "header_empty"),
        ("HOW TO BAKE BREAD", "header_uppercase"),
        ("FAQ", None),
        ("DNA", None),
        ("ÉTÉ À PARIS", "header_uppercase"),
        ("烘焙面包", None),
        ("Advertisement", "header_navigation"),
        ("Forum", "header_navigation"),
        ("Quick Links:", "header_navigation"),
        ("Get our free newsletter", "header_navigation"),
        ("» Related Posts", "header_navigation"),
        ("How the Roman forum was built over a marsh", None),
        ("Search", "header_navigation"),
        ("Researching", None),
    ],
)
def test_empty_uppercase_and_navigation_headers_are_dropped(header: str, reason: str | None) -> None:
    assert header_reason(header, RECIPE) == reason


def test_length_limits_are_inclusive() -> None:
    assert [length_reason(chars, RECIPE) for chars in (599, 600, 3000, 3001)] == ["too_short", None, None, "too_long"]


def test_prose_does_not_repeat_itself() -> None:
    assert repetitive_share(PROSE, RECIPE) == 0


@pytest.mark.parametrize(
    "text",
    [
        PROSE + " " + PROSE,
        "\n".join(f"Buy the best cheap garden shoes online in store {n}." for n in range(20)),
    ],
)
def test_repetitive_text_is_dropped(text: str) -> None:
    assert repetition_reason(text, RECIPE) == "repetitive"
    assert repetition_reason(text, RECIPE.model_copy(update={"repetition_words": None})) is None


@pytest.mark.parametrize(
    "sentence",
    [
        "A weir is a low dam built across a river to raise the water. ",
        "堰是横跨河流修建的低矮水坝，用来抬高上游水位。",
        "堰とは、川の水位を上げるために川を横切って造られる低いダムです。",
        "เขื่อนเป็นสิ่งก่อสร้างขนาดใหญ่ที่ใช้กั้นทางน้ำเพื่อเก็บน้ำ ",
        "ទំនប់ជាសំណង់ដែលសាងសង់កាត់ទន្លេដើម្បីលើកកម្ពស់ទឹក។",
        "ဆည်သည် မြစ်ကိုဖြတ်၍ ရေမြှင့်တင်ရန် တည်ဆောက်ထားသော တည်ဆောက်မှုဖြစ်သည်။",
        "बांध नदी के पानी को रोकने के लिए बनाया गया एक बड़ा ढांचा है। ",
    ],
)
def test_one_sentence_twenty_times_is_nearly_all_repetition_in_any_script(sentence: str) -> None:
    assert repetitive_share(sentence * 20, RECIPE) == pytest.approx(0.95)
    assert repetitive_share(sentence, RECIPE) == 0


@pytest.mark.parametrize("run", ["堰是低矮的水坝", "เขื่อนเก็บน้ำไว้ใช้", "buy the best cheap garden shoes "])
def test_a_passage_that_repeats_without_punctuation_is_repetition(run: str) -> None:
    assert repetition_reason(run * 20, RECIPE) == "repetitive"


def test_chinese_prose_does_not_repeat_itself() -> None:
    text = (
        "堰是横跨河流修建的低矮水坝，用来抬高上游水位。最早的堰用木桩和树枝做成，目的是捕鱼。"
        "如今的堰大多由混凝土浇筑而成。许多堰旁边还修了鱼梯，好让鱼类游到上游去产卵。"
    )
    assert len(sentences(text)) == 4
    assert repetitive_share(text, RECIPE) == 0


def test_short_refrains_and_one_repeated_sentence_among_many_pass() -> None:
    unlike = [f"{'x' * n}one {'y' * n}two {'z' * n}three {'v' * n}four {'w' * n}five six{n}." for n in range(1, 15)]
    assert repetition_reason("Yes. No. " * 30, RECIPE) is None
    assert repetition_reason(" ".join([*unlike, unlike[0]]), RECIPE) is None
    assert len(sentences(" ".join(unlike))) == 14


@pytest.mark.parametrize(
    "text",
    [
        "a b c d e f. " * 230,
        "".join(f"a b c d e f g{n}. " for n in range(150)),
        "a b c d e f " * 250,
        "a. " * 1000,
        "\n" * 3000,
    ],
)
def test_three_thousand_characters_take_little_time_at_worst(text: str) -> None:
    started = time.process_time()
    repetitive_share(text[:3000], RECIPE)
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    ("text", "foreign"),
    [
        (PROSE * 2, False),
        ("Der Sauerteig geht langsam auf, weil wilde Hefe in einem jungen Ansatz selten ist. " * 5, True),
        ("Закваска поднимается медленно, потому что диких дрожжей в ней мало. " * 5, True),
    ],
)
def test_other_languages_are_detected(text: str, foreign: bool) -> None:
    assert is_foreign(text, RECIPE) is foreign
    assert is_foreign(text, RECIPE.model_copy(update={"language": None})) is False


def test_limits_that_nothing_can_pass_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValidationError, match="4000 is more than max_chars 3000"):
        FilterRecipe(min_chars=4000)
    with pytest.raises(ValidationError, match="language 'xx'"):
        FilterRecipe(language="xx")
