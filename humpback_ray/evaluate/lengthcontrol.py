"""Length-controlled win rate: what the win rate would be if both outputs had the same length.

The definition is that of AlpacaEval 2 (Dubois et al. 2024, arXiv:2404.04475, and `metrics/glm_winrate.py` of the
package `alpaca-eval` 0.6.6). A logistic regression predicts v of each prompt from tanh of the length difference
(reference minus model, in standard deviations), a constant for the model, and the instruction's difficulty. The rate is
the mean prediction for a difference of 0.

    length_controlled_v1        all three terms. Two rigged copies of the reference (verbose and concise) join the fit
                                with weight 0.2 together, without the constant, so that the length term stays sensible.
                                Their rows and the difficulties are one file, `df_gamed.csv` of the data set
                                tatsu-lab/alpaca_eval. Its licence (CC BY-NC 4.0) keeps it out of this package.
    length_controlled_minimal   length and constant alone; needs nothing but the outputs, for any prompts
    glm_preference              no fit: the mean of AlpacaEval's own predictions, where the files hold them

The names are the package's. The fit has an L1 penalty, whose strength is chosen among ten by cross-validation over five
folds. The package fits with scikit-learn's liblinear, which stops at a tolerance of 1e-4; here the optimum is exact, so
rates differ from the package's by up to 0.013 points (tests/benchmarks/winrates.py).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from humpback_ray import storage
from humpback_ray.config import ConfigError
from humpback_ray.evaluate.bootstrap import NORMAL, Interval
from humpback_ray.evaluate.judged import Floats, Judged

STRENGTHS = np.logspace(-4, 4, 10)
"""Weights of the data against the penalty, tried from the smallest; the first best one wins."""
FOLDS = 5
GAMED_WEIGHT = 0.1
"""Weight of a row of the rigged copies: 0.2 over two copies."""
_COLUMNS = ("index", "preference", "std_delta_len", "instruction_difficulty")
_CERTAIN = 1e-15
_STEPS, _SWEEPS, _EXACT = 200, 100, 1e-10


@dataclass(frozen=True)
class Gamed:
    """AlpacaEval's table of rigged references."""

    features: Floats
    """tanh of the length difference, constant (0), difficulty; [G, 3]."""
    values: Floats
    """v of each row, [G]."""
    difficulty: dict[int, float]
    """By index of the prompt."""


@dataclass(frozen=True)
class LengthControlled:
    """A fit; rates are shares of 1."""

    glm: str
    """Where the rate comes from, as listed above."""
    rate: float
    spread: float | None
    """Standard error of the predictions' mean over prompts: the leaderboard's `lc_standard_error`. None if the GLM
    predicts the same for every prompt."""
    interval: Interval | None = None
    """From the scatter of the judgments over prompts, at the chosen strength; None without a fit of the constant."""
    weights: tuple[float, ...] = ()
    """Weights of the length term, the constant and, in v1, the difficulty."""


def read_gamed(uri: str) -> Gamed:
    """Read `df_gamed.csv`.

    Raises:
        ConfigError: it has other columns, or values that are not numbers.
    """
    try:
        table = pyarrow.csv.read_csv(pa.BufferReader(storage.read_bytes(storage.located(uri)))).select(_COLUMNS)
        index, values, length, difficulty = (table[name].cast(pa.float64()).to_numpy() for name in _COLUMNS)
    except (pa.ArrowException, KeyError) as error:
        raise ConfigError(
            f"{uri} is not AlpacaEval's df_gamed.csv, which has the columns {', '.join(_COLUMNS)}: {error}"
        ) from error
    used = ~np.isnan(values)
    features = np.column_stack([np.tanh(length), np.zeros(len(values)), difficulty])[used]
    if not len(features) or np.isnan(features).any() or not ((values[used] >= 0) & (values[used] <= 1)).all():
        raise ConfigError(f"{uri} has empty cells, or preferences outside 0 to 1")
    first = dict(zip(index[::-1].astype(int).tolist(), difficulty[::-1].tolist(), strict=True))
    return Gamed(features, values[used], first)


def length_controlled(judged: Judged, values: Floats, gamed: Gamed | None = None) -> LengthControlled | str:
    """Return a model's length-controlled win rate, or the reason why there is none.

    Without `gamed`, AlpacaEval's own predictions come first; the smallest GLM is for files without them.

    Args:
        judged: the model's rows.
        values: v of each row, [N]; NaN without a verdict.
        gamed: for `length_controlled_v1`.

    Raises:
        ConfigError: the rows are not the prompts of `gamed`.
    """
    fitted, lengths = judged.fitted, judged.reference_characters - judged.characters
    if gamed is None and not np.isnan(fitted).any():
        return LengthControlled("glm_preference", float(fitted.mean()), _standard_error(fitted))
    verdicts = int((~np.isnan(values)).sum())
    if np.isnan(lengths).any():
        return "the files hold no outputs, so their lengths are unknown"
    if verdicts < FOLDS:
        return f"the fit needs at least {FOLDS} verdicts, and there are {verdicts}"
    if (lengths == lengths[0]).all():
        return "the length difference is the same on every prompt"
    return _controlled(judged, values, lengths / np.std(lengths, ddof=1), gamed)


def _controlled(judged: Judged, values: Floats, lengths: Floats, gamed: Gamed | None) -> LengthControlled:
    """Fit a GLM; `lengths` are in standard deviations."""
    told = ~np.isnan(values)
    features = np.column_stack([np.tanh(lengths), np.ones(len(values))])
    if gamed is not None:
        features = np.column_stack([features, _difficulty(judged, gamed)])
    rows, targets, weights = features[told], values[told], np.ones(told.sum())
    if gamed is not None:
        rows, targets = np.vstack([gamed.features, rows]), np.concatenate([gamed.values, targets])
        weights = np.concatenate([np.full(len(gamed.values), GAMED_WEIGHT), weights])
    theta = fit(rows, targets, weights, chosen(rows, targets, weights))
    same_length = features * [0, *[1] * (features.shape[1] - 1)]
    predicted = _share(same_length @ theta)
    rate, interval = float(predicted.mean()), None
    if theta[1]:
        prompts = np.unique(judged.prompts, return_inverse=True)[1][told]
        clusters = np.concatenate([len(values) + np.arange(len(rows) - len(prompts)), prompts])
        slope = (predicted * (1 - predicted)) @ same_length / len(predicted)
        reach = NORMAL * _sandwich(rows, targets, weights, theta, clusters, slope)
        interval = Interval(max(rate - reach, 0.0), min(rate + reach, 1.0))
    weights_found = tuple(theta.tolist())
    if gamed is None:
        return LengthControlled("length_controlled_minimal", rate, None, interval, weights_found)
    return LengthControlled("length_controlled_v1", rate, _standard_error(predicted), interval, weights_found)


def _difficulty(judged: Judged, gamed: Gamed) -> Floats:
    """Return the difficulty of each row's prompt: by its `index`, else by its place among AlpacaEval's prompts."""
    indices = [index for index in judged.indices if index is not None]
    if not indices and len(judged.prompts) == len(gamed.difficulty):
        indices = list(range(len(judged.prompts)))
    if len(indices) != len(judged.prompts) or not gamed.difficulty.keys() >= set(indices):
        raise ConfigError(
            f"{judged.source}: {judged.model} has {len(judged.prompts)} rows, {len(indices)} of them with an index; "
            f"the table has {len(gamed.difficulty)} prompts, so the rows must be these prompts in their order, or each "
            "must have the index of its prompt"
        )
    return np.array([gamed.difficulty[index] for index in indices])


def chosen(rows: Floats, targets: Floats, weights: Floats) -> float:
    """Return the strength with the smallest loss on held-out rows; rows are dealt to the folds in turn, from the last.

    Args:
        rows: features, [N, K].
        targets: v, [N].
        weights: of each row, [N].
    """
    folds = (len(targets) - 1 - np.arange(len(targets))) % FOLDS
    losses = np.zeros(len(STRENGTHS))
    for fold in range(FOLDS):
        held, theta = folds == fold, np.zeros(rows.shape[1])
        for at, strength in enumerate(STRENGTHS):
            theta = fit(rows[~held], targets[~held], weights[~held], float(strength), theta)
            share = np.clip(_share(rows[held] @ theta), _CERTAIN, 1 - _CERTAIN)
            loss = -targets[held] * np.log(share) - (1 - targets[held]) * np.log1p(-share)
            losses[at] += (weights[held] * loss).mean()
    return float(STRENGTHS[np.argmin(losses)])


def fit(rows: Floats, targets: Floats, weights: Floats, strength: float, start: Floats | None = None) -> Floats:
    """Minimize strength · Σ weight · log loss + Σ |θ|, by proximal Newton steps with a line search; return θ, [K].

    Targets are shares: a row with v = 0.7 counts 0.7 as a win and 0.3 as a loss. Arguments as in `chosen`.
    """

    def loss(theta: Floats) -> float:
        margin = rows @ theta
        return strength * float(weights @ (np.logaddexp(0, margin) - targets * margin)) + float(np.abs(theta).sum())

    theta = np.zeros(rows.shape[1]) if start is None else start.copy()
    now = loss(theta)
    for _ in range(_STEPS):
        share = _share(rows @ theta)
        gradient = strength * ((weights * (share - targets)) @ rows)
        curvature = strength * (rows.T * (weights * share * (1 - share))) @ rows
        curvature[np.diag_indices_from(curvature)] += 1e-12 * strength
        step, size = _newton(theta, gradient, curvature) - theta, 1.0
        while (after := loss(theta + size * step)) > now and size > _EXACT:
            size /= 2
        if now - after <= 1e-15 * abs(now):
            return theta if after > now else theta + size * step
        theta, now = theta + size * step, after
    return theta


def _newton(theta: Floats, gradient: Floats, curvature: Floats) -> Floats:
    """Minimize the quadratic model of the loss plus Σ |θ|, one coordinate after the other."""
    new = theta.copy()
    for _ in range(_SWEEPS):
        before = new.copy()
        for k in range(len(new)):
            slope = gradient[k] + curvature[k] @ (new - theta) - curvature[k, k] * new[k]
            new[k] = -np.sign(slope) * max(abs(slope) - 1, 0) / curvature[k, k]
        if np.abs(new - before).max() <= _EXACT * (1 + np.abs(new).max()):
            break
    return new


def _sandwich(
    rows: Floats, targets: Floats, weights: Floats, theta: Floats, clusters: npt.NDArray[np.intp], slope: Floats
) -> float:
    """Return the standard error of a rate, clustered by prompt; weights that are 0 stay 0.

    Args:
        rows: as in `fit`, like `targets` and `weights`.
        targets: v.
        weights: of the rows.
        theta: the fit.
        clusters: number of each row's prompt.
        slope: of the rate, by θ, [K].
    """
    used, share = theta != 0, _share(rows @ theta)
    rows = rows[:, used]
    curvature = (rows.T * (weights * share * (1 - share))) @ rows
    moved = (weights * (targets - share)) * (rows @ np.linalg.pinv(curvature) @ slope[used])
    return float(np.sqrt((np.bincount(clusters, moved) ** 2).sum()))


def _standard_error(predicted: Floats) -> float:
    return float(np.std(predicted, ddof=1) / np.sqrt(len(predicted))) if len(predicted) > 1 else np.nan


def _share(margin: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -margin))
