"""Selection: of the rated candidates, those at or above a threshold, the best k or the best share become pairs.

A global step, redone whole: top-k and the share look at every shard. Every candidate leaves once, kept or with a
reason, and what was never rated keeps the reason why. A sample of what passes, or of all candidates, is the paper's way
to compare curated with uncurated data at equal size.

Pairs at or above the threshold are looked at from the best to the worst, equal scores in the order of their ids. One
falls where it resembles a pair that stays (`near_duplicate`) or its domain has all it may have (`over_domain_cap`), so
a pair is only ever dropped for better ones that stay; `top_k` and `share` count those that stay, and `sample` draws
from them.
"""

import functools
import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self, TypedDict
from urllib.parse import urlsplit

import pyarrow as pa
from pydantic import Field, model_validator

from humpback_ray.config import Config
from humpback_ray.curate.neardup import Leaders
from humpback_ray.curate.scorers import ScorerConfig
from humpback_ray.records import PAIR, seed_of
from humpback_ray.stages.errors import StageFailed

if TYPE_CHECKING:
    from publicsuffixlist import PublicSuffixList

BELOW, OUTSIDE, UNSAMPLED, UNRATED = "below_threshold", "not_in_top_k", "not_in_sample", "unrated"
ALIKE, CAPPED, NOT_BEST = "near_duplicate", "over_domain_cap", "not_in_best_share"
RULES = (UNRATED, BELOW, ALIKE, CAPPED, OUTSIDE, NOT_BEST, UNSAMPLED)
"""In the order in which they apply."""


class SelectRecipe(Config):
    """Which rated pairs are kept. Hashed into the curated data."""

    version: int = Field(default=2, ge=1)
    """Raised by hand when the meaning of selection changes."""

    threshold: float | None = Field(default=4.5, allow_inf_nan=False)
    """Keep scores at or above this, on the scorer's scale; 4.5 is the paper's A_5, 4 its A_4. None: off, then `top_k`
    or `share` decides; a scorer whose scores have no scale (`likelihood`) takes no threshold."""

    top_k: int | None = Field(default=None, ge=1)
    """Keep the k best; equal scores are kept in the order of their ids. None: off."""

    share: float | None = Field(default=None, gt=0, le=1)
    """Keep this share of the rated pairs, the best ones, rounded up; equal scores are kept in the order of their ids.
    The paper's A_5 is 0.083 of its candidates, its A_4 0.388. None: off."""

    near_duplicate_jaccard: float | None = Field(default=None, gt=0, le=1)
    """Of instructions whose sets of words overlap at least this much (Jaccard), the best-rated stay; 0.8 is a start, 1
    takes equal sets alone. None: off, as in the paper."""

    near_duplicate_words: int = Field(default=1, ge=1)
    """n of the word n-grams that are compared; above 1 the order of words counts, and one changed word counts more."""

    max_per_cluster: int = Field(default=1, ge=1)
    """How many of such near-duplicates stay."""

    max_per_domain: int | None = Field(default=None, ge=1)
    """How many pairs of one domain stay, the best ones: of "blog.a.co.uk" that is "a.co.uk", but "a.github.io" is its
    own, by the public suffix list. Pages of unknown address are not capped. None: off, as in the paper."""

    sample: int | None = Field(default=None, ge=1)
    """Of what passes, keep so many drawn by chance: how the paper varies the size of A_5 (its data-scaling figure).
    With neither threshold nor top_k it draws from all candidates, unrated ones included: the uncurated control."""

    sample_seed: int = 0
    """Another seed draws another sample; a larger sample of one seed holds the smaller ones."""

    min_kept: int = Field(default=1, ge=0)
    """Fewer kept pairs stop the run before the next model is trained. Not hashed."""

    @model_validator(mode="after")
    def _has_one_rule(self) -> Self:
        found = [value for value in (self.threshold, self.top_k, self.share) if value is not None]
        if len(found) > 1:
            which, values = "both" if len(found) == 2 else "all", " and ".join(f"{value:g}" for value in found)
            raise ValueError(
                f"set at most one of threshold, top_k and share; {which} are set ({values}). Set the others to null"
            )
        if not found and self.sample is None:
            raise ValueError("threshold, top_k, share and sample are all off, so nothing is selected; set one of them")
        for field in ("top_k", "sample"):
            most = getattr(self, field)
            if most is not None and most < self.min_kept:
                raise ValueError(f"{field} {most} can never reach min_kept {self.min_kept}; lower min_kept")
        return self

    @property
    def by_rating(self) -> bool:
        """Tell whether it asks for ratings: without them it draws from all candidates, unrated ones included."""
        return self.threshold is not None or self.top_k is not None or self.share is not None

    @property
    def compares(self) -> bool:
        """Whether selection looks at more than scores."""
        return self.near_duplicate_jaccard is not None or self.max_per_domain is not None

    @property
    def words(self) -> str:
        """The rule as a person says it."""
        rule = f"the best {self.top_k}" if self.top_k is not None else "all"
        rule = f"the best {100 * self.share:g} %" if self.share is not None else rule
        rule = f"scores >= {self.threshold:g}" if self.threshold is not None else rule
        if self.near_duplicate_jaccard is not None:
            rule += f", at most {self.max_per_cluster} of instructions alike by {self.near_duplicate_jaccard:g}"
        if self.max_per_domain is not None:
            rule += f", at most {self.max_per_domain} of a domain"
        return rule if self.sample is None else f"{self.sample} of {rule}"


class TooFewKept(StageFailed):
    """Selection kept fewer pairs than the recipe wants."""


def passing(scores: Mapping[str, float | None], rule: SelectRecipe) -> list[str]:
    """Return the ids that a rule looks at: rated ones at or above the threshold, best first, ties by id.

    Where the rule does not ask for ratings, unrated ones too, last.
    """
    least = -float("inf") if rule.threshold is None else rule.threshold
    found = sorted((-score, i) for i, score in scores.items() if score is not None and score >= least)
    unrated = [] if rule.by_rating else sorted(i for i, score in scores.items() if score is None)
    return [i for _, i in found] + unrated


def select(
    scores: Mapping[str, float | None],
    rule: SelectRecipe,
    instructions: Mapping[str, str] | None = None,
    urls: Mapping[str, str] | None = None,
) -> dict[str, str | None]:
    """Decide each id's fate.

    Args:
        scores: by id; None where the rating failed.
        rule: which of them stay.
        instructions: by id, of all that are `passing`; needed to tell near-duplicates.
        urls: by id, of all that are `passing`; needed to cap domains.

    Returns:
        By id, in the order given: None where it is kept, else the drop reason.

    Raises:
        KeyError: an instruction or an address that the rule needs is not there.
    """
    order = passing(scores, rule)
    fates = dict.fromkeys(scores, UNRATED) | {i: BELOW for i, score in scores.items() if score is not None}
    fates |= _compared(order, rule, instructions or {}, urls or {})
    stays = [i for i in order if fates[i] is None]
    if rule.sample is not None:
        drawn = sorted(stays, key=lambda i: (seed_of(i, "sample", rule.sample_seed), i))
        fates |= dict.fromkeys(drawn[rule.sample :], UNSAMPLED)
    return fates


def _compared(
    order: list[str], rule: SelectRecipe, instructions: Mapping[str, str], urls: Mapping[str, str]
) -> dict[str, str | None]:
    """Return the fates of ids, best first: each falls for better ones that stay, or stays."""
    fates: dict[str, str | None] = {}
    domains, clusters, kept = Counter[str](), Counter[int](), 0
    most = rule.top_k if rule.share is None else math.ceil(round(rule.share * len(order), 6))
    leaders = None
    if rule.near_duplicate_jaccard is not None:
        leaders = Leaders((instructions[i] for i in order), rule.near_duplicate_jaccard, rule.near_duplicate_words)
    for i in order:
        if kept == most:
            fates[i] = OUTSIDE if rule.share is None else NOT_BEST
            continue
        cluster = leaders.first_like(instructions[i]) if leaders else None
        domain = domain_of(urls[i]) if rule.max_per_domain is not None else ""
        if cluster is not None and clusters[cluster] >= rule.max_per_cluster:
            fates[i] = ALIKE
        elif domain and domains[domain] == rule.max_per_domain:
            fates[i] = CAPPED
        else:
            fates[i], kept = None, kept + 1
            domains[domain] += 1
            if leaders:
                clusters[leaders.add(instructions[i]) if cluster is None else cluster] += 1
    return fates


def domain_of(url: str) -> str:
    """Return the domain that somebody registered for an address's host; a host without one is its own, "" is none."""
    try:
        host = (urlsplit(url if "//" in url else f"//{url}").hostname or "").rstrip(".")
    except ValueError:  # brackets that hold no address
        return ""
    numbered = ":" in host or host.rpartition(".")[2].isdecimal()
    return host if numbered else _suffixes().privatesuffix(host) or host


@functools.cache
def _suffixes() -> "PublicSuffixList":
    """Read the list that comes with the package; nothing is fetched."""
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList()


class RuleCount(TypedDict):
    """Candidates that a rule dropped, and those that it left."""

    rule: str
    dropped: int
    kept: int


def counts_by_rule(fates: Mapping[str, str | None]) -> list[RuleCount]:
    """Return, for each rule that dropped something, in their order, how many it dropped and how many it left."""
    dropped, left, found = Counter(fates.values()), len(fates), list[RuleCount]()
    for reason in RULES:
        if dropped[reason]:
            left -= dropped[reason]
            found.append({"rule": reason, "dropped": dropped[reason], "kept": left})
    return found


class Rating(TypedDict):
    """What selection reads of a row of SCORE."""

    id: str
    score: float | None
    drop_reason: str | None


def curate(candidates: pa.Table, ratings: Mapping[str, Rating], fates: Mapping[str, str | None]) -> pa.Table:
    """Turn candidates into pairs by the fates that selection decided.

    Args:
        candidates: rows of CANDIDATE, any part of them.
        ratings: rows of SCORE by id.
        fates: of `select`, by id.

    Returns:
        A PAIR row per candidate, source "augmented"; dropped ones have blank text, and unrated ones the reason why.

    Raises:
        ValueError: a candidate that has no rating.
    """
    ids = candidates["id"].to_pylist()
    missing = [i for i in ids if i not in fates]
    if missing:
        raise ValueError(f"{len(missing)} of {len(ids)} candidates have no rating, first: {missing[0]}")
    reasons = [(ratings[i]["drop_reason"] or UNRATED) if fates[i] == UNRATED else fates[i] for i in ids]

    def text(column: str) -> list[str]:
        pairs = zip(candidates[column].to_pylist(), reasons, strict=True)
        return [value if reason is None else "" for value, reason in pairs]

    columns = {
        "id": ids,
        "instruction": text("instruction"),
        "response": text("response"),
        "source": ["augmented"] * len(ids),
        "score": [ratings[i]["score"] for i in ids],
        "drop_reason": reasons,
    }
    return pa.Table.from_pydict(columns, schema=PAIR)


def require_kept(kept_rows: int, rated_rows: int, rule: SelectRecipe, place: str) -> None:
    """Raise where fewer pairs were kept than the recipe's `min_kept`.

    Raises:
        TooFewKept: with both numbers and the rule.
    """
    if kept_rows < rule.min_kept:
        raise TooFewKept(
            f"selection ({rule.words}) kept {kept_rows} of {rated_rows} rated pairs, min_kept wants {rule.min_kept}; "
            f"look at the ratings, then lower min_kept, or set another threshold and remove {place}, where nothing is "
            "published"
        )


def check_threshold(rule: SelectRecipe, scorer: ScorerConfig, round_number: int) -> None:
    """Raise where a threshold is off the scorer's scale, or between integers while a pair gets one whole number.

    Raises:
        ValueError: with both numbers and the fix; for a validator that sees rule and scorer.
    """
    if rule.threshold is None:
        return
    told = f"round {round_number} keeps scores >= {rule.threshold:g}, but the scores of {scorer.kind}"
    if scorer.scale is None:
        raise ValueError(
            f"{told} have no scale (a likelihood is in nats per token), so nobody can say before rating what that "
            "keeps; set the round's threshold to null and its top_k or its share (0.083 is what the paper's 4.5 keeps)"
        )
    lowest, highest, whole = scorer.scale
    if not lowest <= rule.threshold <= highest:
        raise ValueError(f"{told} go from {lowest:g} to {highest:g}; set a threshold between them")
    if whole and not rule.threshold.is_integer():
        reached = int(rule.threshold) + 1
        raise ValueError(
            f"round {round_number} keeps scores >= {rule.threshold:g} but rates each pair once, so {rule.threshold:g} "
            f"is {reached}; set curate.recipe.scorer.samples to 3, its read to expected, or the threshold to {reached}"
        )
