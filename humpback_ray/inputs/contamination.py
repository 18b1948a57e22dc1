"""Contamination: pairs that hold an evaluation prompt are not trained on.

A pair is `contaminated` if its instruction or its response

- is a prompt: the same words after normalization; or
- shares 13 words in a row with one (Brown et al. 2020, arXiv:2005.14165, appendix C: n = 13 for its longer texts).
  A shorter prompt counts only as a whole.

Words are compared in lower case, without punctuation, in Unicode form NFKC; words.py says what counts as a word in
scripts without spaces. Responses are checked too, since a page that quotes a prompt often answers it.

Limits: paraphrases and translations are not found. GPT-3's authors let n-grams pass that many texts share; here they
count.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pydantic import Field

from humpback_ray.config import Config
from humpback_ray.inputs.promptfiles import load_prompts
from humpback_ray.storage.inventory import Inventory
from humpback_ray.text.words import words

CONTAMINATED = "contaminated"
"""Drop reason of a pair that holds a prompt of an evaluation."""


class ContaminationRecipe(Config):
    """The prompts that seed pairs and candidates must not hold."""

    version: int = Field(default=1, ge=1)
    """Raised by hand when the meaning of this module changes."""

    inputs: list[str] | None = None
    """Files of further prompts, besides those that the run evaluates on: paths, globs, `s3://` URIs, in any form that
    `evaluate.recipe.inputs` takes. The content of the files enters the fingerprint."""

    own_prompts: bool = True
    """Whether the run's own evaluation prompts count. Not hashed by itself: the prompts that count are."""

    ngram_words: int | None = Field(default=13, ge=2)
    """Number of words in a row that no pair may share with a prompt; None: only whole prompts count."""

    responses: bool = True
    """Whether to check responses as well as instructions."""


class ContaminationConfig(Config):
    """Prompts kept out of training. There is no separate stage: `seed` and `candidates` drop the pairs they find."""

    recipe: ContaminationRecipe = ContaminationRecipe()


@dataclass(frozen=True)
class HeldOut:
    """The prompts that a stage must avoid; none if there are no files."""

    recipe: ContaminationRecipe = field(default_factory=ContaminationRecipe)
    files: Inventory = field(default_factory=lambda: Inventory(()))

    @property
    def identity(self) -> dict[str, dict[str, Any]]:
        """Entries that a stage adds to its recipe."""
        return {"contamination": self.recipe.model_dump(mode="json", exclude={"inputs", "own_prompts"})} if self else {}

    @property
    def inputs(self) -> dict[str, Inventory]:
        """Entries that a stage adds to its inputs, so other prompts are drift."""
        return {"held_out": self.files} if self else {}

    def __bool__(self) -> bool:
        return bool(self.files.files)

    @staticmethod
    def of(recipe: ContaminationRecipe, own: Inventory | None, named: Inventory | None) -> "HeldOut":
        """Combine the run's own prompts and the named ones."""
        files = {file.uri: file for part in (own if recipe.own_prompts else None, named) if part for file in part.files}
        return HeldOut(recipe, Inventory(tuple(sorted(files.values(), key=lambda f: (f.name, f.version, f.uri)))))

    def overlap(self) -> "Overlap":
        """Read the files."""
        tables = (load_prompts(file) for file in self.files.files)
        return Overlap((text for table in tables for text in table["instruction"].to_pylist()), self.recipe)


NOTHING = HeldOut()
"""For stages that need not avoid any prompts."""


class Overlap:
    """Finds prompts in pairs.

    If a text shares n words with a prompt, these include a block of b = (n + 1) // 2 words that begins at a multiple
    of b in the text. So only these blocks are looked up, and n-grams only around blocks that a prompt has.

    Args:
        prompts: must not occur in pairs.
        recipe: how to search for them.
    """

    def __init__(self, prompts: Iterable[str], recipe: ContaminationRecipe) -> None:
        self.recipe, self.size = recipe, recipe.ngram_words or 0
        self.block = (self.size + 1) // 2
        told = [plain_words(prompt) for prompt in prompts]
        self.whole = {tuple(prompt) for prompt in told if prompt}
        self.ngrams = {gram for prompt in told for gram in _grams(prompt, self.size)} if self.size else set()
        self.blocks = {gram[i : i + self.block] for gram in self.ngrams for i in range(self.size - self.block + 1)}

    def holds(self, text: str) -> bool:
        """Tell whether a text is a prompt, or shares an n-gram with one."""
        told = plain_words(text)
        if tuple(told) in self.whole:
            return True
        if not self.ngrams:
            return False
        blocks = range(0, len(told) - self.block + 1, self.block)
        return any(tuple(told[i : i + self.block]) in self.blocks and self._around(told, i) for i in blocks)

    def _around(self, told: list[str], first: int) -> bool:
        """Tell whether an n-gram that covers the block beginning at `first` is a prompt's."""
        near = told[max(0, first + self.block - self.size) : first + self.size]
        return any(gram in self.ngrams for gram in _grams(near, self.size))

    def without(self, pairs: pa.Table) -> pa.Table:
        """Drop the pairs that hold a prompt.

        Args:
            pairs: with `instruction`, `response` and `drop_reason`; only pairs without a reason are checked.

        Returns:
            The table with further reasons; both texts of newly dropped pairs are blank.
        """
        columns = {name: pairs[name].to_pylist() for name in ("instruction", "response", "drop_reason")}
        if not self.whole:
            return pairs
        for row, reason in enumerate(columns["drop_reason"]):
            if reason is None and self.found_in(columns["instruction"][row], columns["response"][row]):
                columns["drop_reason"][row], columns["instruction"][row], columns["response"][row] = (
                    CONTAMINATED,
                    "",
                    "",
                )
        for name, values in columns.items():
            pairs = pairs.set_column(pairs.column_names.index(name), name, pa.array(values, pa.string()))
        return pairs

    def found_in(self, instruction: str, response: str) -> bool:
        """Tell whether a pair holds a prompt."""
        return self.holds(instruction) or (self.recipe.responses and self.holds(response))


def _grams(told: list[str], size: int) -> Iterator[tuple[str, ...]]:
    return zip(*(told[start:] for start in range(size)), strict=False)


_HIDDEN = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")


def plain_words(text: str) -> list[str]:
    """Return a text's normalized words, for comparison."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _HIDDEN.sub("", text)).casefold()
    return words(text.lower().replace("_", " "))
