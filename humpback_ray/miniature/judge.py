"""The judge of the toy world: exact, programmatic, and the only reader of its truth.

It parses texts with the world's own wordings. An answer is right if it states the requested fact and nothing else,
except remarks that pages and assistants add. A predicted question is right if it asks, in one of the world's wordings,
for the fact that its segment states. A candidate pair is good if its segment is a clean text and its question is right.
Everything else is wrong, with a reason.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Literal, NamedTuple

from humpback_ray.sample.facts import ATTRIBUTES, Fact
from humpback_ray.sample.texts import CLOSERS, OPENERS

Verdict = Literal["right", "other_town", "other_attribute", "other_value", "more_than_one", "junk", "nothing"]
"""Kinds of answers: the requested fact; a statement about another town, another attribute, or a value that is not the
town's; several different statements; a right statement among other words; no statement at all."""

Asked = Literal["right", "other_town", "other_attribute", "no_question", "segment_states_nothing"]
"""Kinds of predicted questions, compared with their segment."""


class Segment(NamedTuple):
    """The generator's knowledge about a piece of a candidate page."""

    kind: str
    fact: Fact | None


class Known(NamedTuple):
    """The truth of a world, as recorded in its `truth.jsonl`."""

    segments: dict[tuple[str, str], Segment]
    """By (url, text)."""

    prompts: dict[tuple[str, str], Fact]
    """By (dataset, instruction): the requested fact."""


def read_truth(lines: Iterable[str]) -> Known:
    """Read the lines of `truth.jsonl`."""
    known = Known({}, {})
    for record in map(json.loads, lines):
        fact = Fact(record["town"], record["attribute"], record["value"], record["split"]) if "town" in record else None
        if record["record"] == "segment":
            known.segments[record["url"], record["text"]] = Segment(record["kind"], fact)
        elif record["record"] == "prompt":
            assert fact is not None
            known.prompts[record["dataset"], record["instruction"]] = fact
    return known


def judge_answer(answer: str, asked: Fact) -> Verdict:
    """Judge an answer to the question for a fact."""
    said, rest = statements(answer)
    if not said:
        return "nothing"
    if len(said) > 1:
        return "more_than_one"
    ((town, noun, value),) = said
    if town != asked.town:
        return "other_town"
    if noun != asked.noun:
        return "other_attribute"
    if value != asked.value:
        return "other_value"
    return "junk" if rest else "right"


def is_assistants(answer: str) -> bool:
    """Tell whether an answer has the voice of the seed's assistant: by its opening, its closing or its wording."""
    said = any(wording.search(answer) for wording in _assistant_wordings())
    return said or any(remark in answer for remark in (*OPENERS, *CLOSERS))


def statements(text: str) -> tuple[set[tuple[str, str, str]], str]:
    """Parse a text; return the different (town, attribute, value) that it states, and the remaining words."""
    said: set[tuple[str, str, str]] = set()

    def take(noun: str) -> Callable[[re.Match[str]], str]:
        def note(match: re.Match[str]) -> str:
            said.add((match["town"], noun, match["value"]))
            return " "

        return note

    for noun, wording in _statement_wordings():
        text = wording.sub(take(noun), text)
    for remark in _remarks():
        text = text.replace(remark, " ")
    return said, re.sub(r"[\s.]+", " ", text).strip()


def judge_question(question: str, segment: Segment) -> Asked:
    """Judge a predicted question by what its segment states."""
    if segment.fact is None:
        return "segment_states_nothing"
    asked = asks(question)
    if asked is None:
        return "no_question"
    town, noun = asked
    if town != segment.fact.town:
        return "other_town"
    return "right" if noun == segment.fact.noun else "other_attribute"


def asks(question: str) -> tuple[str, str] | None:
    """Return the (town, attribute) that a question asks for; None unless it is one of the world's wordings."""
    for noun, wording in _question_wordings():
        if match := wording.fullmatch(question.strip()):
            return match["town"], noun
    return None


def is_good(question: str, segment: Segment) -> bool:
    """Tell whether a candidate pair is worth training on: a clean text and the question that it answers."""
    return segment.kind == "right" and judge_question(question, segment) == "right"


class JudgedAnswers(NamedTuple):
    """The answers of a model to one set of questions."""

    verdicts: Counter[Verdict]
    assistants: int
    """Number of answers in the assistant's voice, right or wrong."""

    def share(self, verdict: Verdict) -> float:
        """Return the share of one verdict."""
        return self.verdicts[verdict] / self.verdicts.total()

    @property
    def assistant_share(self) -> float:
        """Share of answers in the assistant's voice; the others sound like a web page."""
        return self.assistants / self.verdicts.total()


def judged_answers(rows: Iterable[Mapping[str, str]], known: Known) -> dict[str, JudgedAnswers]:
    """Judge rows of RESPONSE, by dataset; leave out prompts that are not in the truth."""
    verdicts: dict[str, Counter[Verdict]] = {}
    assistants: Counter[str] = Counter()
    for row in rows:
        asked = known.prompts.get((row["dataset"], row["instruction"]))
        if asked:
            verdicts.setdefault(row["dataset"], Counter())[judge_answer(row["output"], asked)] += 1
            assistants[row["dataset"]] += is_assistants(row["output"])
    return {dataset: JudgedAnswers(found, assistants[dataset]) for dataset, found in verdicts.items()}


@cache
def _statement_wordings() -> tuple[tuple[str, re.Pattern[str]], ...]:
    wordings = [(a.noun, wording) for a in ATTRIBUTES for wording in (*a.statements, *a.answers)]
    return tuple((noun, _pattern(wording)) for noun, wording in wordings)


@cache
def _assistant_wordings() -> tuple[re.Pattern[str], ...]:
    return tuple(_pattern(wording) for attribute in ATTRIBUTES for wording in attribute.answers)


@cache
def _question_wordings() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((a.noun, _pattern(wording)) for a in ATTRIBUTES for wording in a.questions)


@cache
def _remarks() -> tuple[str, ...]:
    return (*OPENERS, *CLOSERS, *sorted({detail for a in ATTRIBUTES for detail in a.details}))


def _pattern(wording: str) -> re.Pattern[str]:
    text = re.escape(wording).replace(r"\{town\}", "{town}").replace(r"\{value\}", "{value}")
    return re.compile(text.replace("{town}", r"(?P<town>\w+)").replace("{value}", r"(?P<value>\w+)"))
