"""Win rate: how often a judge prefers a model's output to a reference's, as AlpacaEval's leaderboard counts it.

v = preference − 1, a draw is 0.5, rows without a verdict are left out and counted; win_rate = 100 · mean(v),
standard_error = 100 · sd(v, ddof 1) / √n. The counts are those of `metrics/winrate.py` in the package `alpaca-eval`
0.6.6, and so are the numbers, with one exception: a missing output without a verdict is a loss here, while AlpacaEval
leaves it out. A missing output that was judged keeps its verdict, whatever it is.
"""

import math
from dataclasses import dataclass

import numpy as np

from humpback_ray.evaluate.judged import Floats, Judged


@dataclass(frozen=True)
class Tally:
    """Win rate of some rows, in percent; NaN where there are too few rows."""

    win_rate: float
    standard_error: float
    n_wins: int
    n_wins_base: int
    """Rows in which the reference wins."""
    n_draws: int
    n_total: int
    """Rows with a verdict, and missing outputs that count as losses."""
    discrete_win_rate: float
    """Win rate if every preference is rounded to a win, a draw or a loss."""


def tally(values: Floats) -> Tally:
    """Count verdicts v, each 0 to 1; NaN is none."""
    told = values[~np.isnan(values)]
    wins, losses, draws = (int(found.sum()) for found in (told > 0.5, told < 0.5, told == 0.5))
    n = len(told)
    return Tally(
        win_rate=100 * float(told.mean()) if n else math.nan,
        standard_error=100 * float(told.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan,
        n_wins=wins,
        n_wins_base=losses,
        n_draws=draws,
        n_total=n,
        discrete_win_rate=100 * (wins + draws / 2) / n if n else math.nan,
    )


def scored(judged: Judged) -> Floats:
    """Return v of each row, [N]; a missing output without a verdict is a loss."""
    return np.where(judged.empty & np.isnan(judged.values), 0.0, judged.values)
