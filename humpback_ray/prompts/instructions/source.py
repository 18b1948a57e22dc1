"""Compare an instruction with its segment: does it copy it, give the answer away, or use another language?"""

import re

from humpback_ray.text.language import probabilities
from humpback_ray.text.words import words

_QUESTION = re.compile(r"[^.!?。！？\n]*[?？][\"'”’)]*")
_ASKING = re.compile(
    r"\W*(?:who|what|when|where|why|which|how|is|are|was|were|do|does|did|can|could|should|would|will|has|have|please"
    r"|i|my|write|explain|describe|list|give|name|tell|create|make|suggest|provide|discuss|compare|define|identify"
    r"|find|show"
    r"|summari[sz]e|outline|analy[sz]e|translate|rewrite|generate|design|prove|given|if)\b",
    re.IGNORECASE,
)
_EDITING = re.compile(
    r"\b(?:re-?writ\w+|correct\w*|fix\w*|edit\w*|proof ?read\w*|improv\w+|simplif\w+|paraphras\w+|rephras\w+"
    r"|translat\w+|convert\w*|extract\w*|replac\w+|chang\w+|capitali[sz]\w+|format\w*|refactor\w*|add|complet\w+"
    r"|continu\w+|fill|grammar|comments?|code|debug\w*|shorten\w*|expand\w*|punctuat\w+|table|remov\w+|organi[sz]\w+"
    r"|modif\w+|adapt\w*"
    r"|polish\w*|clean\w*|sentences?)\b",
    re.IGNORECASE,
)
_RUN_WORDS, _LEAD_WORDS = 5, 3
_LONG_BYTES, _MIN_LONG_WORDS = 4, 2
_MIN_COPIED_SHARE, _MIN_SEGMENT_SHARE = 0.5, 0.8


def copies(instruction: str, segment: str, min_words: int) -> bool:
    """Return whether a text repeats at least `min_words` words of its segment, in runs of five, instead of asking.

    It must begin with them, or contain nearly the whole segment without asking to edit it. Questions do not count: a
    segment's own question is a good instruction.
    """
    told = words(_QUESTION.sub(" ", instruction).casefold())
    copied = _copied(told, segment) if len(told) >= min_words else []
    if len(copied) < min_words:
        return False
    if copied[0] <= _LEAD_WORDS and not (_ASKING.match(instruction) or _EDITING.match(instruction)):
        return len(copied) >= _MIN_COPIED_SHARE * len(told)
    given = max(len(told) - copied[0], min_words)
    whole = len(copied) >= _MIN_SEGMENT_SHARE * len(words(segment))
    return (whole or _follows(instruction, len(copied), given)) and not _EDITING.search(instruction)


def _follows(instruction: str, copied: int, given: int) -> bool:
    """Return whether nearly all text after a request, on lines of its own, is copied."""
    return "\n" in instruction.strip() and copied >= _MIN_SEGMENT_SHARE * given


def _copied(told: list[str], segment: str) -> list[int]:
    """Return, in order, the positions of the words in runs of five that the segment contains."""
    lowered = segment.casefold()
    if sum(word in lowered for word in told if len(word.encode("utf-8", "replace")) >= _LONG_BYTES) < _MIN_LONG_WORDS:
        return []  # cheaper than splitting the segment into words
    inside = f" {' '.join(words(lowered))} "
    runs = (at for at in range(len(told) - _RUN_WORDS + 1) if f" {' '.join(told[at : at + _RUN_WORDS])} " in inside)
    return sorted({at + word for at in runs for word in range(_RUN_WORDS)})


_ANSWER = re.compile(
    r"(?:^|[.!?:。！？：\n])\W*(?:answers?|ans|response|reply|antwort|réponse|respuesta|回答|答案|答)\W{0,3}[:：](?P<told>.*)",
    re.IGNORECASE | re.DOTALL,
)
_LETTERED = re.compile(r"[?\n]\s*A\s*:\s*(?P<told>\S.*)", re.DOTALL)
_LABEL = re.compile(
    r"(?:^|\n|[.?!] )\W*(?:q(?:uestion)?|answer|input|output|[b-d2]|problem|example|options?"
    r"|choices?)\s*\d*\W{0,3}[:.)]",
    re.I,
)
_FIRST_LABEL = re.compile(r"\W*(?:q(?:uestion)?|problem|instruction)\W{0,3}[:.]", re.IGNORECASE)
_MIN_ANSWER_WORDS, _MAX_ASKED_WORDS = 5, 60
_MIN_COPIED_ANSWER = 0.8


def gives_answer(instruction: str, segment: str) -> bool:
    """Return whether a text asks and answers: "Q… Answer: …", or a question with a statement from its segment.

    Examples of a format ("Q: … A: … Q: …") and choices ("A: … B: …") do not give an answer away.
    """
    if ":" in instruction or "：" in instruction:
        for pattern in (_ANSWER, _LETTERED):
            found = pattern.search(instruction)
            if found and words(found["told"]):
                asked = _FIRST_LABEL.sub("", instruction[: found.start() + 1], count=1)
                labels = "?" in found["told"] or _LABEL.search(found["told"]) or _LABEL.search(asked)
                if 0 < len(words(asked)) <= _MAX_ASKED_WORDS and not labels:
                    return True
    if "?" not in instruction:
        return False
    told = words(_QUESTION.sub(" ", instruction).casefold())
    if not _MIN_ANSWER_WORDS <= len(told) <= _MAX_ASKED_WORDS or _EDITING.search(instruction):
        return False
    return len(_copied(told, segment)) >= _MIN_COPIED_ANSWER * len(told)


_MIN_LETTER_BYTES = 12
"""Minimum length of all letters, in UTF-8: four Chinese characters or a dozen Latin letters. Less shows no language."""

_READ_CHARS = 300
_MIN_SEGMENT_LETTERS = 100
_MIN_LETTER_SHARE = 0.6
"""Minimum share of letters in a segment. Prose has 0.8; tables and code, which have no clear language, have less."""

_MIN_SEGMENT_PROBABILITY = 0.8
_MAX_OWN_PROBABILITY = 0.05
_CLAUSE = re.compile(r"[.:?!;\n\"“”«»()。：？！]+")


def is_foreign(instruction: str, segment: str, min_probability: float) -> bool:
    """Return whether a text is certainly in another language than its segment; False if either language is unsure.

    One clause in the segment's language is enough to stay, such as "Translate into English:" before other text.
    """
    if len("".join(filter(str.isalpha, instruction[:_READ_CHARS])).encode("utf-8", "replace")) < _MIN_LETTER_BYTES:
        return False
    sample = segment[:_READ_CHARS]
    letters = sum(map(str.isalpha, sample))
    if letters < _MIN_SEGMENT_LETTERS or letters < _MIN_LETTER_SHARE * len(sample):
        return False
    theirs = probabilities(sample)
    language = max(theirs, key=theirs.__getitem__)
    if theirs[language] < _MIN_SEGMENT_PROBABILITY or not _differs(instruction, language, min_probability):
        return False
    clauses = [clause for clause in _CLAUSE.split(instruction) if len(words(clause)) > 1]
    return len(clauses) < 2 or all(probabilities(clause).get(language, 0.0) < 0.5 for clause in clauses)


def _differs(text: str, language: str, min_probability: float) -> bool:
    ours = probabilities(text[:_READ_CHARS])
    own = ours.get(language, 0.0)
    return own < _MAX_OWN_PROBABILITY and sum(ours.values()) - own >= min_probability
