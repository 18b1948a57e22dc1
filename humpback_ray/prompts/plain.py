"""A tokenizer without special tokens that text could spell, and encoding of texts after other texts.

Here every added token of a tokenizer (`</s>`, `<|user|>`) gets a random name when the tokenizer is loaded. Our layouts
write those names; text from outside cannot know them, so `</s>` in a page stays plain text. Everything else is
tokenized as usual: a prompt after the start token, or a text after a prompt, gets the ids that it has when a server
tokenizes the whole. Runs of whitespace are added tokens in some vocabularies; they are harmless and keep their names.

Given up: tokenizers without a fast form (`tokenizer.json`).
"""

import json
import re
import secrets
import threading
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from humpback_ray.prompts.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""Name of a vocabulary piece that represents a byte."""

_CONTEXT_CHARACTERS = 40
"""Characters before a text that are tokenized with it: more than a token, few enough to be cheap."""

_NEUTRAL = ("\n", "0")
"""Contexts for a text if its first characters form a token with the end of the prompt."""


class Plain:
    """The fast form of a tokenizer, with its added tokens under names that no text spells.

    Args:
        tokenizer: of transformers.

    Raises:
        ValueError: the tokenizer has no fast form.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        from tokenizers import AddedToken, Tokenizer

        inner = getattr(tokenizer, "backend_tokenizer", None)
        if inner is None:
            raise ValueError(
                f"tokenizer {tokenizer.name_or_path} ({type(tokenizer).__name__}) has no fast form; save its model "
                "with a tokenizer.json"
            )
        state = json.loads(inner.to_str())
        added = state["added_tokens"]
        contents: list[str] = [token["content"] for token in added]
        self._mark = f"<{secrets.token_hex(16)}"
        named = {content: f"{self._mark}{number:06x}>" for number, content in enumerate(contents)}
        self._name_characters = len(self._mark) + 7
        self.names = {content: name for content, name in named.items() if content.strip(" \t\r\n▁")}
        """Random name of every added token that is not whitespace."""
        state |= {"added_tokens": [], "truncation": None, "padding": None, "post_processor": None}
        state["model"] |= self._renamed(state["model"])
        self._inner = Tokenizer.from_str(json.dumps(state))
        flags = [{key: token[key] for key in ("single_word", "lstrip", "rstrip", "normalized")} for token in added]
        inside: list[str] = [self.names.get(content, content) for content in contents]
        self._inner.add_tokens([AddedToken(name, **flag) for name, flag in zip(inside, flags, strict=True)])
        moved = {self._inner.token_to_id(name): token["id"] for name, token in zip(inside, added, strict=True)}
        self._moved = {here: there for here, there in moved.items() if here != there}
        self._spelled = re.compile("|".join(map(re.escape, sorted(self.names, key=len, reverse=True))) or r"(?!)")
        self._head = lru_cache(maxsize=256)(self.encode)
        ids = tokenizer.encode("")
        bos = tokenizer.bos_token if ids and ids[0] == tokenizer.bos_token_id else None
        self.start_ids: list[int] = [] if bos is None else ids[:1]
        """Ids that the tokenizer puts before every text: [bos] or []."""
        self.start = "" if bos is None else self.names[bos]
        """The name of that token."""

    def _renamed(self, model: dict[str, Any]) -> dict[str, Any]:
        """Return the vocabulary and the unknown token of a `tokenizers` model under the new names.

        Unigram models may cut `</s>` out of a text as a piece, and other models may look it up as a whole word. Pieces
        that take part in merges keep their names.
        """
        merged = {piece for merge in model.get("merges", ()) for piece in (*merge, "".join(merge))}
        names = {old: new for old, new in self.names.items() if old not in merged and not _BYTE.fullmatch(old)}
        if isinstance(model["vocab"], dict):
            vocabulary: object = {names.get(piece, piece): token for piece, token in model["vocab"].items()}
        else:
            vocabulary = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        unknown = model.get("unk_token")
        return {"vocab": vocabulary} | ({"unk_token": names.get(unknown, unknown)} if unknown else {})

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; random names in it become added tokens, spelled-out tokens do not."""
        ids = self._inner.encode(text, add_special_tokens=False).ids
        return [self._moved.get(token, token) for token in ids] if self._moved else ids

    def rename(self, text: str) -> str:
        """Replace the added tokens spelled in one of our own texts, such as a chat template's, by their names."""
        return self._spelled.sub(lambda match: self.names[match[0]], text)

    def encode_after(self, before: str, text: str) -> list[int]:
        """Return the ids of a text after another one, without changing the ids of the other.

        A token may span the two, or the text may change the tokens before it (two line breaks are one token in many
        vocabularies). Then they are cut between the texts, and the text gets the ids that it has after a neutral
        character.
        """
        for context in (self._end(before), *_NEUTRAL):
            head, both = self._head(context), self.encode(context + text)
            if both[: len(head)] == head:
                return both[len(head) :]
        return self.encode(text)

    def _end(self, text: str) -> str:
        """Return the last characters of a text without cutting a name."""
        cut = max(0, len(text) - _CONTEXT_CHARACTERS)
        name = text.rfind(self._mark)
        return text[min(cut, name) :] if name >= 0 and cut < name + self._name_characters else text[cut:]


_forms: "WeakKeyDictionary[Tokenizer, Plain]" = WeakKeyDictionary()
_making = threading.Lock()


def plain(tokenizer: Tokenizer) -> Plain:
    """Return the plain form of a tokenizer: a single one per tokenizer, shared by all threads.

    Never encode text with the names of one form by another form, which would treat them as text.
    """
    with _making:
        if tokenizer not in _forms:
            _forms[tokenizer] = Plain(tokenizer)
        return _forms[tokenizer]
