"""Compare several scorers on one sample of the candidates: agreement, failures and costs.

The ratings of each scorer are a separate stage (`compare/round-t/<name>`, schema SCORE) over `compare/sample`, so a
comparison resumes like any other stage and its replies can be read. Agreement is Spearman's rank correlation, and the
share of pairs kept by one scorer that another would keep too if both keep equally many.
"""

import heapq
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

import pyarrow as pa
from pydantic import Field, field_validator

from humpback_ray.config import Config
from humpback_ray.curate.scorers import Additive, Likelihood, Rubric, RubricExpected, SingleScorer
from humpback_ray.curate.select import UNSAMPLED
from humpback_ray.placement import TaskPlacement
from humpback_ray.records import CANDIDATE, SCORE, seed_of
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.outputs import TableWriter
from humpback_ray.stages.stage import Place, Stage

_NAME = re.compile(r"[a-z0-9_-]+")


class CompareRecipe(Config):
    """Which scorers `python -m jobs.curate … --compare` compares, and on how many pairs."""

    scorers: dict[str, SingleScorer] = Field(
        default={
            "rubric": Rubric(), "rubric_expected": RubricExpected(), "additive": Additive(), "likelihood": Likelihood()
        },
        min_length=2,
    )  # fmt: skip
    """Scorers by name; the ratings of a name are in `compare/round-t/<name>`."""

    size: int = Field(default=500, ge=2)
    """Number of candidates to rate, drawn by the hash of their ids."""

    seed: int = 0
    """Another seed draws another sample."""

    keep_share: float = Field(default=0.388, gt=0, le=1)
    """The share of the rated pairs in the kept sets that are compared; the paper's A_4 is 38.8 % of its candidates
    (table of data statistics)."""

    @field_validator("scorers")
    @classmethod
    def _names_are_directories(cls, scorers: dict[str, SingleScorer]) -> dict[str, SingleScorer]:
        if odd := [name for name in scorers if not _NAME.fullmatch(name)]:
            raise ValueError(f"{odd[0]!r} names a directory; use only lower-case letters, digits, _ and -")
        return scorers


def make_sample(recipe: CompareRecipe, candidates: Manifest, place: Place, placement: TaskPlacement) -> Manifest:
    """Draw the candidates that all scorers rate; the others are dropped as `not_in_sample`."""
    identity = {"version": 1, "size": recipe.size, "seed": recipe.seed}
    stage = Stage(place, identity, {"candidates": candidates}, CANDIDATE, ids_of="candidates")
    return stage.once(draw, (candidates, recipe.size, recipe.seed), placement)


def draw(attempt: Attempt, candidates: Manifest, size: int, seed: int) -> Commit:
    """Choose by ids alone, then copy the candidates table by table."""
    ids = (row_id for table in candidates.tables(["id"]) for row_id in table["id"].to_pylist())
    chosen = set(heapq.nsmallest(size, ids, key=lambda row_id: (seed_of(row_id, "compare", seed), row_id)))
    writer = TableWriter(attempt, CANDIDATE)
    dropped = {"instruction": "", "response": "", "drop_reason": UNSAMPLED}
    for table in candidates.tables():
        rows = [row if row["id"] in chosen else row | dropped for row in table.to_pylist()]
        writer.write(pa.Table.from_pylist(rows, schema=CANDIDATE))
    return writer.commit()


@dataclass(frozen=True)
class Compared:
    """One scorer on the sample."""

    name: str
    pairs: int
    rated: int
    replies: int
    failed_first: int
    """Replies or forward passes without a score."""
    failed_last: int
    """Those still without a score after the retry."""
    prompt_tokens: int
    """Tokens read, without retries."""
    completion_tokens: int
    """Tokens written, with retries."""
    actor_s: float
    """Seconds of an actor's work, one shard at a time, without loading the model."""
    auc: float | None = None
    """If the truth is known: the chance that a good pair is rated above another; ties count half, unrated are last."""
    truth: float | None = None
    """If the truth is known: Spearman correlation of the scores with good (1) or not (0)."""

    def per_1000(self, value: float) -> float:
        """Return a cost per 1,000 pairs."""
        return 1000 * value / self.pairs


@dataclass(frozen=True)
class Comparison:
    """All scorers on the sample; rows and columns of the matrices are in their order."""

    round: int
    scorers: tuple[Compared, ...]
    kept: int
    """Number of pairs in each kept set."""
    spearman: tuple[tuple[float | None, ...], ...]
    """Over the pairs that both rated; None if one of them gives all pairs the same score."""
    overlap: tuple[tuple[float | None, ...], ...]
    """Share of one scorer's kept set that the other would keep too."""

    def json(self) -> dict[str, Any]:
        """Return it as JSON, with totals and costs per 1,000 pairs."""
        costs = ("prompt_tokens", "completion_tokens", "actor_s")
        scorers = [
            asdict(one) | {f"{name}_per_1000_pairs": one.per_1000(getattr(one, name)) for name in costs}
            for one in self.scorers
        ]
        return asdict(self) | {"scorers": scorers}


def compare(
    round_number: int, found: Mapping[str, Manifest], keep_share: float, good: Collection[str] | None = None
) -> Comparison:
    """Compare the finished ratings of one sample.

    Args:
        round_number: the round of the rating model.
        found: stages with schema SCORE over the same candidates, by name.
        keep_share: size of the kept sets, as a share of the pairs that the scorer with the fewest ratings rated.
        good: ids of good pairs, if the truth is known.
    """
    tables = {name: read(manifest) for name, manifest in found.items()}
    scores = {name: dict(zip(table["id"], table["score"], strict=True)) for name, table in tables.items()}
    rated = {name: {i: s for i, s in by_id.items() if s is not None} for name, by_id in scores.items()}
    kept = round(keep_share * min(map(len, rated.values())))
    best = {name: set(sorted(by_id, key=lambda i: (-by_id[i], i))[:kept]) for name, by_id in rated.items()}
    return Comparison(
        round_number,
        tuple(compared(name, manifest, tables[name], good) for name, manifest in found.items()),
        kept,
        tuple(tuple(agreement(rated[a], rated[b]) for b in found) for a in found),
        tuple(tuple(len(best[a] & best[b]) / kept if kept else None for b in found) for a in found),
    )


class RatingColumns(TypedDict):
    """Columns of SCORE."""

    id: list[str]
    score: list[float | None]
    samples: list[list[float | None] | None]
    first_failures: list[list[str | None] | None]
    prompt_tokens: list[int | None]
    completion_tokens: list[int | None]


COLUMNS = list(RatingColumns.__annotations__)


def read(scores: Manifest) -> RatingColumns:
    """Return the columns of a stage of ratings."""
    return pa.concat_tables([SCORE.empty_table().select(COLUMNS), *scores.tables(COLUMNS, kept=False)]).to_pydict()


def compared(name: str, manifest: Manifest, table: RatingColumns, good: Collection[str] | None) -> Compared:
    """Sum up one scorer's ratings."""
    rated = [score for score in table["score"] if score is not None]
    auc = truth = None
    if good is not None:
        lowest = [-math.inf if score is None else score for score in table["score"]]
        auc = area_under_curve(lowest, [row_id in good for row_id in table["id"]])
        truth = agreement(
            {i: s for i, s in zip(table["id"], table["score"], strict=True) if s is not None},
            {i: float(i in good) for i in table["id"]},
        )
    samples = [sample for row in table["samples"] for sample in row or ()]
    return Compared(
        name=name, pairs=len(table["id"]), rated=len(rated), replies=len(samples),
        failed_first=sum(failure is not None for row in table["first_failures"] for failure in row or ()),
        failed_last=sum(sample is None for sample in samples),
        prompt_tokens=sum(value or 0 for value in table["prompt_tokens"]),
        completion_tokens=sum(value or 0 for value in table["completion_tokens"]),
        actor_s=manifest.work_s, auc=auc, truth=truth,
    )  # fmt: skip


def agreement(left: Mapping[str, float], right: Mapping[str, float]) -> float | None:
    """Return Spearman's rank correlation over the ids that both sides have."""
    both = [row_id for row_id in left if row_id in right]
    return spearman([left[row_id] for row_id in both], [right[row_id] for row_id in both])


def spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Return the correlation of ranks; None if the sides are empty or one has only a single distinct value."""
    a, b = ranks(left), ranks(right)
    middle = (len(a) + 1) / 2
    spread = math.sqrt(sum((x - middle) ** 2 for x in a) * sum((y - middle) ** 2 for y in b))
    return sum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True)) / spread if spread else None


def ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value, 1 for the lowest; equal values share the mean of their ranks."""
    ordered = sorted(values)
    return [(bisect_left(ordered, value) + bisect_right(ordered, value) + 1) / 2 for value in values]


def area_under_curve(scores: Sequence[float], good: Sequence[bool]) -> float | None:
    """Return the chance that a good pair scores above another; ties count half. None unless both kinds exist."""
    count = sum(good)
    others = len(good) - count
    if not count or not others:
        return None
    above = sum(rank for rank, is_good in zip(ranks(scores), good, strict=True) if is_good)
    return (above - count * (count + 1) / 2) / (count * others)
