"""The scores of each round: how many, how high, and the threshold of keeping; read one file at a time."""

import math
from array import array
from dataclasses import dataclass

from humpback_ray.graph import each_round
from humpback_ray.records import NOT_PASSED_ON
from humpback_ray.report.funnel import Drop, Manifests
from humpback_ray.stages.manifest import Manifest

BINS_PER_POINT = 4
"""Resolution of the score histogram: expected scores are continuous, so whole points would hide their shape."""
GRADES, SUMS = range(1, 6), range(6)
"""The five-point rating scale (Li et al. 2023, arXiv:2308.06259, section 2.3), and the scale for sums of points."""
MOST_POINTS = 40
"""Most points of an open scale; scores outside count at its ends."""


def rounds(manifests: Manifests) -> list[int]:
    """Return the numbers of the rounds that have ratings or a selection, ascending."""
    return sorted({*each_round(manifests, "round-{t}/scores"), *each_round(manifests, "round-{t}/curated")})


@dataclass(frozen=True)
class Ratings:
    """The scores of one round."""

    round: int
    rated: int
    failed: tuple[Drop, ...]
    """Ratings without a score, by reason; shares are of all pairs."""
    bins: tuple[int, ...]
    """Counts from the lowest point in steps of a quarter; the last one holds the highest point itself."""
    whole: tuple[int, ...]
    """Number of pairs whose score is nearest to each point (halves go up)."""
    lowest: float | None
    highest: float | None
    mean: float | None
    threshold: float | None
    """The score from which pairs are kept: the recipe's threshold, or the lowest score kept."""
    kept: int | None
    """None if the selection is not made yet."""
    points: range = GRADES
    """The whole points of the scale."""
    passed_over: int = 0
    """Number of pairs that a cheap scorer did not pass on."""
    replies: int = 0
    """Number of replies, or forward passes, that should give a score."""
    failed_first: int = 0
    """Number of replies without a score before the retry."""
    failed_last: int = 0
    """Number of replies without a score after the retry."""

    @property
    def pairs(self) -> int:
        """Number of pairs to rate."""
        return self.rated + sum(drop.rows for drop in self.failed)

    @property
    def failed_samples_share(self) -> float:
        """Share of the replies that gave no score after the retry."""
        return self.failed_last / self.replies if self.replies else 0.0

    @property
    def failed_share(self) -> float:
        """Share of the pairs whose rating failed."""
        return sum(drop.share for drop in self.failed)


def nearest(score: float, points: range = GRADES) -> int:
    """Return the point of the scale nearest to a score; halves go up."""
    return min(max(math.floor(score + 0.5), points[0]), points[-1])


def points_of(lowest: float, highest: float) -> range:
    """Return the scale of the scores: the grades, the sums, or the whole numbers around them."""
    for points in (GRADES, SUMS):
        if points[0] <= lowest and highest <= points[-1]:
            return points
    top = math.ceil(highest)
    return range(max(math.floor(lowest), top - MOST_POINTS), top + 1)


def ratings(manifests: Manifests, number: int) -> Ratings | None:
    """Read the scores of a round; None if it was not rated."""
    scores = each_round(manifests, "round-{t}/scores").get(number)
    if scores is None:
        return None
    found = array("d")
    replies, first, last = 0, 0, 0
    for table in scores.tables(["score", "samples", "first_failures"], kept=False):
        found.extend(table["score"].drop_null().to_pylist())
        samples = [sample for row in table["samples"].to_pylist() for sample in row or ()]
        failures = [failure for row in table["first_failures"].to_pylist() for failure in row or ()]
        replies, last = replies + len(samples), last + samples.count(None)
        first += len(failures) - failures.count(None)
    ends = (min(found), max(found), sum(found) / len(found)) if found else (None, None, None)
    points = points_of(min(found), max(found)) if found else GRADES
    bins, whole = [0] * ((len(points) - 1) * BINS_PER_POINT + 1), [0] * len(points)
    for score in found:
        bins[min(max(int((score - points[0]) * BINS_PER_POINT), 0), len(bins) - 1)] += 1
        whole[nearest(score, points) - points[0]] += 1
    curated = each_round(manifests, "round-{t}/curated").get(number)
    drops = dict(scores.drops)
    passed_over = drops.pop(NOT_PASSED_ON, 0)
    failed = tuple(Drop(reason, rows, rows / (scores.rows - passed_over)) for reason, rows in drops.items())
    return Ratings(
        number, len(found), failed, tuple(bins), tuple(whole), *ends,
        threshold=threshold(curated) if curated else None, kept=curated.kept if curated else None, points=points,
        passed_over=passed_over, replies=replies, failed_first=first, failed_last=last,
    )  # fmt: skip


def every_rating(manifests: Manifests) -> list[Ratings]:
    """Read the scores of all rated rounds, in order."""
    return [found for number in rounds(manifests) if (found := ratings(manifests, number))]


def threshold(curated: Manifest) -> float | None:
    """Return the recipe's threshold, or the lowest score kept if it has none (as with top-k)."""
    if (named := curated.recipe.get("threshold")) is not None:
        return float(named)
    tables = curated.tables(["score"])
    return min((score for table in tables for score in table["score"].drop_null().to_pylist()), default=None)
