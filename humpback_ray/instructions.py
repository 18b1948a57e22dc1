"""What a predicted instruction must be to be kept beside its segment: rules with named drop reasons, no model asked.

A backward model is a language model: it may go on with its prompt, refuse, answer in another language, or ask about
"the passage above", which whoever reads the instruction alone cannot see. Each rule is a pure function of strings. They
are written to miss rather than to drop a good instruction: of 679 pairs of Open Assistant none falls, of 560 prompts
that people wrote two do, both of which point at a text that they do not give. What the phrases look for is English; the
other rules know no language. None of this is the paper's, which curates by rating alone (Li et al. 2023,
arXiv:2308.06259).
"""

import re
from collections.abc import Iterator
from typing import cast

from pydantic import Field

from humpback_ray.config import Config
from humpback_ray.prompts.chat import ChatRecipe

ECHO, COPY, REFUSAL = "echoed_prompt", "copied_segment", "refusal"
REFERENCE, BROKEN, FOREIGN = "refers_to_text", "broken_off", "other_language"


class InstructionFilters(Config):
    """Which predicted instructions fall, and for which reason. These are verdicts, not failures of the model."""

    echoes: bool = True
    """Drop what holds a source tag, or a line that begins with the layouts' own text: `echoed_prompt`."""

    copied_words: int | None = Field(default=12, ge=1)
    """Drop a passage of at least so many words that stands in the segment as it is and asks nothing: `copied_segment`.
    Shorter ones may be its headings. None: off."""

    refusals: bool = True
    """Drop what begins as a model that refuses: `refusal`."""

    references: bool = True
    """Drop what points at a text that only the backward model saw, and does not give one: `refers_to_text`."""

    broken_off: bool = True
    """Drop what ends in a comma, an open bracket, or a word that needs another one: `broken_off`."""

    language_margin: int | None = Field(default=30, ge=0)
    """Drop as `other_language` what is nearer to another language than to its segment's, by more than this, in
    resiliparse's distances (0 to some 2,000), and shares hardly a word with its segment. None: off."""

    max_shared_words: float = Field(default=0.2, gt=0, le=1)
    """Share of an instruction's words that its segment has, from which on it is held to be in its language: short texts
    are often mistaken for another language, but not among pairs that share words such as "the"."""

    min_language_letters: int = Field(default=20, ge=1)
    """Shorter instructions are not looked at for their language."""

    max_language_score: int = Field(default=1200, ge=0)
    """Distance above which a segment's own language counts as unknown, and every instruction as fitting."""

    def reason(self, instruction: str, segment: str, chat: ChatRecipe) -> str | None:
        """Return why an instruction falls, None if it stays; the first rule that applies names it."""
        if self.echoes and echoes_prompt(instruction, chat):
            return ECHO
        if self.copied_words is not None and copies(instruction, segment, self.copied_words):
            return COPY
        if self.refusals and refuses(instruction):
            return REFUSAL
        if self.references and refers_to_text(instruction):
            return REFERENCE
        if self.broken_off and breaks_off(instruction):
            return BROKEN
        return FOREIGN if self._is_foreign(instruction, segment) else None

    def _is_foreign(self, instruction: str, segment: str) -> bool:
        if self.language_margin is None or sum(map(str.isalpha, instruction)) < self.min_language_letters:
            return False
        if shared_words(instruction, segment) >= self.max_shared_words:
            return False
        return language_gap(instruction, segment, self.max_language_score) > self.language_margin


_WORD = re.compile(r"\w+")
_MIN_MARK_CHARS = 6
"""Shorter lines of a layout ("A:") also begin lines of good instructions."""


def echoes_prompt(instruction: str, chat: ChatRecipe) -> bool:
    """Return whether a text holds a source tag, or a line that begins with a line of the layouts."""
    told = " ".join(instruction.casefold().split())
    if any(" ".join(tag.casefold().split()) in told for tag in chat.tags("both")):
        return True
    marks = tuple(_marks(chat))
    return bool(marks) and any(line.strip().casefold().startswith(marks) for line in instruction.splitlines())


def _marks(chat: ChatRecipe) -> Iterator[str]:
    for layout in (chat.forward, chat.backward):
        for line in (layout.opening + "\n" + layout.turn).splitlines():
            if len(line.strip()) >= _MIN_MARK_CHARS:
                yield line.strip().casefold()


def copies(instruction: str, segment: str, min_words: int) -> bool:
    """Return whether a text of at least so many words stands in the segment word for word and is no question."""
    words = _WORD.findall(instruction.casefold())
    if len(words) < min_words or instruction.rstrip("\"'”’) ").endswith("?"):
        return False
    return f" {' '.join(words)} " in f" {' '.join(_WORD.findall(segment.casefold()))} "


_SORRY = r"(?:(?:i['’]m|i am) (?:very |so |really )?sorry|sorry|i apologi[sz]e|my apologies|unfortunately)"
_CANNOT = (
    r"(?:i (?:cannot|can['’]?t|can not|am (?:unable|not able) to|won['’]t|will not)|i['’]m (?:unable|not able) to)"
)
_SERVE = (
    r"(?:assist|help (?:you )?with|fulfil+|comply|provide|answer (?:this|that|the|your)|generate|do (?:that|this))\b"
)
_KIND = r"(?:ai|artificial intelligence|(?:large )?language model)"
_CLAIM = rf"an? (?:{_KIND}|{_KIND} (?:language )?(?:model|assistant|chatbot)|chatbot|virtual assistant)"
_NEGATED = (
    r"i (?:cannot|can['’]?t|can not|do not|don['’]t|am not|am unable|have no)\b|i['’]m (?:not|unable)\b|it is not\b"
)
_REFUSAL = re.compile(
    rf"{_SORRY}\b[^.?!]{{0,40}}?\b{_CANNOT} {_SERVE}"
    rf"|(?:{_SORRY},? (?:but )?)?as {_CLAIM},?[^.?!]{{0,50}}?\b(?:{_NEGATED})"
    rf"|(?:i am|i['’]m) (?:just |only )?{_CLAIM}(?=[.,;]| (?:developed|trained|created|called|designed)\b)"
)
_WITHOUT_QUESTION = re.compile(
    rf"{_CANNOT} (?:{_SERVE})|i (?:do not|don['’]t) have (?:enough|sufficient|any) (?:information|context)\b"
)


def refuses(text: str) -> bool:
    """Return whether a text begins as a model that refuses, or that speaks of itself as one.

    People say what they cannot do, too: "I can't provide a receipt" counts only where nothing is asked, and no other
    verbs count than those of somebody who serves.
    """
    told = " ".join(text.casefold().split())
    return bool(_REFUSAL.match(told) or ("?" not in told and _WITHOUT_QUESTION.match(told)))


_TEXT = r"(?:text|passage|article|paragraph|excerpt|snippet|blog post|web ?page|document)"
_IN = r"(?:in|from|by|per|of|on|to|throughout|within|using|about)"
_NAMED = (
    r"(?! (?:of|about|on|by|titled|called|entitled|named|that|which|you|i|we|box|field|file|editor|area|message|for)\b)"
)
_REFERENCE = re.compile(
    rf"\b(?:the|this) (?:above|preceding|foregoing|given|provided|previous|following) (?:{_TEXT}|information|content)\b"
    rf"|\b(?:{_TEXT}|information) (?:given |provided |shown |quoted )?(?:above|below)\b"
    rf"|\b(?:according to|based (?:up)?on|as (?:described|stated|mentioned) in) (?:the|this) "
    rf"(?:{_TEXT}|information provided)\b{_NAMED}"
    rf"|\b{_IN} this {_TEXT}\b{_NAMED}"
    rf"|\b(?:does|did|is|do) (?:the|this) (?:passage|article|excerpt|paragraph|snippet)\b{_NAMED}"
    rf"|\b{_IN} the (?:passage|article|excerpt|paragraph|snippet)\b{_NAMED}"
    r"|\b(?:mentioned|described|stated|discussed|listed|shown|given|provided) (?:above|in the text|in the document)\b"
    rf"|^(?:(?:please )?(?:summari[sz]e|paraphrase|rewrite|rephrase|shorten|proofread|explain) (?:the|this) {_TEXT})"
    rf"\b{_NAMED}"
)
_GIVEN = re.compile(r"[:\n\"“«`]\W*\w+(?:\W+\w+){2}")
_ADDRESS = re.compile(r"https?://|www\.")
_MIN_GIVEN_WORDS = 20


def refers_to_text(instruction: str) -> bool:
    """Return whether a text points at another one ("the passage", "this article", "mentioned above") and has none.

    Given is what follows after a colon, a line end or a quotation mark; a longer text on lines before; an address.
    """
    told = instruction.casefold()
    if _ADDRESS.search(told):
        return False
    for match in _REFERENCE.finditer(told):
        before, after = told[: match.start()], told[match.end() :]
        if not _GIVEN.search(after) and len(_WORD.findall(before.rpartition("\n")[0])) < _MIN_GIVEN_WORDS:
            return True
    return False


_DANGLING = re.compile(r"(?:,|(?<![:;=-])[(\[]|\b(?:the|an|and|or|because|whose|between|including))$")


def breaks_off(instruction: str) -> bool:
    """Return whether a text ends where no sentence ends. Words count in lower case: "AND and OR" may end one."""
    return bool(_DANGLING.search(instruction.rstrip()))


def shared_words(instruction: str, segment: str) -> float:
    """Return the share of a text's distinct words that the segment has; 1 of a text without words."""
    words = set(_WORD.findall(instruction.casefold()))
    return len(words & set(_WORD.findall(segment.casefold()))) / len(words) if words else 1.0


_ANY_DISTANCE = 1 << 30
_MIN_SEGMENT_LETTERS = 200
_MIN_LETTER_SHARE = 0.6
"""Of a segment's characters. Prose has 0.8; tables and code, whose language is anybody's guess, have less."""


def language_gap(instruction: str, segment: str, max_score: int) -> int:
    """Return how clearly two texts are in different languages, in resiliparse's distances; 0 where that is not known.

    Each text is further from the other's language than from its own by at least this much.
    """
    letters = sum(map(str.isalpha, segment))
    if letters < _MIN_SEGMENT_LETTERS or letters < _MIN_LETTER_SHARE * len(segment):
        return 0
    theirs, ours = _distances(segment), _distances(instruction)
    if not theirs or not ours or min(theirs.values()) > max_score:
        return 0
    segment_language, language = min(theirs, key=theirs.__getitem__), min(ours, key=ours.__getitem__)
    return min(ours[segment_language] - ours[language], theirs[language] - theirs[segment_language])


def _distances(text: str) -> dict[str, int]:
    """Return the distance of a text to every language; none where it holds no letters that say anything."""
    from resiliparse.parse.lang import detect_fast, supported_langs

    found = detect_fast(text, cutoff=_ANY_DISTANCE, n_results=len(supported_langs()))
    return dict(cast("list[tuple[str, int]]", found))
