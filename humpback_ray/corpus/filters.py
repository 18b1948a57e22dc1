"""Filters of segments, by length, header, repetition and language.

Each filter is a pure function of strings that decides whether the segment is dropped. The rules are those of Humpback
(Li et al. 2023, arXiv:2308.06259, data preparation). The paper gives neither the n nor the threshold of its repetition
filter, nor its whole list of navigation words: those are ours, as recipe fields.
"""

import re
from collections.abc import Sequence

from pydantic import Field, field_validator, model_validator

from humpback_ray.config import Config
from humpback_ray.packages import LANGUAGE, Package
from humpback_ray.text.language import is_known, probabilities
from humpback_ray.text.words import words


class FilterRecipe(Config):
    """Which segments are dropped, and for which reason."""

    min_chars: int = Field(default=600, ge=0)
    """Shorter segments are `too_short` (the paper: 600 to 3,000 characters)."""

    max_chars: int = Field(default=3_000, ge=1)
    """Longer segments are `too_long`."""

    drop_empty_headers: bool = True
    """Segments without a header, or under one without a letter or digit, are `header_empty`. Plain text has no headers,
    so header rules do not apply to it."""

    drop_uppercase_headers: bool = True
    """Segments under a header in all capitals are `header_uppercase`; see `min_uppercase_letters`."""

    min_uppercase_letters: int = Field(default=5, ge=1)
    """Headers with fewer letters are never `header_uppercase`: "FAQ" and "DNA" name real sections. Ours; 1 follows the
    paper literally."""

    navigation_headers: tuple[str, ...] = (
        "advertisement", "advertising", "advertise with us", "sponsored", "forum", "forums", "quick link",
        "quick links", "free newsletter", "newsletter", "newsletters", "related posts", "related articles",
        "related content", "related products", "recent posts", "recent comments", "popular posts", "most popular",
        "most read", "trending", "recommended for you", "you may also like", "you might also like", "read more",
        "read next", "more from", "leave a reply", "leave a comment", "post a comment", "comments", "share this",
        "follow us", "connect with us", "contact us", "about us", "sign up", "subscribe", "log in", "login", "search",
        "navigation", "menu", "site map", "sitemap", "categories", "archives", "tags", "table of contents",
        "cookie policy", "privacy policy", "terms of service", "your cart", "shopping cart", "customer service",
        "customer reviews",
    )  # fmt: skip
    """Headers of site navigation: `header_navigation`. The first four kinds are the paper's examples, the rest are
    ours. An entry matches a whole header; see `max_navigation_words`."""

    max_navigation_words: int = Field(default=5, ge=1)
    """A header of at most this many words is also dropped if it merely contains an entry as whole words ("Our free
    newsletter"); in a longer one the words may be its subject ("How the Roman forum was built over a marsh")."""

    repetition_words: int | None = Field(default=3, ge=1)
    """n of the word n-grams by which sentences are compared; None: no repetition filter. Ours."""

    repetition_jaccard: float = Field(default=0.6, gt=0, le=1)
    """Two sentences whose n-gram sets overlap at least this much (Jaccard) repeat each other. Ours."""

    repetition_min_words: int = Field(default=6, ge=1)
    """Shorter sentences are not compared: "Yes." and "See below." recur in good text. Ours."""

    max_repetitive_share: float = Field(default=0.1, ge=0, lt=1)
    """A segment is `repetitive` if more than this share of its compared sentences repeat an earlier one. The whole
    segment is dropped: removing single sentences leaves text that nobody wrote, and text that repeats itself is seldom
    a good answer. 0 drops at the first repetition. Ours."""

    language: str | None = "en"
    """Segments in another language are `other_language` (the paper: English pages); None: any language. A segment is
    dropped only if both it and its page are detected as another language. On real pages, one in forty segments of
    English pages (short lists of names) is mistaken for Latin or Danish; whole pages are not."""

    min_language_probability: float = Field(default=0.5, gt=0, le=1)
    """If the most likely language is less probable than this, the language of a text counts as unknown."""

    @model_validator(mode="after")
    def _checked(self) -> "FilterRecipe":
        if self.min_chars > self.max_chars:
            raise ValueError(
                f"min_chars {self.min_chars} is more than max_chars {self.max_chars}, so no segment could pass; "
                "lower min_chars or raise max_chars"
            )
        return self

    def packages(self) -> Sequence[Package]:
        """Return the library that detects languages."""
        return () if self.language is None else (LANGUAGE,)

    @field_validator("language")
    @classmethod
    def _known(cls, language: str | None) -> str | None:
        if language is not None and not is_known(language):
            raise ValueError(
                f"language {language!r} cannot be detected; set it to a code such as en, or to null for any language"
            )
        return language


_SENTENCE_END = re.compile(
    r"(?<=[.!?؟۔।॥])[\"'”’)\]]*\s+|(?<=[。！？…។៕။])[\"'”’」』）)\]]*\s*|(?<=[\u0e00-\u0eff])\s+(?=[\u0e00-\u0eff])|\n+"
)
"""Thai and Lao have no full stop: a space ends a clause."""


def header_reason(header: str, recipe: FilterRecipe) -> str | None:
    """Return `header_empty`, `header_uppercase`, `header_navigation`, or None for a header to keep."""
    found = words(header.casefold())
    if not found:
        return "header_empty" if recipe.drop_empty_headers else None
    letters = sum(character.isalpha() for character in header)
    if recipe.drop_uppercase_headers and header.isupper() and letters >= recipe.min_uppercase_letters:
        return "header_uppercase"
    plain = f" {' '.join(found)} "
    for entry in recipe.navigation_headers:
        wanted = f" {' '.join(words(entry.casefold()))} "
        if plain == wanted or (len(found) <= recipe.max_navigation_words and wanted in plain):
            return "header_navigation"
    return None


def length_reason(chars: int, recipe: FilterRecipe) -> str | None:
    """Return `too_short`, `too_long` or None."""
    if chars < recipe.min_chars:
        return "too_short"
    return "too_long" if chars > recipe.max_chars else None


def repetition_reason(text: str, recipe: FilterRecipe) -> str | None:
    """Return `repetitive` or None."""
    return "repetitive" if repetitive_share(text, recipe) > recipe.max_repetitive_share else None


def is_foreign(text: str, recipe: FilterRecipe) -> bool:
    """Return whether the text is detected as another language than the recipe's; False if the recipe names none."""
    if recipe.language is None:
        return False
    found = probabilities(text)
    if not found:
        return False
    likeliest = max(found, key=found.__getitem__)
    return likeliest != recipe.language and found[likeliest] >= recipe.min_language_probability


def sentences(text: str) -> list[str]:
    """Split text at line ends and at sentence punctuation before whitespace (scripts without spaces need none)."""
    return [sentence for sentence in _SENTENCE_END.split(text) if sentence.strip()]


def repetitive_share(text: str, recipe: FilterRecipe) -> float:
    """Return the share of the compared sentences that repeat an earlier one, or themselves; 0 if the filter is off.

    A sentence repeats itself if less than half of its n-grams are distinct; text without punctuation is one sentence.
    Only pairs that share an n-gram are compared, so the cost grows with the amount of repetition.
    """
    size = recipe.repetition_words
    if size is None:
        return 0.0
    seen: list[frozenset[tuple[str, ...]]] = []
    where: dict[tuple[str, ...], list[int]] = {}
    compared = repeated = 0
    for sentence in sentences(text.casefold()):
        found = words(sentence)
        if len(found) < max(recipe.repetition_min_words, size):
            continue
        compared += 1
        grams = _grams(found, size)
        if len(grams) < _MIN_DISTINCT_SHARE * (len(found) - size + 1) or _repeats(
            grams, seen, where, recipe.repetition_jaccard
        ):
            repeated += 1
            continue  # `seen` has a similar one already, so a text of one repeated sentence takes linear time
        for gram in grams:
            where.setdefault(gram, []).append(len(seen))
        seen.append(grams)
    return repeated / compared if compared else 0.0


_MIN_DISTINCT_SHARE = 0.5


def _grams(found: list[str], size: int) -> frozenset[tuple[str, ...]]:
    return frozenset(zip(*(found[start:] for start in range(size)), strict=False))


def _repeats(
    grams: frozenset[tuple[str, ...]],
    seen: list[frozenset[tuple[str, ...]]],
    where: dict[tuple[str, ...], list[int]],
    threshold: float,
) -> bool:
    shared: dict[int, int] = {}
    for gram in grams:
        for index in where.get(gram, ()):
            shared[index] = shared.get(index, 0) + 1
    return any(count >= threshold * (len(grams) + len(seen[index]) - count) for index, count in shared.items())
