"""Near-duplicate instructions: find the earlier text that a text resembles, exactly, without comparing all pairs.

Two texts resemble each other if the sets of their words (or word n-grams) have at least the threshold's Jaccard
similarity. Such sets must share one of their first few members in any common sort order, so members are sorted rarest
first and only those few are looked up (prefix and positional filters: Bayardo et al. 2007, All-Pairs; Xiao et al. 2008,
PPJoin). There are no hashed signatures: the result is exact and the same on every machine.

Memory is about 60 bytes per member of a leading text, 3 KiB for an instruction of 190 characters. Time grows faster
than the number of texts, with how often their rarest words recur; only texts that pass a threshold are compared.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable

from humpback_ray.text.words import words as words_of


def grams(text: str, words: int) -> set[str]:
    """Return a text's distinct runs of `words` words, in NFKC and case-folded; a shorter text is one run.

    In scripts without spaces a word is a character n-gram (`words.py`).
    """
    found = words_of(unicodedata.normalize("NFKC", text).casefold()) or [text.strip()]
    return {" ".join(found[at : at + words]) for at in range(max(1, len(found) - words + 1))}


class Leaders:
    """The texts that stay, in the order added; finds the first one that a text resembles.

    Args:
        texts: all texts that may be added or looked up, in any order; they give the frequencies of words.
        jaccard: minimum similarity of two texts that resemble each other.
        words: n of the word n-grams that are compared.
    """

    def __init__(self, texts: Iterable[str], jaccard: float, words: int) -> None:
        self.jaccard, self.words = jaccard, words
        counts = Counter(gram for text in texts for gram in grams(text, words))
        self._rank = {gram: rank for rank, gram in enumerate(sorted(counts, key=lambda gram: (counts[gram], gram)))}
        self._members: list[frozenset[int]] = []
        self._index: dict[int, dict[tuple[int, int], list[int]]] = {}

    def add(self, text: str) -> int:
        """Add a text as a leader; return its number."""
        members = self._sorted(text)
        for position in range(self._prefix(len(members))):
            places = self._index.setdefault(members[position], {})
            places.setdefault((len(members), position), []).append(len(self._members))
        self._members.append(frozenset(members))
        return len(self._members) - 1

    def first_like(self, text: str) -> int | None:
        """Return the number of the first leader that a text resembles; None if it resembles none."""
        members = self._sorted(text)
        size = len(members)
        near: set[int] = set()
        for position in range(self._prefix(size)):
            for (other, place), leaders in self._index.get(members[position], {}).items():
                most = min(size - position, other - place)  # members in common, if these are the first
                if most / (size + other - most) >= self.jaccard:
                    near.update(leaders)
        own = set(members)
        return next((leader for leader in sorted(near) if self._resembles(own, self._members[leader])), None)

    def _resembles(self, own: set[int], other: frozenset[int]) -> bool:
        common = len(own & other)
        return common / (len(own) + len(other) - common) >= self.jaccard

    def _sorted(self, text: str) -> list[int]:
        return sorted(self._rank[gram] for gram in grams(text, self.words))

    def _prefix(self, size: int) -> int:
        """Return how many first members to look up; a set that resembles one of this size cannot miss them all."""
        fewest = next(common for common in range(size + 1) if common / size >= self.jaccard)
        return size - fewest + 1
