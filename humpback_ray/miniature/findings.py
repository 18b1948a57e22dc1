"""The findings over several seeds: mean and spread of each value, paired difference and verdict of each claim.

A claim compares two values of the same seed, so properties of the world and the base model cancel out. Its interval is
Student's t over the seeds' differences, 95 %. The claim *appears* if the whole interval is above 0, it *does not* if
the whole interval is on the other side, and it is *undecided* otherwise. "At least" claims allow a margin of `MARGIN`
(2 points).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist, mean, stdev
from typing import Literal

Values = dict[str, float | None]
"""The measurements of one seed, by name; None if there was nothing to measure."""

MARGIN = 0.02

T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Student's t, 97.5 % quantile, for 1, 2, ... 30 degrees of freedom (any table of it)."""

Verdict = Literal["appears", "does not", "undecided"]


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, as a comparison of two values."""

    says: str
    left: str
    right: str
    kind: Literal[">", ">="] = ">"
    goal: bool = False
    """Whether the miniature aims to show it; other claims are only looked at."""


UNSEEN = "test.unseen"


def _answers(says: str, left: str, right: str, kind: Literal[">", ">="] = ">", goal: bool = False) -> Claim:
    return Claim(says, f"{left}.{UNSEEN}", f"{right}.{UNSEEN}", kind, goal)


CLAIMS = (
    _answers("M_1 is better than M_0", "m1", "m0", goal=True),
    _answers("M_2 is better than M_0", "m2", "m0", goal=True),
    _answers("curated is better than uncurated at equal size", "m1", "uncurated", goal=True),
    _answers("joint is better than the seed only at equal steps", "m1", "seed-only", goal=True),
    _answers("M_2 is at least as good as M_1", "m2", "m1", ">="),
    Claim("M_1 rates at least as precisely as M_0", "rater-m1.precision", "rater-m0.precision", ">="),
    _answers("joint is better than augmented only", "m1", "augmented-only"),
    _answers("both tags are at least as good as S_a alone", "m1", "asked-seed", ">="),
    _answers("both tags are at least as good as S_w alone", "m1", "asked-augmented", ">="),
    _answers("both tags are at least as good as none at inference", "m1", "asked-none", ">="),
    _answers("both tags are at least as good as never tagged", "m1", "untagged", ">="),
    _answers("curated is better than uncurated at half the size", "curated-half", "uncurated-half"),
    _answers("curated is better than uncurated at a quarter of the size", "curated-quarter", "uncurated-quarter"),
    _answers("four times the curated pairs are better", "m1", "curated-quarter"),
    _answers("four times the uncurated pairs are better (the paper: no)", "uncurated", "uncurated-quarter"),
    _answers("a perfect rater would be better than M_0's ratings", "oracle", "m1"),
    _answers("M_0 is better than the base", "m0", "base"),
)


@dataclass(frozen=True)
class Spread:
    """A value over the seeds."""

    name: str
    seeds: int
    mean: float | None
    sd: float | None
    """With n - 1; None for fewer than two seeds."""


@dataclass(frozen=True)
class Outcome:
    """A claim compared with the seeds' values."""

    claim: Claim
    seeds: int
    difference: float | None
    """Mean of left - right over the seeds that have both."""
    low: float | None
    high: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Findings:
    """All claims and values, over all seeds."""

    seeds: list[int]
    outcomes: list[Outcome]
    spreads: dict[str, Spread]
    values: dict[int, Values]

    def json(self) -> bytes:
        """Serialize, with every seed's values."""
        return json.dumps(asdict(self), indent=1).encode()

    def markdown(self) -> str:
        """Return the tables for docs/miniature.md and the page: claims, accuracies, raters; shares in percent."""
        lines = ["| claim | left | right | difference (95 %) | |", "|---|---|---|---|---|"]
        for outcome in self.outcomes:
            claim = outcome.claim
            pair = " | ".join(self.cell(name) for name in (claim.left, claim.right))
            lines.append(f"| {claim.says} | {pair} | {interval(outcome)} | {outcome.verdict} |")
        lines += [
            "",
            "| right answers, % | unseen towns | pool towns | in the assistant's voice |",
            "|---|---|---|---|",
        ]
        for name, label in ARMS:
            cells = " | ".join(self.cell(f"{name}.{what}") for what in ("test.unseen", "test.pool", "voice"))
            lines.append(f"| {label} | {cells} |")
        lines += ["", "| rater | precision | recall | AUC |", "|---|---|---|---|"]
        for name, label in RATERS:
            cells = " | ".join(self.cell(f"{name}.{what}") for what in ("precision", "recall", "auc"))
            lines.append(f"| {label} | {cells} |")
        lines += ["", f"The backward model's questions: {self.cell('questions')} % right."]
        return "\n".join(lines) + "\n"

    def cell(self, name: str) -> str:
        """Format mean ± standard deviation in percent; "–" if nothing was measured."""
        spread = self.spreads.get(name)
        if spread is None or spread.mean is None:
            return "–"
        return f"{100 * spread.mean:.1f}" + (f" ± {100 * spread.sd:.1f}" if spread.sd is not None else "")


ARMS = (
    ("base", "base model"),
    ("m0", "M_0"),
    ("m1", "M_1: seed + curated, both tags"),
    ("m2", "M_2"),
    ("seed-only", "seed only, M_1's steps"),
    ("augmented-only", "curated only"),
    ("uncurated", "seed + uncurated, as many"),
    ("curated-half", "seed + half of the curated"),
    ("uncurated-half", "seed + uncurated, as many"),
    ("curated-quarter", "seed + a quarter of the curated"),
    ("uncurated-quarter", "seed + uncurated, as many"),
    ("oracle", "seed + as many chosen by the truth"),
    ("asked-seed", "M_1 asked with S_a alone"),
    ("asked-augmented", "M_1 asked with S_w alone"),
    ("asked-none", "M_1 asked without tags"),
    ("untagged", "M_1 never tagged"),
)
"""Name → label, in the order in which they are shown."""

RATERS = (("rater-base", "base model"), ("rater-m0", "M_0"), ("rater-m1", "M_1"), ("rater-m2", "M_2"))


def findings(values: Mapping[int, Values]) -> Findings:
    """Compare every claim with the seeds' values."""
    names = dict.fromkeys(name for found in values.values() for name in found)
    spreads = {name: spread(name, [found.get(name) for found in values.values()]) for name in names}
    return Findings(list(values), [outcome(claim, list(values.values())) for claim in CLAIMS], spreads, dict(values))


def spread(name: str, found: Sequence[float | None]) -> Spread:
    """Return the mean and standard deviation of a value."""
    known = [value for value in found if value is not None]
    return Spread(name, len(known), mean(known) if known else None, stdev(known) if len(known) > 1 else None)


def outcome(claim: Claim, values: Sequence[Values]) -> Outcome:
    """Compare the two values of a claim, seed by seed."""
    pairs = [(found.get(claim.left), found.get(claim.right)) for found in values]
    differences = [left - right for left, right in pairs if left is not None and right is not None]
    if len(differences) < 2:
        alone = differences[0] if differences else None
        return Outcome(claim, len(differences), alone, None, None, "undecided")
    half = quantile(len(differences) - 1) * stdev(differences) / math.sqrt(len(differences))
    low, high = mean(differences) - half, mean(differences) + half
    return Outcome(claim, len(differences), mean(differences), low, high, verdict(claim, low, high))


def verdict(claim: Claim, low: float, high: float) -> Verdict:
    """Judge a claim by the interval of its difference."""
    if low > 0 or (claim.kind == ">=" and low >= -MARGIN):
        return "appears"
    return "does not" if high < 0 or (claim.kind == ">" and high <= 0) else "undecided"


def quantile(degrees: int) -> float:
    """Return Student's t at 97.5 %; beyond the table, the normal quantile, which is slightly too small."""
    return T_975[degrees - 1] if degrees <= len(T_975) else NormalDist().inv_cdf(0.975)


def interval(outcome: Outcome) -> str:
    """Format a difference with its interval, in percentage points."""
    if outcome.difference is None:
        return "–"
    if outcome.low is None or outcome.high is None:
        return f"{100 * outcome.difference:+.1f}"
    return f"{100 * outcome.difference:+.1f} ({100 * outcome.low:+.1f} to {100 * outcome.high:+.1f})"
