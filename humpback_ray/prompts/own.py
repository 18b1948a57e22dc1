"""The chat format of a model that was not trained here, from its tokenizer's own template (`layout: own`).

The template is rendered once, around a random word. Its parts are tokenized with their control tokens, and the text
that replaces the word is tokenized as plain text: `<|im_start|>` in a page stays plain characters and opens no turn.
For text without such tokens, the ids are those of `apply_chat_template`. If a template trims messages, so do we. A
template that changes them in another way, or that cannot be tokenized in parts, is refused.

Thinking is off if the template knows `enable_thinking` (Qwen 3): a rating or a rewrite has its own room for reasons.
"""

import secrets
from functools import lru_cache

from humpback_ray.prompts.plain import plain
from humpback_ray.prompts.tokenizer import Tokenizer

DATE = "26 Jul 2024"
"""Date for templates that insert today's date (Llama 3), so prompts are the same every day; Meta's default."""

_PROBE = 'Is "<b>a &amp; b</b>" {{ x }} \\n  plain?\n\n\tYes, naïve 東京 😀\'s.'
_SPACE = " \n"


class UserMessage(str):
    """A prompt that is a user message: the engine lays it out in the model's own chat format."""

    __slots__ = ()


class OwnChat:
    """The text that a model's own template puts around a user message, including the opening of the reply.

    Args:
        tokenizer: of transformers.

    Raises:
        ValueError: it has no chat template, or this encoding does not reproduce the template.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        name = tokenizer.name_or_path
        if not tokenizer.chat_template:
            raise ValueError(f"{name} has no chat template, so it has no layout of its own; use layout chat or raw")
        word = f"x{secrets.token_hex(16)}x"
        self._plain = plain(tokenizer)
        of = f"the chat template of {name}"
        try:
            before, after = self._render(word).split(word)
            wide_before, wide_after = self._render(_SPACE + word + _SPACE).split(word)
        except ValueError:
            raise ValueError(
                f"{of} does not contain a user message exactly once and unchanged; use layout chat or raw"
            ) from None
        self._trims = (wide_before == before, wide_after == after)
        self._before, self._after = map(self._plain.rename, (before, after))
        for text in ("Yes.", _PROBE, f" {_PROBE}\n"):
            rendered = self._render(text)
            if rendered != before + self._trimmed(text) + after:
                raise ValueError(f"{of} changes the messages it is given; use layout chat or raw")
            if self._plain.encode(self.around(text)) != tokenizer.encode(rendered, add_special_tokens=False):
                raise ValueError(f"{of} cannot be tokenized in parts; use layout chat or raw")

    def around(self, text: str) -> str:
        """Return a user message in the template, with names (`Plain`) in place of the template's control tokens."""
        return self._before + self._trimmed(text) + self._after

    def _trimmed(self, text: str) -> str:
        left, right = self._trims
        text = text.lstrip() if left else text
        return text.rstrip() if right else text

    def _render(self, text: str) -> str:
        return self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True,
            enable_thinking=False, date_string=DATE,
        )  # fmt: skip


@lru_cache(maxsize=4)
def own_chat(tokenizer: Tokenizer) -> OwnChat:
    """Return the chat format of a tokenizer, made once."""
    return OwnChat(tokenizer)
