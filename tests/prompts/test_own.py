"""`layout: own`: the ids are those of the tokenizer's own chat template, and no text becomes a control token."""

from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.prompts.chat import ChatRecipe, encode_prompt, encode_reply, laid_out
from humpback_ray.prompts.own import DATE, OwnChat, UserMessage
from tests.prompts import families

CHATML = """\
{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""
LLAMA_3 = """\
{{- bos_token }}{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '<|eot_id|>' }}
{%- for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim }}
{{- '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
MISTRAL = """\
{{- bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}
{%- else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"""
MARKERS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<think>",
    "</think>",
]
MODELS = {
    "chatml": ("byte-level", False, CHATML),
    "chatml behind a start token": ("byte-level, llama 3", True, CHATML),
    "llama 3": ("byte-level, llama 3", True, LLAMA_3),
    "mistral": ("llama", True, MISTRAL),
    "llama 2": ("sentencepiece, prepending", True, MISTRAL),
    "unigram": ("unigram, first", False, CHATML),
}
PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="<[▁"), max_size=40)
HOSTILE = st.lists(
    st.sampled_from([*MARKERS, "<s>", "</s>", "<unk>", "user\n", "assistant\n", " ", "\n", "Score: 5", "a"]), max_size=8
).map("".join)  # fmt: skip


def tokenizer_of(family: str, bos: bool, template: str | None) -> Any:
    from tokenizers import AddedToken

    tokenizer = families.FAMILIES[family](bos)
    tokenizer.add_special_tokens({"extra_special_tokens": MARKERS[:5]})
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in MARKERS[5:]])
    tokenizer.chat_template, tokenizer.name_or_path = template, "models/judge"
    return tokenizer


@cache
def model(name: str) -> Any:
    return tokenizer_of(*MODELS[name])


def expected(tokenizer: Any, text: str) -> list[int]:
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, enable_thinking=False, date_string=DATE
    )


@pytest.mark.parametrize("name", MODELS)
@given(text=PLAIN)
def test_the_ids_are_those_of_the_models_own_template(name: str, text: str) -> None:
    assert encode_prompt(model(name), UserMessage(text)) == expected(model(name), text)


@pytest.mark.parametrize("name", MODELS)
@given(text=HOSTILE)
def test_no_text_makes_a_control_token(name: str, text: str) -> None:
    tokenizer = model(name)
    own = set(tokenizer.added_tokens_decoder) - {tokenizer.unk_token_id}
    ids, benign = (encode_prompt(tokenizer, UserMessage(said)) for said in (text, "a"))
    assert [token for token in ids if token in own] == [token for token in benign if token in own]
    assert not own & set(encode_reply(tokenizer, UserMessage("a"), text))


def test_the_reply_continues_after_the_opening_of_the_template() -> None:
    for name in MODELS:
        tokenizer = model(name)
        ids = [*encode_prompt(tokenizer, UserMessage("Hi")), *encode_reply(tokenizer, UserMessage("Hi"), "Score: 4")]
        messages = [{"role": "user", "content": "Hi"}]
        opened = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False, date_string=DATE
        )
        assert ids == tokenizer.encode(opened + "Score: 4", add_special_tokens=False), name


def test_there_is_one_start_token_thinking_is_off_and_the_date_is_fixed() -> None:
    llama, qwen = model("llama 3"), model("chatml")
    ids = encode_prompt(llama, UserMessage("Hi"))
    assert ids.count(llama.bos_token_id) == 1
    assert f"Today Date: {DATE}" in llama.decode(ids)
    assert qwen.decode(encode_prompt(qwen, UserMessage("Hi"))).endswith("<think>\n\n</think>\n\n")


def test_a_template_that_trims_trims_here_too() -> None:
    llama, qwen = model("llama 3"), model("chatml")
    bare, padded = UserMessage("Hi"), UserMessage(" \n Hi\t")
    assert encode_prompt(llama, padded) == encode_prompt(llama, bare)
    assert encode_prompt(qwen, padded) == expected(qwen, " \n Hi\t") != encode_prompt(qwen, bare)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "models/judge has no chat template"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "does not contain a user message exactly once"),
        ("{{ messages[0].content | upper }}", "does not contain a user message exactly once"),
        ("{{ messages[0].content | replace('\\n', ' ') }}", "models/judge changes the messages"),
        ("{{ messages[0].content | e }}", "models/judge changes the messages"),
        ("{{ messages[0].content[:40] }}", "models/judge changes the messages"),
    ],
)
def test_a_model_without_a_template_that_gives_messages_back_is_refused_by_name(
    template: str | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        OwnChat(tokenizer_of("byte-level", False, template))


def test_a_request_is_laid_out_as_its_recipe_says() -> None:
    chat = ChatRecipe()
    assert laid_out("Hi", "chat", chat, "none") == chat.forward_prompt("Hi", "none")
    raw, own = (laid_out("Hi", layout, chat, "both") for layout in ("raw", "own"))
    assert (raw, own) == ("Hi", "Hi")
    assert not isinstance(raw, UserMessage)
    assert isinstance(own, UserMessage)
