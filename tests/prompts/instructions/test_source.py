"""An instruction compared with its segment."""

import pytest

from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.prompts.instructions import InstructionFilters
from humpback_ray.prompts.instructions.source import copies, gives_answer, is_foreign
from tests.prompts.instructions import GERMAN, SEGMENT, without

PASSAGE = "Water runs over the top of a weir, before it goes on downstream. The first"
QUESTION = "What does the ladder do that many of the weirs built today have for fish?"


@pytest.mark.parametrize(
    "text",
    [
        PASSAGE,
        PASSAGE.replace("before", "until"),  # one word is replaced
        f"Eater {PASSAGE[6:]}",
        f"{PASSAGE} Explain.",
        f"{PASSAGE} What is that?",
        f"Explain what a weir is.\n\n{PASSAGE} ones were made of stakes and brushwood.",
        f"Summarize the following text: {SEGMENT}",
    ],
)
def test_a_copied_passage_is_detected_even_if_slightly_changed_or_asked_about(text: str) -> None:
    assert copies(text, SEGMENT, 12)
    assert InstructionFilters().reason(text, SEGMENT, ChatRecipe()) == "copied_segment"


@pytest.mark.parametrize(
    ("text", "segment"),
    [
        ("before it goes on downstream", SEGMENT),
        (QUESTION, f"{SEGMENT}\n{QUESTION}\nIt lets them pass."),
        (f"Correct the spelling: {SEGMENT}", SEGMENT),
        (
            "List the materials that the first ones were made of, and the reason why many have a ladder for fish.",
            SEGMENT,
        ),
    ],
)
def test_headings_questions_and_texts_to_edit_are_not_copies(text: str, segment: str) -> None:
    assert not copies(text, segment, 12)


def test_a_copied_passage_is_detected_in_a_script_without_spaces() -> None:
    segment = "堰是横跨河流修建的低矮水坝，用来抬高上游水位，或者测量流过的水量。水从堰顶流过，然后继续流向下游。" * 2
    assert copies(segment[:30], segment, 12)
    assert not copies("请解释堰是什么，以及它在河流工程中有哪些用途和优点。", segment, 12)


@pytest.mark.parametrize(
    ("text", "gives"),
    [
        ("What is a weir?\nAnswer: A weir is a low dam.", True),
        ("Q: What is a weir? A: A low dam.", True),
        ("What is a weir? Water runs over the top of a weir.", True),
        ("什么是堰？答案：低矮的水坝。", True),
        ("Q: What is 2+2?\nA: 4\nQ: What is 3+3?\nA:", False),
        ("Which is a weir?\nA: a dam\nB: a boat", False),
        ("Question: What is a weir?\nAnswer:", False),
        ("Question: What is a weir?\nAnswer: a boat\nIs that answer right?", False),
        ("Answer in one sentence: what is a weir?", False),
    ],
)
def test_a_question_with_its_answer_is_told_apart_from_examples_and_choices(text: str, gives: bool) -> None:
    assert gives_answer(text, SEGMENT) == gives


@pytest.mark.parametrize(
    ("instruction", "segment", "foreign"),
    [
        ("Wozu dient ein Wehr und woraus werden Wehre heute gebaut?", SEGMENT, True),
        ("¿Para qué sirve una presa pequeña y de qué está hecha hoy en día?", SEGMENT, True),
        ("Что такое плотина и зачем её строят на реке?", SEGMENT, True),
        ("What is a weir for, and what are weirs made of today?", GERMAN, True),
        ("What is a weir for, and what are weirs made of today?", SEGMENT, False),
        ("Wozu dient ein Wehr und woraus werden Wehre heute gebaut?", GERMAN, False),
        ("Was ist ein Wehr?", SEGMENT, True),
        ("Ein Wehr?", SEGMENT, False),  # too short to be sure
        ("Explain to me the word Wehr, as in Wehrmauer or Stauwehr", SEGMENT, False),
        ("List five ideas for a birthday party", SEGMENT, False),
        ("Wozu dient ein Wehr und woraus werden Wehre heute gebaut?", SEGMENT[:90], False),  # segment too short
        ("What are the sales of electric cars?", "Q3\t2,799\t208%\t10,828\t38.9%\t1.9%\t6,123\n" * 60, False),
    ],
)
def test_another_language_is_detected_if_both_are_certain(instruction: str, segment: str, foreign: bool) -> None:
    reason = InstructionFilters().reason(instruction, segment, ChatRecipe())
    assert reason == ("other_language" if foreign else None)
    assert without("other_language").reason(instruction, segment, ChatRecipe()) is None


@pytest.mark.parametrize(
    ("text", "foreign"),
    [
        ("Translate into English: Was ist ein Wehr und wofür wird es benutzt?", False),
        ("What does the proverb 塞翁失马，焉知非福 mean?", False),
        ("Was ist ein Wehr? Wofür wird es benutzt?", True),
        ("什么是堰？", True),
        ("ما هو السد الصغير؟", True),
        ("\ud83d lone surrogates do not matter", False),
    ],
)
def test_a_clause_in_the_segments_language_is_enough(text: str, foreign: bool) -> None:
    assert is_foreign(text, SEGMENT, 0.8) == foreign
