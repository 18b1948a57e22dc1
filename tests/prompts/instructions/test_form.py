"""Texts with a bad form are told apart from good instructions that look similar."""

import pytest

from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.prompts.instructions import InstructionFilters
from humpback_ray.prompts.instructions.form import breaks_off
from tests.prompts.instructions import SEGMENT, without


@pytest.mark.parametrize(
    ("instruction", "broken"),
    [
        ("Write an article about the", True),
        ("Explain weirs, sluices and ", True),
        ("Name three rivers,", True),
        ("Explain weirs (", True),
        ("What are weirs made of", False),
        ("Who do I talk to", False),
        ("Explain the difference between AND and OR", False),
        ("What is vitamin A", False),
        ("please explain it :(", False),
        ("Write a loop: for (;;) { f(); }", False),
        ("Continue the rhyme: the sky is", False),
    ],
)
def test_a_sentence_that_breaks_off_is_detected(instruction: str, broken: bool) -> None:
    assert breaks_off(instruction) == broken
    assert InstructionFilters().reason(instruction, SEGMENT, ChatRecipe()) == ("broken_off" if broken else None)
    assert without("broken_off").reason(instruction, SEGMENT, ChatRecipe()) is None
