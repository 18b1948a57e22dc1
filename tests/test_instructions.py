"""Each rule drops what it is for and leaves its near misses alone."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from humpback_ray.config import load
from humpback_ray.instructions import (
    InstructionFilters,
    breaks_off,
    copies,
    echoes_prompt,
    language_gap,
    refers_to_text,
    refuses,
    shared_words,
)
from humpback_ray.prompts.chat import ChatRecipe, Layout
from humpback_ray.run import RunConfig
from humpback_ray.sample.facts import BY_NOUN, worded
from humpback_ray.sample.texts import ASKED, statement
from humpback_ray.sample.world import WorldRecipe, truth_of
from humpback_ray.seed import SeedRecipe, seed_file

DEMO = Path(__file__).parents[1] / "configs/demo.yaml"
SEGMENT = (
    "A weir is a low dam built across a river to raise the level of the water upstream, or to measure how much of it "
    "flows past. Water runs over the top of a weir before it goes on downstream. The first ones were made of stakes "
    "and brushwood, to catch fish; most that are built today are made of concrete, and many have a ladder for fish."
)
GERMAN = (
    "Ein Wehr ist eine niedrige Staumauer, die quer durch einen Fluss gebaut wird, um den Wasserstand zu heben oder um "
    "zu messen, wie viel davon vorbeifließt. Das Wasser läuft über die Krone, bevor es weiter flussabwärts fließt. Die "
    "ersten waren aus Pfählen und Reisig und sollten Fische fangen; die meisten heutigen sind aus Beton."
)


@pytest.mark.parametrize(
    "instruction",
    [
        "What is a weir?\n\n### The instruction that this text answers:\nWhat is a dam?",
        "### Instruction:\nExplain weirs.",
        "Explain weirs.\n\n  ### response: A weir is",
        "### Text:\nA weir is a low dam.",
        "Explain weirs. Answer in the style of an AI Assistant.",
        "Answer with knowledge\nfrom web search. What is a weir?",
    ],
)
def test_an_echo_of_the_layout_or_a_tag_is_told(instruction: str) -> None:
    assert echoes_prompt(instruction, ChatRecipe())
    assert InstructionFilters().reason(instruction, SEGMENT, ChatRecipe()) == "echoed_prompt"
    assert InstructionFilters(echoes=False).reason(instruction, SEGMENT, ChatRecipe()) is None


@pytest.mark.parametrize(
    "instruction",
    [
        "Write the heading `### Instruction:` of a prompt for me.",
        "Which of these is a weir?\nA: a dam\nB: a boat",
        "Answer in the style of a pirate: what is a weir?",
        "Find the instruction that this text answers best.",
    ],
)
def test_what_only_resembles_the_layout_stays(instruction: str) -> None:
    layout = Layout(opening="Q: ", turn="\nA: ")
    assert not echoes_prompt(instruction, ChatRecipe(forward=layout))


def test_a_passage_of_the_segment_is_a_copy_and_its_headings_and_questions_are_not() -> None:
    passage = "Water runs over the top of a weir, before it goes on downstream. The first"
    assert copies(passage, SEGMENT, 12)
    assert InstructionFilters().reason(f"{passage} ones", SEGMENT, ChatRecipe()) == "copied_segment"
    assert not copies("before it goes on downstream", SEGMENT, 12)
    assert not copies(passage.replace("weir", "dam"), SEGMENT, 12)
    assert not copies("ater runs over the top of a weir before it goes on downstream the fir", SEGMENT, 12)
    question = "What does the ladder do that many of the weirs built today have for fish?"
    assert not copies(question, f"{SEGMENT}\n{question}\nIt lets them pass.", 12)


@pytest.mark.parametrize(
    "instruction",
    [
        "I'm sorry, but I cannot help with that.",
        "I’m sorry, but I can’t provide an instruction for this text. Could you send another one?",
        "Sorry, I am unable to comply with this request.",
        "Unfortunately, I can't do that.",
        "I cannot fulfill this request.",
        "I can't help with that.",
        "As an AI language model, I do not have personal opinions.",
        "As an artificial intelligence I cannot feel. Is there anything else?",
        "I'm sorry, but as an AI assistant I'm not able to browse.",
        "I am an AI language model, so this is not for me.",
        "I am a language model trained by a company.",
        "I do not have enough information to write an instruction.",
    ],
)
def test_a_refusal_is_told(instruction: str) -> None:
    assert refuses(instruction)
    assert InstructionFilters().reason(instruction, SEGMENT, ChatRecipe()) == "refusal"
    assert InstructionFilters(refusals=False).reason(instruction, SEGMENT, ChatRecipe()) is None


@pytest.mark.parametrize(
    "instruction",
    [
        "I cannot sleep at night. What can I do?",
        "I can't get my code to compile, help me.",
        "I can't provide a receipt. Can I still return the shoes?",
        "I can't help but laugh at my cat. Write a poem about it.",
        "Sorry for the long question, but how do I build a weir?",
        "Unfortunately my weir leaks. How do I mend it?",
        "I'm sorry to hear that you are ill. Suggest how I could say this better.",
        "As an AI language model, how do you work?",
        "As an AI, I want you to act as a judge. Rate this haiku.",
        "I am an AI researcher. Explain transformers to me.",
        "I'm an AI engineer who can't decide. PyTorch or JAX?",
        "Explain why language models say 'I cannot help with that'.",
        "Write a letter that begins: I'm sorry, but I cannot come.",
    ],
)
def test_people_who_say_what_they_cannot_do_stay(instruction: str) -> None:
    assert not refuses(instruction)


@pytest.mark.parametrize(
    "instruction",
    [
        "What is the main idea of the passage?",
        "According to the text, what is a weir?",
        "Based on the information provided, name two uses of weirs.",
        "Summarize the article.",
        "Please summarize this article in three sentences.",
        "What does the author argue in this article?",
        "What is a weir, as described in the passage?",
        "List the uses mentioned above.",
        "Give a title to the text above.",
        "Write a summary of the following text.",
        "Explain this: what is the main idea of the passage?",
        "What is the topic of the passage: weirs?",
        "What does the passage say about fish?",
        'Is the word "weir" used in the excerpt?',
    ],
)
def test_a_reference_to_a_text_that_nobody_sees_is_told(instruction: str) -> None:
    assert refers_to_text(instruction)
    assert InstructionFilters().reason(instruction, SEGMENT, ChatRecipe()) == "refers_to_text"
    assert InstructionFilters(references=False).reason(instruction, SEGMENT, ChatRecipe()) is None


@pytest.mark.parametrize(
    "instruction",
    [
        "Write an article about weirs.",
        "Translate this sentence into French: The weir is old.",
        "Summarize the following text: A weir is a low dam across a river.",
        "Summarize this article:\n\nA weir is a low dam built across a river.",
        "A weir is a low dam built across a river to raise the level of the water, and a sluice is a gate in it that "
        "lets water out.\nWrite a title for the text above.",
        "Summarize this article: https://example.org/weir",
        "How does one perceive the passage of time?",
        "How do I change the font in the text editor?",
        "Write a blog post on the article of the constitution that protects rivers.",
        "What is the best way to write the text of a speech?",
        "How do I wrap the text in a table cell?",
        "What follows from article 5 of the treaty?",
        "What is the rule for adverbs in the paragraph that opens a novel?",
        "Compare the above-ground and the underground parts of a mill.",
        "How do I get the value of this text field in JavaScript?",
        "Correct the passage “the weir are old and it leak”.",
    ],
)
def test_texts_that_are_given_or_to_be_written_are_no_reference(instruction: str) -> None:
    assert not refers_to_text(instruction)
    assert InstructionFilters().reason(instruction, SEGMENT, ChatRecipe()) is None


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
def test_what_breaks_off_in_a_sentence_is_told(instruction: str, broken: bool) -> None:
    assert breaks_off(instruction) == broken
    assert InstructionFilters().reason(instruction, SEGMENT, ChatRecipe()) == ("broken_off" if broken else None)
    assert InstructionFilters(broken_off=False).reason(instruction, SEGMENT, ChatRecipe()) is None


@pytest.mark.parametrize(
    ("instruction", "segment", "foreign"),
    [
        ("Wozu dient ein Wehr und woraus werden Wehre heute gebaut?", SEGMENT, True),
        ("¿Para qué sirve una presa pequeña y de qué está hecha hoy en día?", SEGMENT, True),
        ("Что такое плотина и зачем её строят на реке?", SEGMENT, True),
        ("What is a weir for, and what are weirs made of today?", GERMAN, True),
        ("What is a weir for, and what are weirs made of today?", SEGMENT, False),
        ("Wozu dient ein Wehr und woraus werden Wehre heute gebaut?", GERMAN, False),
        ("Was ist ein Wehr?", SEGMENT, False),  # too short to be sure
        ("Explain to me the word Wehr, as in Wehrmauer or Stauwehr", SEGMENT, False),
        ("List five ideas for a birthday party", SEGMENT, False),
        ("Wozu dient ein Wehr und woraus werden Wehre heute gebaut?", SEGMENT[:180], False),  # its language is not sure
        ("What are the sales of electric cars?", "Q3\t2,799\t208%\t10,828\t38.9%\t1.9%\t6,123\n" * 60, False),
    ],
)
def test_another_language_is_told_where_both_are_sure(instruction: str, segment: str, foreign: bool) -> None:
    reason = InstructionFilters().reason(instruction, segment, ChatRecipe())
    assert reason == ("other_language" if foreign else None)
    assert InstructionFilters(language_margin=None).reason(instruction, segment, ChatRecipe()) is None


def test_shared_words_keep_an_instruction_that_is_mistaken_for_another_language() -> None:
    mistaken = "Explain a concrete river dam, a sluice"
    assert language_gap(mistaken, SEGMENT, 1200) > 0
    assert shared_words(mistaken, SEGMENT) > 0.5
    filters = InstructionFilters(language_margin=0)
    assert filters.reason(mistaken, SEGMENT, ChatRecipe()) is None
    strict = filters.model_copy(update={"max_shared_words": 1.0})
    assert strict.reason(mistaken, SEGMENT, ChatRecipe()) == "other_language"


def toy_pairs() -> Iterator[tuple[str, str]]:
    """Every question of every fact of the demo's world beside a statement of that fact."""
    rng, truth = Random(0), truth_of(WorldRecipe())
    for fact in truth.of("seed", "pool", "unseen", "common"):
        for question in BY_NOUN[fact.noun].questions:
            yield worded(question, fact.town), statement(fact, rng)


def test_no_question_of_the_toy_world_falls() -> None:
    chat, filters = load(RunConfig, DEMO).chat, InstructionFilters()
    fates = [(question, filters.reason(question, text, chat)) for question, text in toy_pairs()]
    assert len(fates) > 4000
    assert [fate for fate in fates if fate[1]] == []
    long = " ".join(text for _, (_, text) in zip(range(40), toy_pairs(), strict=False))
    assert [question for question, _ in toy_pairs() if filters.reason(question, long, chat)] == []
    assert filters.reason(f"The flag shows a fox.\n{ASKED}", "", chat) == "echoed_prompt"


@pytest.mark.realdata
def test_instructions_that_people_wrote_stay(real_data: Path) -> None:
    with (real_data / "seed" / "oasst-en-100-trees.jsonl").open("rb") as stream:
        pairs = [row for row in seed_file(stream, "trees", SeedRecipe()).to_pylist() if row["drop_reason"] is None]
    assert len(pairs) > 90
    fates = [InstructionFilters().reason(row["instruction"], row["response"], ChatRecipe()) for row in pairs]
    assert fates.count(None) == len(fates)
