"""Measure a run on the toy web against its truth; the judge reads the run's tables, and no stage reads the truth.

Measures the accuracy of every model's answers and of the backward model's questions, the precision, recall and AUC of
every rater over the candidates, and the base model's self-check. Rates are shares of 1.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from humpback_ray import storage
from humpback_ray.graph import each_round
from humpback_ray.miniature.judge import (
    Asked,
    JudgedAnswers,
    Known,
    is_good,
    judge_question,
    judged_answers,
    read_truth,
)
from humpback_ray.records import NOT_PASSED_ON
from humpback_ray.sample.build import web_files
from humpback_ray.sample.selfcheck import Check, area_under_curve, check_pairs, selfcheck
from humpback_ray.sample.world import WorldRecipe
from humpback_ray.stages.manifest import Manifest


@dataclass(frozen=True)
class RatingQuality:
    """How well a model's ratings separate good candidates from the others."""

    rated: int
    failed: int
    kept: int
    """Number of candidates that the round kept."""
    precision: float | None
    """Share of kept candidates that are good; None if none was kept."""
    recall: float | None
    """Share of good candidates that were kept; None if none is good."""
    auc: float | None
    """Chance that a good candidate is rated above another; unrated ones rank lowest. None unless both kinds exist."""


@dataclass(frozen=True)
class Candidates:
    """The judge's view of the candidates."""

    good: frozenset[str]
    """Ids of the pairs worth training on."""
    others: frozenset[str]
    questions: Counter[Asked]
    """Kinds of questions, for candidates whose segment states a fact."""
    kinds: Counter[str]
    """Kinds of segments; "unknown": no segment of the truth has this address and text."""


@dataclass(frozen=True)
class Measures:
    """All measurements of one run; parts whose stages are not finished are empty."""

    checks: list[Check] = field(default_factory=list)
    candidates: Candidates | None = None
    raters: dict[int, RatingQuality] = field(default_factory=dict)
    """By round."""
    answers: dict[str, dict[str, JudgedAnswers]] = field(default_factory=dict)
    """By model and dataset (`toy_test_unseen`)."""

    @property
    def question_accuracy(self) -> float | None:
        """Share of right questions among the candidates whose segment states a fact."""
        questions = self.candidates.questions if self.candidates else Counter[Asked]()
        return questions["right"] / questions.total() if questions else None

    def accuracy(self, model: str, dataset: str) -> float | None:
        """Share of right answers of a model."""
        found = self.answers.get(model, {}).get(dataset)
        return found.share("right") if found else None


def measure(manifests: Mapping[str, Manifest]) -> Measures | None:
    """Judge the finished stages of a run, by name; None if the run is not on a toy web."""
    web = manifests.get("sample/web")
    if web is None:
        return None
    known = known_of(web)
    found = judged_candidates(manifests["candidates"], known) if "candidates" in manifests else None
    if found and set(found.kinds) <= {"unknown"}:
        found = None  # real pages, tried with the toy's base model: their truth is not known
    raters: dict[int, RatingQuality] = {}
    rated = each_round(manifests, "round-{t}/scores")
    for number, curated in each_round(manifests, "round-{t}/curated").items():
        if found and (scores := rated.get(number)):
            kept = {id_ for table in curated.tables(["id"]) for id_ in table["id"].to_pylist()}
            raters[number] = rating_quality(scores_of(scores), found, kept, scores.drops.get(NOT_PASSED_ON, 0))
    answered = each_round(manifests, "evaluation/m{t}")
    answers = {f"m{t}": judged_answers(rows(manifest), known) for t, manifest in answered.items()}
    return Measures(base_checks(web, manifests.get("sample/ratings")), found, raters, answers)


def known_of(web: Manifest) -> Known:
    """Read the truth of a toy web."""
    lines = storage.read_bytes(web_files(web, "truth.jsonl")).decode().splitlines()
    return read_truth(lines)


def base_checks(web: Manifest, ratings: Manifest | None) -> list[Check]:
    """Sum up the base model's self-check."""
    return selfcheck(check_pairs(WorldRecipe.model_validate(web.recipe)), scores_of(ratings)) if ratings else []


def judged_candidates(candidates: Manifest, known: Known) -> Candidates:
    """Tell good candidates from others."""
    good, others, questions, kinds = set(), set(), Counter[Asked](), Counter[str]()
    for row in rows(candidates, ["id", "url", "instruction", "response"]):
        segment = known.segments.get((row["url"], row["response"]))
        kinds[segment.kind if segment else "unknown"] += 1
        if segment and segment.fact:
            questions[judge_question(row["instruction"], segment)] += 1
        (good if segment and is_good(row["instruction"], segment) else others).add(row["id"])
    return Candidates(frozenset(good), frozenset(others), questions, kinds)


def rating_quality(
    scores: Mapping[str, float | None], candidates: Candidates, kept: Collection[str], passed_over: int = 0
) -> RatingQuality:
    """Compare one round's ratings with the truth; `passed_over` of the pairs without a score did not need a rating."""
    right = len(candidates.good & set(kept))
    failed = sum(score is None for score in scores.values()) - passed_over
    good, others = ([scores[id_] for id_ in ids] for ids in (candidates.good, candidates.others))
    return RatingQuality(
        rated=len(scores) - failed - passed_over,
        failed=failed,
        kept=len(kept),
        precision=right / len(kept) if kept else None,
        recall=right / len(candidates.good) if candidates.good else None,
        auc=area_under_curve(good, others) if good and others else None,
    )


def scores_of(scores: Manifest) -> dict[str, float | None]:
    """Return the score of every pair by id; None if it has no score."""
    return {row["id"]: row["score"] for row in rows(scores, ["id", "score"], kept=False)}


def rows(manifest: Manifest, columns: list[str] | None = None, kept: bool = True) -> Iterator[dict]:
    """Yield the rows of a stage's table."""
    for table in manifest.tables(columns, kept=kept):
        yield from table.to_pylist()
