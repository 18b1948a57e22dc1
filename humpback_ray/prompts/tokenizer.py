"""The part of a transformers tokenizer that this package uses; any object with these members will do."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tokenizers import AddedToken


class Tokenizer(Protocol):
    """A tokenizer with a fast form (`plain.py` needs its `backend_tokenizer`)."""

    name_or_path: str
    bos_token: str | None
    bos_token_id: int | None
    eos_token: str | None
    eos_token_id: int | None
    pad_token_id: int | None
    chat_template: str | None

    @property
    def added_tokens_decoder(self) -> "Mapping[int, AddedToken]":
        """Added tokens by their ids."""
        ...

    def encode(self, text: str, /, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text, with the tokenizer's start token unless `add_special_tokens` is off."""
        ...

    def decode(
        self, ids: Sequence[int], /, *, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False
    ) -> str:
        """Return the text of ids."""
        ...

    def apply_chat_template(
        self, messages: list[dict[str, str]], /, *, tokenize: bool, add_generation_prompt: bool, **variables: object
    ) -> str:
        """Render messages with `chat_template`; it receives `variables`."""
        ...
