"""Phrases of models are told apart from what people say in nearly the same words."""

import pytest

from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.prompts.instructions import InstructionFilters
from humpback_ray.prompts.instructions.phrases import refuses
from humpback_ray.prompts.instructions.references import refers_to_text
from tests.prompts.instructions import SEGMENT, without


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
def test_a_refusal_is_detected(instruction: str) -> None:
    assert refuses(instruction)
    assert InstructionFilters().reason(instruction, SEGMENT, ChatRecipe()) == "refusal"
    assert without("refusal").reason(instruction, SEGMENT, ChatRecipe()) is None


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
def test_a_reference_to_a_text_that_nobody_sees_is_detected(instruction: str) -> None:
    assert refers_to_text(instruction)
    assert InstructionFilters().reason(instruction, SEGMENT, ChatRecipe()) == "refers_to_text"
    assert without("refers_to_text").reason(instruction, SEGMENT, ChatRecipe()) is None


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
def test_texts_that_are_given_or_to_be_written_are_not_references(instruction: str) -> None:
    assert not refers_to_text(instruction)
    assert InstructionFilters().reason(instruction, SEGMENT, ChatRecipe()) is None
