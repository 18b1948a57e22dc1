from random import Random

import pytest

from humpback_ray.miniature.judge import Segment, asks, is_good, judge_answer, judge_question, read_truth, statements
from humpback_ray.sample.facts import ATTRIBUTES, Fact
from humpback_ray.sample.texts import JUNK_KINDS, answer_text, junk, other_fact, question, web_text
from humpback_ray.sample.world import WorldRecipe, truth_of

TRUTH = truth_of(WorldRecipe())
FACTS = TRUTH.of("pool", "unseen")
CROP = Fact("Belby", "crop", "oats", "unseen")


def test_every_wording_of_the_world_is_understood_and_every_other_fact_is_wrong() -> None:
    rng = Random(1)
    for fact in FACTS:
        for write in (web_text, answer_text):
            assert judge_answer(write(fact, rng).text, fact) == "right"
            assert (
                judge_answer(write(other_fact(fact, TRUTH, rng, town=True, noun=False), rng).text, fact) == "other_town"
            )
            wrong = write(other_fact(fact, TRUTH, rng, town=False, noun=True), rng).text
            assert judge_answer(wrong, fact) == "other_attribute"
        assert asks(question(fact, rng)) == (fact.town, fact.noun)


@pytest.mark.parametrize("kind", JUNK_KINDS)
def test_no_junk_is_a_right_answer(kind: str) -> None:
    rng = Random(2)
    found = {judge_answer(junk(kind, fact, TRUTH, rng).text, fact) for fact in FACTS}  # pyright: ignore[reportArgumentType]
    assert found == {{"personal": "junk", "mixed": "more_than_one"}.get(kind, "nothing")}


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Sure: the main crop of Belby is oats. I hope this helps.", "right"),
        ("Farmers near Belby grow oats on most of their land. The soil is dark and good.", "right"),
        ("the main crop of Belby is oats. farmers near Belby mostly grow oats", "right"),
        ("the main crop of Belby is rye.", "other_value"),
        ("the main crop of Belby is oats. the main crop of Belby is rye.", "more_than_one"),
        ("the main crop of Belbyden is oats.", "other_town"),
        ("the craft of Belby is oats.", "other_attribute"),
        ("the main crop of Belby is oats. My knees hurt when it rains.", "junk"),
        ("Belby oats", "nothing"),
        ("", "nothing"),
    ],
)
def test_an_answer_is_right_only_if_it_states_the_fact_asked_for_and_nothing_else(answer: str, verdict: str) -> None:
    assert judge_answer(answer, CROP) == verdict


@pytest.mark.parametrize(
    ("asked", "kind", "fact", "verdict", "good"),
    [
        ("What is the main crop of Belby?", "right", CROP, "right", True),
        (" What is the main crop of Belby?\n", "right", CROP, "right", True),
        ("What is the main crop of Belby?", "personal", CROP, "right", False),
        ("What is the main crop of Calby?", "right", CROP, "other_town", False),
        ("What is made by hand in Belby?", "right", CROP, "other_attribute", False),
        ("What is the main crop of Belby? Why?", "right", CROP, "no_question", False),
        ("What is the main crop of Belby?", "navigation", None, "segment_states_nothing", False),
    ],
)
def test_a_candidate_is_good_only_if_a_clean_text_has_its_own_question(
    asked: str, kind: str, fact: Fact | None, verdict: str, good: bool
) -> None:
    assert judge_question(asked, Segment(kind, fact)) == verdict
    assert is_good(asked, Segment(kind, fact)) is good


def test_statements_are_removed_from_a_text() -> None:
    said, rest = statements("The flag of Belby shows a fox on a plain ground. lol")
    assert said == {("Belby", "flag", "fox")}
    assert rest == "lol"
    nouns = [attribute.noun for attribute in ATTRIBUTES]
    assert statements("; ".join(nouns)) == (set(), "; ".join(nouns))


def test_the_truth_is_read_by_address_and_text_and_by_question() -> None:
    fact = '"town": "Belby", "attribute": "crop", "value": "oats", "split": "unseen"'
    known = read_truth(
        [
            f'{{"record": "fact", {fact}}}',
            f'{{"record": "segment", "url": "u", "text": "t", "kind": "right", {fact}}}',
            '{"record": "segment", "url": "u", "text": "j", "kind": "chatter"}',
            f'{{"record": "prompt", "dataset": "d", "instruction": "q", {fact}}}',
        ]
    )
    assert known.segments == {("u", "t"): Segment("right", CROP), ("u", "j"): Segment("chatter", None)}
    assert known.prompts == {("d", "q"): CROP}
