"""Selection: rated candidates at or above a threshold, the best k or the best share become pairs.

A global step, redone as a whole, since top-k and the share depend on every shard. Every candidate leaves once, kept or
with a reason; an unrated one keeps the reason of its failed rating. A sample of the passing candidates, or of all, is
the paper's way to compare curated with uncurated data at equal size.

Pairs at or above the threshold are visited from best to worst, ties by id. A pair is dropped if it resembles a pair
that stays (`near_duplicate`) or if its domain is full (`over_domain_cap`), so only better pairs that stay can displace
it. `top_k` and `share` count the pairs that stay, and `sample` draws from them.
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
"""Drop reasons, in the order in which the rules apply."""


class SelectRecipe(Config):
    """Which rated pairs are kept. Hashed into the curated data."""

    version: int = Field(default=2, ge=1)
    """Bumped by hand when the meaning of selection changes."""

    threshold: float | None = Field(default=4.5, allow_inf_nan=False)
    """Keep scores at or above this, on the scorer's scale; 4.5 is the paper's A_5, 4 its A_4. None: off, and `top_k` or
    `share` decides. A scorer without a scale (`likelihood`) takes no threshold."""

    top_k: int | None = Field(default=None, ge=1)
    """Keep the k best; ties are broken by id. None: off."""

    share: float | None = Field(default=None, gt=0, le=1)
    """Keep the best pairs, up to this share of the rated ones, rounded up; ties are broken by id. The paper's A_5 is
    0.083 of its candidates, its A_4 0.388. None: off."""

    near_duplicate_jaccard: float | None = Field(default=None, gt=0, le=1)
    """Instructions whose sets of words overlap at least this much (Jaccard) are near-duplicates; the best-rated stay.
    Start with 0.8; 1 requires equal sets. None: off, as in the paper."""

    near_duplicate_words: int = Field(default=1, ge=1)
    """n of the word n-grams that are compared; above 1 the order of words counts, and one changed word counts more."""

    max_per_cluster: int = Field(default=1, ge=1)
    """How many near-duplicates of each other stay."""

    max_per_domain: int | None = Field(default=None, ge=1)
    """How many pairs of one domain stay, the best ones. Domains follow the public suffix list: "blog.a.co.uk" is in
    "a.co.uk", "a.github.io" is a domain. Pages without a known URL are not capped. None: off, as in the paper."""

    sample: int | None = Field(default=None, ge=1)
    """Keep this many of the passing pairs, drawn at random; the paper varies the size of A_5 this way (its data-scaling
    figure). Without threshold, top_k and share it draws from all candidates, including unrated ones: the uncurated
    control."""

    sample_seed: int = 0
    """Another seed draws another sample; with the same seed, larger samples contain smaller ones."""

    min_kept: int = Field(default=1, ge=0)
    """Fewer kept pairs than this stop the run before the next model is trained. Not hashed."""

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
        """True if the rule uses ratings; otherwise it draws from all candidates, including unrated ones."""
        return self.threshold is not None or self.top_k is not None or self.share is not None

    @property
    def compares(self) -> bool:
        """True if selection uses more than scores."""
        return self.near_duplicate_jaccard is not None or self.max_per_domain is not None

    @property
    def words(self) -> str:
        """The rule in words."""
        rule = f"the best {self.top_k}" if self.top_k is not None else "all"
        rule = f"the best {100 * self.share:g} %" if self.share is not None else rule
        rule = f"scores >= {self.threshold:g}" if self.threshold is not None else rule
        if self.near_duplicate_jaccard is not None:
            jaccard = f"Jaccard >= {self.near_duplicate_jaccard:g}"
            rule += f", at most {self.max_per_cluster} per cluster of near-duplicates ({jaccard})"
        if self.max_per_domain is not None:
            rule += f", at most {self.max_per_domain} per domain"
        return rule if self.sample is None else f"{self.sample} of {rule}"


class TooFewKept(StageFailed):
    """Selection kept fewer pairs than the recipe wants."""


def passing(scores: Mapping[str, float | None], rule: SelectRecipe) -> list[str]:
    """Return the ids that a rule considers: rated ones at or above the threshold, best first, ties by id.

    A rule that does not use ratings considers unrated ones too, last.
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
    """Decide the fate of each id.

    Args:
        scores: by id; None if the rating failed.
        rule: decides which of them stay.
        instructions: by id, for all that are `passing`; needed to find near-duplicates.
        urls: by id, for all that are `passing`; needed to cap domains.

    Returns:
        By id, in the order given: None if it is kept, else the drop reason.

    Raises:
        KeyError: an instruction or a URL that the rule needs is missing.
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
    """Return the fates of ids, best first: each stays, or is dropped because of better ones that stay."""
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
    """Return the registered domain of a URL's host; the host itself if it has none, "" without a host."""
    try:
        host = (urlsplit(url if "//" in url else f"//{url}").hostname or "").rstrip(".")
    except ValueError:  # brackets without an IPv6 address
        return ""
    numbered = ":" in host or host.rpartition(".")[2].isdecimal()
    return host if numbered else _suffixes().privatesuffix(host) or host


@functools.cache
def _suffixes() -> "PublicSuffixList":
    """Load the list that comes with the package; nothing is downloaded."""
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList()


class RuleCount(TypedDict):
    """How many candidates a rule dropped, and how many it left."""

    rule: str
    dropped: int
    kept: int


def counts_by_rule(fates: Mapping[str, str | None]) -> list[RuleCount]:
    """Count how many candidates each rule dropped and left; in order, without rules that dropped none."""
    dropped, left, found = Counter(fates.values()), len(fates), list[RuleCount]()
    for reason in RULES:
        if dropped[reason]:
            left -= dropped[reason]
            found.append({"rule": reason, "dropped": dropped[reason], "kept": left})
    return found


class Rating(TypedDict):
    """The columns of SCORE that selection reads."""

    id: str
    score: float | None
    drop_reason: str | None


def curate(candidates: pa.Table, ratings: Mapping[str, Rating], fates: Mapping[str, str | None]) -> pa.Table:
    """Turn candidates into pairs by the fates that selection decided.

    Args:
        candidates: rows of CANDIDATE, all or some of them.
        ratings: rows of SCORE by id.
        fates: from `select`, by id.

    Returns:
        A PAIR row per candidate, source "augmented". Dropped ones have blank text; unrated ones have the reason of the
        failed rating.

    Raises:
        ValueError: a candidate has no rating.
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
    """Raise if fewer pairs were kept than the recipe's `min_kept`.

    Raises:
        TooFewKept: with both numbers and the rule.
    """
    if kept_rows < rule.min_kept:
        raise TooFewKept(
            f"selection ({rule.words}) kept {kept_rows} of {rated_rows} rated pairs, but min_kept is {rule.min_kept}; "
            f"look at the ratings, then lower min_kept, or set another threshold and remove {place}, which holds no "
            "published data"
        )


def check_threshold(rule: SelectRecipe, scorer: ScorerConfig, round_number: int) -> None:
    """Raise if a threshold is off the scorer's scale, or not an integer while each pair gets a single integer score.

    Raises:
        ValueError: with both numbers and the fix; for a validator that sees rule and scorer.
    """
    if rule.threshold is None:
        return
    told = f"round {round_number} keeps scores >= {rule.threshold:g}, but the scores of {scorer.kind}"
    if scorer.scale is None:
        raise ValueError(
            f"{told} have no scale (a likelihood is in nats per token), so nobody can say before rating how many pairs "
            "it keeps; set the round's threshold to null and set its top_k or share (the paper's 4.5 keeps 0.083)"
        )
    lowest, highest, whole = scorer.scale
    if not lowest <= rule.threshold <= highest:
        raise ValueError(f"{told} go from {lowest:g} to {highest:g}; set a threshold in that range")
    if whole and not rule.threshold.is_integer():
        reached = int(rule.threshold) + 1
        raise ValueError(
            f"round {round_number} keeps scores >= {rule.threshold:g} but rates each pair once, so {rule.threshold:g} "
            f"means {reached}; set curate.recipe.scorer.samples to 3, its read to expected, or the threshold to "
            f"{reached}"
        )
