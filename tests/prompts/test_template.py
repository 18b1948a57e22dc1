"""The exported chat template: how it renders messages that training did not have, and which ones it refuses."""

from typing import Any

import pytest

from humpback_ray.prompts.chat import ChatRecipe, TurnFormat, chat_template
from tests.engines.tiny import make_tokenizer

TOKENIZER = make_tokenizer(True)
CHAT = ChatRecipe(forward=TurnFormat(opening="Q: ", turn="\nA: "), seed_tag="S.", web_tag=None)
NUMBERS = {"s": "system", "d": "developer", "u": "user", "a": "assistant"}


def show(messages: list[dict[str, Any]], position: Any = "after", tags: tuple[str, ...] = (), **options: Any) -> str:
    template = chat_template(CHAT.forward, tags, position, bos=True)
    return TOKENIZER.apply_chat_template(
        messages, chat_template=template, tokenize=False, **{"add_generation_prompt": True} | options
    )


def conversation(roles: str) -> list[dict[str, Any]]:
    """Return messages by the first letters of their roles; each text is its role and place, as in `s0`."""
    return [{"role": NUMBERS[role], "content": f"{role}{place}"} for place, role in enumerate(roles)]


@pytest.mark.parametrize(
    ("roles", "text"),
    [
        ("u", "<s>Q: u0\nA: "),
        ("su", "<s>Q: s0\n\nu1\nA: "),
        ("ssu", "<s>Q: s0\n\ns1\n\nu2\nA: "),
        ("sdu", "<s>Q: s0\n\nd1\n\nu2\nA: "),
        ("du", "<s>Q: d0\n\nu1\nA: "),
        ("s", "<s>Q: s0\nA: "),
        ("us", "<s>Q: u0\n\ns1\nA: "),
        ("uu", "<s>Q: u0\n\nu1\nA: "),
        ("uau", "<s>Q: u0\nA: a1</s>Q: u2\nA: "),
        ("uas", "<s>Q: u0\nA: a1</s>Q: s2\nA: "),
        ("uasu", "<s>Q: u0\nA: a1</s>Q: s2\n\nu3\nA: "),
        ("suasdu", "<s>Q: s0\n\nu1\nA: a2</s>Q: s3\n\nd4\n\nu5\nA: "),
        ("sau", "<s>Q: s0\nA: a1</s>Q: u2\nA: "),
        ("au", "<s>\nA: a0</s>Q: u1\nA: "),
        ("ua", "<s>Q: u0\nA: a1</s>\nA: "),
    ],
)
def test_no_message_is_lost_wherever_it_is(roles: str, text: str) -> None:
    assert show(conversation(roles)) == text
    whole = show(conversation(roles), add_generation_prompt=False)
    assert text == whole + "\nA: "


def test_tags_occur_once_in_an_instruction_where_training_had_them() -> None:
    assert show(conversation("ssuau"), tags=("S.", "W.")) == "<s>Q: s0\n\ns1\n\nu2 S. W.\nA: a3</s>Q: u4 S. W.\nA: "
    assert show(conversation("su"), "before", ("S.",)) == "<s>Q: S. s0\n\nu1\nA: "
    assert show(conversation("su"), tags=("S.",), source_tags=[]) == "<s>Q: s0\n\nu1\nA: "


def test_text_parts_are_read_and_empty_messages_leave_no_lines() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert show([{"role": "user", "content": parts[:1]}]) == "<s>Q: one\nA: "
    assert show([{"role": "user", "content": parts}]) == "<s>Q: one\ntwo\nA: "
    assert show([{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}]) == "<s>Q: Hi\nA: "
    assert show([{"role": "user", "content": []}]) == "<s>Q: \nA: "


def test_a_last_message_that_the_model_is_to_continue_is_left_open() -> None:
    going_on: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    assert show(conversation("ua"), **going_on) == "<s>Q: u0\nA: a1"
    parts = [{"role": "assistant", "content": [{"type": "text", "text": "Sure"}]}]
    assert show(conversation("u") + parts, **going_on) == "<s>Q: u0\nA: Sure"


USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([USER, {"role": "tool", "content": "x"}], "roles are system, user and assistant, not tool"),
        ([USER, {"role": "function", "content": "x"}], "not function"),
        ([USER, {"role": "ipython", "content": "x"}], "not ipython"),
        ([{"role": "User", "content": "x"}], "not User"),
        ([{"content": "x"}], "roles are system, user and assistant, not "),
        ([{"role": None, "content": "x"}], "roles are system, user and assistant, not None"),
        ([USER, {"role": "assistant", "content": None}], "text or a list of text parts, not null"),
        ([{"role": "user", "content": None}], "text or a list of text parts"),
        ([{"role": "user", "content": 3}], "text or a list of text parts"),
        ([{"role": "user", "content": {"text": "x"}}], "text or a list of text parts"),
        ([{"role": "user"}], "text or a list of text parts"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "a part .* is not text"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image"}]}], "a part .* is not text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "a part .* is not text"),
        ([{"role": "user", "content": ["x"]}], "a part .* is not text"),
        ([USER, {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}], "not trained to call tools"),
    ],
)
def test_messages_that_the_model_was_not_trained_for_are_refused_with_a_clear_error(
    messages: list[dict[str, Any]], said: str
) -> None:
    from jinja2.exceptions import TemplateError

    with pytest.raises(TemplateError, match=said):
        show(messages)


def test_tools_and_an_empty_conversation_are_refused() -> None:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with pytest.raises(jinja2.TemplateError, match="not trained to call tools"):
        show([USER], tools=[tool])
    template = ImmutableSandboxedEnvironment().from_string(chat_template(CHAT.forward, (), "after", bos=True))
    with pytest.raises(jinja2.TemplateError, match="there is no message"):
        template.render(messages=[], raise_exception=refuse)
