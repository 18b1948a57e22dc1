"""Everything that annotation files say about models: win rates, intervals, lengths, comparisons of models.

Models with the same reference and annotator are a family: one bootstrap over all of their prompts gives the intervals
of their win rates, of the rates by dataset and category, and of the differences between each two models. A difference
counts the prompts that both models were judged on, so it may differ from that of the two win rates.
"""

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from humpback_ray.evaluate.bootstrap import Interval, Sums, differences, rate_interval, resampled
from humpback_ray.evaluate.judged import Floats, Judged
from humpback_ray.evaluate.lengthcontrol import Gamed, LengthControlled, length_controlled
from humpback_ray.evaluate.winrate import Tally, scored, tally

RESAMPLES = 10_000
_POWER = 0.8416
"""Standard normal quantile of 0.8."""


@dataclass(frozen=True)
class Part(Tally):
    """Win rate on one dataset or category."""

    interval: Interval


@dataclass(frozen=True)
class Comparison:
    """A model compared with another one on the prompts that both were judged on, in percentage points."""

    other: str
    """Its label."""
    n_prompts: int
    win_rate: float
    other_win_rate: float
    difference: float
    standard_error: float
    interval: Interval
    share_better: float
    """Share of resamples in which this model is above the other."""
    p_value: float
    n_comparisons: int
    """Number of differences that `p_adjusted` and `simultaneous_interval` are corrected for."""
    p_adjusted: float
    simultaneous_interval: Interval
    decided: bool
    """True if the simultaneous interval leaves out 0."""
    detectable: float
    """True difference that as many prompts decide in 4 of 5 cases; NaN if the difference never varies."""


@dataclass(frozen=True)
class Standing:
    """What annotations say about a model; rates in percent, lengths in characters, None where there is no figure."""

    model: str
    label: str
    """The model's name, followed by `source` if two models with the same reference and annotator have that name."""
    reference: str
    annotator: str
    source: str
    """The argument that named the files."""
    win_rate: float
    standard_error: float
    interval: Interval
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    discrete_win_rate: float
    win_rate_of_judged: float
    """AlpacaEval's number: without the missing outputs that count as losses."""
    n_no_verdict: int
    """Rows that were left out."""
    n_missing_outputs: int
    """Missing outputs without a verdict, which count as losses."""
    n_empty_outputs: int
    """Missing or blank outputs with a verdict, which counts."""
    n_prompts: int
    """Different prompts."""
    n_absent_prompts: int
    """Prompts of other models with the same reference and annotator that this model has no row for."""
    n_swapped: int
    """Rows in which the model is `generator_1`."""
    avg_length: int | None
    """Mean length of the model's outputs, rounded down as on the leaderboard."""
    reference_avg_length: int | None
    length_controlled: LengthControlled | str
    """The fit, or why there is none."""
    by_dataset: dict[str, Part] | None
    by_category: dict[str, Part] | None
    comparisons: list[Comparison] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the figures that there are; NaN is null."""
        fields = dataclasses.asdict(self) | {"length_controlled": None} | self._length_controlled()
        return {name: _plain(value) for name, value in fields.items() if value is not None}

    def _length_controlled(self) -> dict[str, Any]:
        if isinstance(found := self.length_controlled, str):
            return {"length_controlled_missing": found}
        return {
            "length_controlled_win_rate": 100 * found.rate,
            "length_controlled_glm": found.glm,
            "length_controlled_interval": found.interval and _percent(found.interval),
            "lc_standard_error": None if found.spread is None else 100 * found.spread,
        }


def standings(
    judged: Sequence[Judged], gamed: Gamed | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> list[Standing]:
    """Compute the standing of every model, in the given order.

    Args:
        judged: each model's rows.
        gamed: AlpacaEval's table, for `length_controlled_v1`.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ConfigError: `gamed` does not fit the rows.
    """
    families: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for at, one in enumerate(judged):
        families[one.reference, one.annotator].append(at)
    found: dict[int, Standing] = {}
    for members in families.values():
        family = _Family([judged[at] for at in members], resamples, seed)
        found |= {at: family.standing(number, gamed) for number, at in enumerate(members)}
    return [found[at] for at in range(len(judged))]


class _Family:
    """Models with the same reference and annotator; every rate that is asked for has a column of totals per prompt."""

    def __init__(self, family: Sequence[Judged], resamples: int, seed: int) -> None:
        self.family = family
        times = Counter(one.model for one in family)
        self.labels = [one.model if times[one.model] == 1 else f"{one.model} ({one.source})" for one in family]
        self.values = [scored(one) for one in family]
        known = {name: at for at, name in enumerate(dict.fromkeys(name for one in family for name in one.prompts))}
        self.prompts = [np.array([known[name] for name in one.prompts], dtype=np.intp) for one in family]
        self.size = len(known)
        self._columns: dict[tuple[int, bytes], int] = {}
        self._totals: list[tuple[Floats, Floats]] = []
        self.whole = [self._column(at, ~np.isnan(values)) for at, values in enumerate(self.values)]
        self.parts = [
            {(group, name): self._column(at, np.array(of) == name) for group, of in one.groups.items() for name in of}
            for at, one in enumerate(family)
        ]
        pairs = {pair: self._pair(*pair) for pair in combinations(range(len(family)), 2)}
        sums, counts = zip(*self._totals, strict=True)
        totals = Sums(np.column_stack(sums), np.column_stack(counts))
        self.used = (totals.counts > 0).sum(axis=0)
        self.rates, self.draws = totals.rates(), resampled(totals, resamples, seed)
        self.pairs = {pair: columns for pair, columns in pairs.items() if self.used[columns[0]]}
        found = differences(totals, self.draws, list(self.pairs.values()))
        self.differences = dict(zip(self.pairs, found, strict=True))

    def _column(self, model: int, rows: npt.NDArray[np.bool_]) -> int:
        """Return the column of a model's rate over some of its rows."""
        used = rows & ~np.isnan(self.values[model])
        at = self._columns.setdefault((model, used.tobytes()), len(self._totals))
        if at == len(self._totals):
            prompts = self.prompts[model][used]
            counts = np.bincount(prompts, minlength=self.size).astype(np.float64)
            sums = np.bincount(prompts, self.values[model][used], self.size).astype(np.float64)
            self._totals.append((sums, counts))
        return at

    def _pair(self, one: int, other: int) -> tuple[int, int]:
        """Return the columns of two models' rates over the prompts that both were judged on."""
        both = (self._totals[self.whole[one]][1] > 0) & (self._totals[self.whole[other]][1] > 0)
        return self._column(one, both[self.prompts[one]]), self._column(other, both[self.prompts[other]])

    def interval(self, column: int) -> Interval:
        """Return the interval of a rate, in percent."""
        return _percent(rate_interval(self.draws[:, column], float(self.rates[column]), int(self.used[column])))

    def standing(self, at: int, gamed: Gamed | None) -> Standing:
        """Return the standing of one model."""
        one, values = self.family[at], self.values[at]
        missing = one.empty & np.isnan(one.values)
        groups: defaultdict[str, dict[str, Part]] = defaultdict(dict)
        for (group, name), column in sorted(self.parts[at].items()):
            rows = values[np.array(one.groups[group]) == name]
            groups[group][name] = Part(**vars(tally(rows)), interval=self.interval(column))
        return Standing(
            model=one.model,
            label=self.labels[at],
            reference=one.reference,
            annotator=one.annotator,
            source=one.source,
            **vars(tally(values)),
            interval=self.interval(self.whole[at]),
            win_rate_of_judged=tally(one.values).win_rate,
            n_no_verdict=int(np.isnan(values).sum()),
            n_missing_outputs=int(missing.sum()),
            n_empty_outputs=int((one.empty & ~missing).sum()),
            n_prompts=len(set(one.prompts)),
            n_absent_prompts=self.size - len(set(one.prompts)),
            n_swapped=one.swapped,
            avg_length=_mean_length(one.characters),
            reference_avg_length=_mean_length(one.reference_characters),
            length_controlled=length_controlled(one, values, gamed),
            by_dataset=groups.get("dataset"),
            by_category=groups.get("category"),
            comparisons=[self._comparison(at, pair) for pair in self.pairs if at in pair],
        )

    def _comparison(self, at: int, pair: tuple[int, int]) -> Comparison:
        """Return the difference of a pair as the model `at` sees it."""
        (one, other), found = pair, self.differences[pair]
        mine, theirs = self.pairs[pair]
        if at == other:
            one, other, mine, theirs, found = other, one, theirs, mine, found.turned()
        return Comparison(
            other=self.labels[other],
            n_prompts=int(self.used[mine]),
            win_rate=100 * float(self.rates[mine]),
            other_win_rate=100 * float(self.rates[theirs]),
            difference=100 * found.value,
            standard_error=100 * found.standard_error,
            interval=_percent(found.interval),
            share_better=found.share_better,
            p_value=found.p_value,
            n_comparisons=len(self.pairs),
            p_adjusted=found.p_adjusted,
            simultaneous_interval=_percent(found.simultaneous),
            decided=found.decided,
            detectable=100 * (found.critical + _POWER) * found.standard_error or math.nan,
        )


def _mean_length(characters: Floats) -> int | None:
    """Return the mean length, rounded down; None if the files hold no outputs."""
    return None if not len(characters) or np.isnan(characters).any() else int(characters.mean())


def _percent(interval: Interval) -> Interval:
    return Interval(100 * interval.low, 100 * interval.high)


def _plain(value: Any) -> Any:
    """Return a value that JSON has."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
