"""A tokenizer that no text can talk to, and texts as they stand behind others.

Every added token of a tokenizer (`</s>`, `<|user|>`) gets a name here that is drawn at random when the tokenizer is
loaded. What we lay out writes those names; what comes from outside cannot, so `</s>` in a page stays plain text, while
the rest of the tokenizer does what it always does: a prompt behind the start token, or a text behind a prompt, has the
ids that it has where a server tokenises the whole. Runs of white space are added tokens in some vocabularies and say
nothing, so they keep their names.

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
"""A piece that stands for a byte, by this name."""

_CONTEXT_CHARACTERS = 40
"""So much of what stands before a text is tokenised with it: more than a token, less than costs time."""

_NEUTRAL = ("\n", "0")
"""Stand before a text whose first characters form a token with the end of the prompt."""


class Plain:
    """A tokenizer's inner one, with its added tokens under names that no text spells.

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
        """Of every added token that is not white space."""
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
        """What the tokenizer puts before every text: [bos], or nothing."""
        self.start = "" if bos is None else self.names[bos]
        """The name of that token."""

    def _renamed(self, model: dict[str, Any]) -> dict[str, Any]:
        """Return the vocabulary, and the unknown token, of a model of `tokenizers` under the new names.

        Unigram models have `</s>` among the pieces that texts are cut into, and others find a whole word there. What a
        merge makes or takes keeps its name.
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
        """Return the ids of a text; names in it are added tokens, the tokens that it spells are not."""
        ids = self._inner.encode(text, add_special_tokens=False).ids
        return [self._moved.get(token, token) for token in ids] if self._moved else ids

    def rename(self, text: str) -> str:
        """Return a text of ours, such as a chat template's, with names in place of the added tokens that it spells."""
        return self._spelled.sub(lambda match: self.names[match[0]], text)

    def encode_after(self, before: str, text: str) -> list[int]:
        """Return the ids of a text as it stands behind another one, whose own ids stay as they are without it.

        Where a token would span the two, or the text changes how the end before it is cut (two line breaks are
        one token of many vocabularies), it is cut between them: the text's ids are then those behind a neutral
        character.
        """
        for context in (self._end(before), *_NEUTRAL):
            head, both = self._head(context), self.encode(context + text)
            if both[: len(head)] == head:
                return both[len(head) :]
        return self.encode(text)

    def _end(self, text: str) -> str:
        """Return the last characters of a text, cutting through no name."""
        cut = max(0, len(text) - _CONTEXT_CHARACTERS)
        name = text.rfind(self._mark)
        return text[min(cut, name) :] if name >= 0 and cut < name + self._name_characters else text[cut:]


_forms: "WeakKeyDictionary[Tokenizer, Plain]" = WeakKeyDictionary()
_making = threading.Lock()


def plain(tokenizer: Tokenizer) -> Plain:
    """Return the plain form of a tokenizer: one as long as the tokenizer lives, whichever threads ask.

    Text laid out with the names of one form is not to be encoded by another, which would take them for text.
    """
    with _making:
        if tokenizer not in _forms:
            _forms[tokenizer] = Plain(tokenizer)
        return _forms[tokenizer]
