"""What win rates and comparisons decide and what they cannot, in sentences for people."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

from humpback_ray.evaluate.bootstrap import Interval
from humpback_ray.evaluate.lengthcontrol import LengthControlled
from humpback_ray.evaluate.standings import Comparison, Standing

FEW_PROMPTS = 30
"""Below this number of prompts, bootstrap intervals are too narrow."""
MOST_COMPARISONS = 15
"""If there are more, only neighbors in the ranking are compared in sentences."""
CANNOT = (
    "These are preferences of one judge on these prompts. The files do not say whether people agree with it, or what "
    "it would say about other prompts."
)
_FITS = {
    "glm_preference": "the mean of AlpacaEval's own predictions in the files (glm_preference)",
    "length_controlled_v1": "the rate as AlpacaEval 2 defines it (length_controlled_v1)",
    "length_controlled_minimal": "AlpacaEval's smallest model, which leaves out how difficult prompts are "
    "(length_controlled_minimal); for the leaderboard's figure, give its table with --difficulty",
}


def range_of(interval: Interval | None) -> str:
    """Return an interval in words; "" if there is none."""
    return "" if interval is None or math.isnan(interval.low) else f"{interval.low:.1f} to {interval.high:.1f}"


def sentences(standing: Standing) -> Iterator[str]:
    """Yield what a model's win rate decides, and how its rows were counted."""
    if not standing.n_total:
        yield f"{standing.label}: no verdict in {standing.n_no_verdict} rows, so there is no win rate."
        return
    yield _against_reference(standing)
    if standing.n_prompts < FEW_PROMPTS:
        few = f"{standing.n_prompts} prompts are few, so the intervals are too narrow"
        yield f"{standing.label}: {few}; use at least {FEW_PROMPTS}."
    counted = (
        (standing.n_no_verdict, "without a verdict, left out"),
        (
            standing.n_missing_outputs,
            "with a missing output and no verdict, counted as losses "
            f"({standing.win_rate_of_judged:.2f} % without them)",
        ),
        (standing.n_empty_outputs, "with an empty output that was judged, counted as judged"),
        (standing.n_swapped, f"with {standing.reference} as generator_2, turned around"),
    )
    for rows, what in counted:
        if rows:
            yield f"{standing.label}: {rows:,} row{'s' * (rows != 1)} {what}."
    if standing.n_absent_prompts:
        absent = f"{standing.n_absent_prompts:,} prompts that other models have"
        yield f"{standing.label}: no row for {absent}; they are left out, although a missing answer would be a loss."
    rows = standing.n_total + standing.n_no_verdict
    if standing.n_prompts < rows:
        prompts = f"{standing.n_prompts:,} prompts; a prompt's rows are resampled together"
        yield f"{standing.label}: {rows:,} rows hold {prompts}."


def _against_reference(standing: Standing) -> str:
    low, high = standing.interval
    verdict = "the judge prefers neither reliably, since 50 lies in the interval"
    if low > 50:
        verdict = f"the judge prefers it to {standing.reference}"
    elif high < 50:
        verdict = f"the judge prefers {standing.reference}"
    elif math.isnan(low):
        verdict = "one prompt has no interval"
    return f"{standing.label} against {standing.reference}: {standing.win_rate:.2f} % wins, {verdict}."


def equal_lengths(standings: Sequence[Standing]) -> Iterator[str]:
    """Yield how the length-controlled rates were made, and why others are absent."""
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for one in standings:
        found = one.length_controlled
        reasons[found.glm if isinstance(found, LengthControlled) else found].append(one.label)
    for reason, models in reasons.items():
        yield f"Equal length, {', '.join(models)}: {_FITS.get(reason, f'no rate, because {reason}')}."
    if shrunk := [one.label for one in standings if _is_shrunk(one.length_controlled)]:
        yield f"Equal length, {', '.join(shrunk)}: the fit's penalty sets the rate to 50, which is no estimate."


def _is_shrunk(found: LengthControlled | str) -> bool:
    return isinstance(found, LengthControlled) and bool(found.weights) and found.interval is None


def compared(standings: Sequence[Standing]) -> Iterator[str]:
    """Yield a sentence per comparison; of many comparisons, those of neighbors in the ranking."""
    families: defaultdict[tuple[str, str], list[Standing]] = defaultdict(list)
    for one in standings:
        if one.comparisons:
            families[one.reference, one.annotator].append(one)
    for family in families.values():
        ranked = sorted(family, key=lambda one: -one.win_rate)
        places = {one.label: place for place, one in enumerate(ranked)}
        number = family[0].comparisons[0].n_comparisons
        reach = 1 if number > MOST_COMPARISONS else len(ranked)
        for place, one in enumerate(ranked):
            below = {places[found.other] - place: found for found in one.comparisons}
            for distance in sorted(set(range(1, reach + 1)) & below.keys()):
                yield _comparison(one.label, below[distance])
        if number > MOST_COMPARISONS:
            yield f"These are neighbors in the ranking; --json has all {number:,} comparisons."


def _comparison(label: str, found: Comparison) -> str:
    several = found.n_comparisons > 1
    name = f"95 % interval{f' for {found.n_comparisons} comparisons' if several else ''}"
    if found.n_prompts < FEW_PROMPTS:
        name = f"few prompts, so an interval that is too narrow; {name}"
    range_ = f"{name} {range_of(found.simultaneous_interval)}"
    if found.decided:
        better, worse = (label, found.other) if found.difference > 0 else (found.other, label)
        size = abs(found.difference)
        turned = range_ if found.difference > 0 else f"{name} {range_of(_negative(found.simultaneous_interval))}"
        return f"{better} beats {worse} by {size:.1f} points ({turned}; {found.n_prompts:,} prompts)."
    undecided = f"{label} and {found.other}: undecided; the difference is {found.difference:+.1f} points ({range_})."
    if math.isnan(found.detectable):
        return undecided
    prompts = f"These {found.n_prompts:,} prompts decide"
    return f"{undecided} {prompts} a true difference of {found.detectable:.1f} points in 4 of 5 cases."


def _negative(interval: Interval) -> Interval:
    return Interval(-interval.high, -interval.low)
