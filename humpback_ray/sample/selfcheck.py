"""Can the base model rate? Answers of known quality for towns that no review mentions, and how a rater rates them.

A model that remembers the reviewed towns, or goes only by the look of an answer, fails here: the towns are the `unseen`
ones, and wrong answers are drawn like right ones. The stage that rates candidates also rates these pairs. Report a base
that cannot rate; never quietly replace it by one with another seed.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from random import Random
from typing import NamedTuple

import pyarrow as pa

from humpback_ray.records import CANDIDATE, record_id
from humpback_ray.sample.crawl import REVIEW_SHARES, Reviewed, reviewable
from humpback_ray.sample.texts import question
from humpback_ray.sample.world import WorldRecipe, truth_of

PER_KIND = 40
"""Pairs of each kind; fewer if the unseen towns have fewer facts."""


class Check(NamedTuple):
    """How one kind of answer was rated."""

    kind: Reviewed
    rated: int
    unread: int
    mean: float | None
    """Mean of the ratings that could be read; None if there are none."""

    auc: float
    """Chance that a right answer is rated above one of this kind; ties count half, unread ratings are lowest."""


class CheckPair(NamedTuple):
    """A question and an answer of known quality."""

    id: str
    kind: Reviewed
    question: str
    answer: str


def check_pairs(recipe: WorldRecipe, per_kind: int = PER_KIND) -> list[CheckPair]:
    """Return, for each kind of reviewed answer, answers in a web page's voice about unseen towns."""
    truth, rng = truth_of(recipe), Random(f"{recipe.seed}:selfcheck")
    facts = truth.of("unseen")
    drawn = rng.sample(facts, min(per_kind, len(facts)))
    pairs: list[CheckPair] = []
    for kind in REVIEW_SHARES:
        for fact in drawn:
            asked, given = question(fact, rng), reviewable(fact, kind, truth, rng, assistant_share=0.0).text
            pairs.append(CheckPair(record_id("check", kind, len(pairs), asked, given), kind, asked, given))
    return pairs


def check_table(pairs: Sequence[CheckPair]) -> pa.Table:
    """Return the pairs as candidates, in an order that does not reveal their kind."""
    rows = [
        {"id": pair.id, "url": "", "instruction": pair.question, "response": pair.answer, "finish_reason": "stop"}
        for pair in sorted(pairs)
    ]
    return pa.Table.from_pylist(rows, schema=CANDIDATE)


def selfcheck(pairs: Sequence[CheckPair], scores: Mapping[str, float | None]) -> list[Check]:
    """Summarize ratings (by pair id) for each kind; `auc` of "right" is 0.5 by definition."""
    by_kind: dict[Reviewed, list[float | None]] = {}
    for pair in pairs:
        by_kind.setdefault(pair.kind, []).append(scores[pair.id])
    right = by_kind["right"]
    return [_check(kind, found, right) for kind, found in by_kind.items()]


def area_under_curve(positive: Sequence[float | None], negative: Sequence[float | None]) -> float:
    """Return the chance that a positive score is above a negative one; ties count half, None is below everything.

    Raises:
        ValueError: one of the two is empty.
    """
    if not positive or not negative:
        raise ValueError(f"the AUC needs both kinds; got {len(positive)} positive and {len(negative)} negative scores")
    below = sorted(_number(score) for score in negative)
    wins = sum(bisect_left(below, _number(s)) + bisect_right(below, _number(s)) for s in positive)
    return wins / 2 / len(positive) / len(negative)


def _number(score: float | None) -> float:
    return float("-inf") if score is None else score


def _check(kind: Reviewed, scores: Sequence[float | None], right: Sequence[float | None]) -> Check:
    read = [score for score in scores if score is not None]
    mean = sum(read) / len(read) if read else None
    return Check(kind, len(scores), len(scores) - len(read), mean, area_under_curve(right, scores))
