"""Paired bootstrap over prompts: intervals of win rates and of differences between them.

A resample draws as many prompts as there are, with replacement, for all models at once, so a prompt that is easy for
every model does not widen the interval of a difference. All rows of a prompt are drawn together: repeated judgments of
one prompt are no new prompts. The same seed gives the same resamples.

Intervals are percentiles (Efron and Tibshirani 1993, chapter 13). For several differences there are also simultaneous
intervals: the largest |t| over all differences in each resample gives their common critical value (Westfall and Young
1993, single-step max-t). That needs no assumption about how the differences depend on each other.

Limits: with fewer than about 30 prompts, percentile intervals are too narrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from humpback_ray.evaluate.judged import Floats

LEVEL = 0.95
"""Coverage of every interval."""
NORMAL = 1.96
"""Standard errors on either side of a normal estimate's interval."""
_TAIL = (1 - LEVEL) / 2
_CHUNK_DRAWS = 1 << 20
_ROUNDING = 1e-12


class Interval(NamedTuple):
    """Bounds of an interval at LEVEL."""

    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Tell whether a value lies outside."""
        return value < self.low or value > self.high


@dataclass(frozen=True)
class Sums:
    """Totals per prompt of a number of rates; a rate is its sum over all prompts divided by its count."""

    sums: Floats
    """Sum of v per prompt and rate, [P, K]."""
    counts: Floats
    """Rows per prompt and rate, [P, K]."""

    def rates(self) -> Floats:
        """Return every rate, [K]; NaN without rows."""
        return _ratio(self.sums.sum(axis=0), self.counts.sum(axis=0))

    def influence(self) -> Floats:
        """Return by how much each prompt moves each rate, [P, K]."""
        return _ratio(self.sums - self.rates() * self.counts, self.counts.sum(axis=0))


@dataclass(frozen=True)
class Difference:
    """The difference of two rates, as shares of 1."""

    value: float
    standard_error: float
    interval: Interval
    share_better: float
    """Share of resamples in which the first rate is above the second; equal rates count for neither."""
    share_worse: float
    p_value: float
    """Two-sided, for this difference alone."""
    p_adjusted: float
    """The same, corrected for the number of differences."""
    simultaneous: Interval
    """All of the differences lie in their simultaneous intervals in 95 of 100 studies; `interval` if there is one."""
    critical: float
    """Standard errors on either side of a difference that its deciding interval spans."""

    @property
    def decided(self) -> bool:
        """Tell whether the sign of the difference is known."""
        return self.simultaneous.excludes(0)

    def turned(self) -> "Difference":
        """Return second minus first."""
        low, high = self.interval
        wide_low, wide_high = self.simultaneous
        return replace(
            self,
            value=-self.value,
            interval=Interval(-high, -low),
            share_better=self.share_worse,
            share_worse=self.share_better,
            simultaneous=Interval(-wide_high, -wide_low),
        )


def resampled(totals: Sums, resamples: int, seed: int) -> Floats:
    """Return every rate in every resample, [B = resamples, K]; NaN where a resample has none of a rate's rows."""
    generator, prompts = np.random.default_rng(seed), len(totals.sums)
    out, step = np.empty((resamples, totals.sums.shape[1])), max(1, _CHUNK_DRAWS // prompts)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = generator.integers(0, prompts, (size, prompts)) + prompts * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * prompts).reshape(size, prompts).astype(np.float64)
        out[start : start + size] = _ratio(times @ totals.sums, times @ totals.counts)
    return out


def interval(draws: Floats) -> Interval:
    """Return the percentile interval of one rate's resamples, [B]."""
    low, high = np.nanquantile(draws, (_TAIL, 1 - _TAIL)) if not np.isnan(draws).all() else (np.nan, np.nan)
    return Interval(float(low), float(high))


def rate_interval(draws: Floats, rate: float, prompts: int) -> Interval:
    """Return the interval of a win rate; resamples of nothing but wins, or losses, give an exact bound instead.

    If the true rate is r, all of n prompts are won with a probability of at most r^n.
    """
    if prompts < 2:
        return Interval(np.nan, np.nan)
    if rate in (0.0, 1.0):
        bound = _TAIL ** (1 / prompts)
        return Interval(bound, 1.0) if rate else Interval(0.0, 1 - bound)
    return interval(draws)


def differences(totals: Sums, draws: Floats, pairs: Sequence[tuple[int, int]]) -> list[Difference]:
    """Compare pairs of rates, and correct for their number.

    Args:
        totals: of K rates.
        draws: `resampled(totals, ...)`.
        pairs: the rates of each difference, first minus second.
    """
    rates, influence, prompts = totals.rates(), totals.influence(), len(totals.sums)
    largest, found = np.zeros(len(draws)), []
    for one, other in pairs:
        value, drawn = float(rates[one] - rates[other]), draws[:, one] - draws[:, other]
        moved = influence[:, one] - influence[:, other]
        error = float(np.sqrt((moved**2).sum() * prompts / max(prompts - 1, 1)))
        alone, p_value = interval(drawn), 1.0
        if error <= _ROUNDING:
            error = 0.0
        else:
            studentized = np.nan_to_num(np.abs(drawn - value)) / error
            np.maximum(largest, studentized, out=largest)
            p_value = _share_above(studentized, abs(value) / error)
        shares = float((drawn > 0).mean()), float((drawn < 0).mean())
        found.append(Difference(value, error, alone, *shares, p_value, p_value, alone, NORMAL))
    critical = float(np.quantile(largest, LEVEL)) if len(found) > 1 else NORMAL
    corrected = [_corrected(one, largest, critical) if len(found) > 1 else one for one in found]
    used = [int((totals.counts[:, one] > 0).sum()) for one, _ in pairs]
    return [
        one if one.standard_error or abs(one.value) <= _ROUNDING else _constant(one, n, len(found))
        for one, n in zip(corrected, used, strict=True)
    ]


def _corrected(one: Difference, largest: Floats, critical: float) -> Difference:
    """Correct a difference by the largest |t| of each resample."""
    reach = critical * one.standard_error
    adjusted = _share_above(largest, abs(one.value) / one.standard_error) if one.standard_error else 1.0
    wide = Interval(one.value - reach, one.value + reach)
    return replace(one, p_adjusted=adjusted, simultaneous=wide, critical=critical)


def _constant(one: Difference, prompts: int, comparisons: int) -> Difference:
    """Bound a difference that is the same on every prompt, so that resamples do not vary.

    Differences lie between -1 and 1, so for a true mean of m, n prompts all show d > 0 with a probability of at most
    ((1 + m) / (1 + d))^n. Several comparisons are corrected by their number (Bonferroni).
    """
    size = abs(one.value)

    def bound(tail: float) -> Interval:
        low = (1 + size) * tail ** (1 / prompts) - 1
        return Interval(low, size) if one.value > 0 else Interval(-size, -low)

    p_value = 2 * (1 + size) ** -prompts
    return replace(
        one,
        interval=bound(_TAIL),
        simultaneous=bound(_TAIL / comparisons),
        p_value=min(1.0, p_value),
        p_adjusted=min(1.0, p_value * comparisons),
    )


def _share_above(draws: Floats, value: float) -> float:
    """Return a p-value that is never 0: the data count as one more resample."""
    return float(((draws >= value).sum() + 1) / (len(draws) + 1))


def _ratio(over: Floats, under: Floats) -> Floats:
    return np.divide(over, under, out=np.full(np.broadcast(over, under).shape, np.nan), where=under > 0)
