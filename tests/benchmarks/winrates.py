"""Win rates and length-controlled win rates beside those of AlpacaEval's own package, on made-up annotations.

    pip install alpaca-eval==0.6.6 && python -m tests.benchmarks.winrates

Each case is 805 rows drawn from a known GLM. AlpacaEval's table of rigged references lies on a hub; both sides use a
made-up one instead. The package fits with liblinear at its tolerance of 1e-4, then again at 1e-10.

Measured with scikit-learn 1.9.1: counts, win rates and standard errors agree to 1e-14 points; length-controlled rates
to 0.013 points at 1e-4 and to 1e-8 points at 1e-10, so the difference is liblinear's.
"""

import argparse
import csv
import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from humpback_ray.evaluate.judged import read_all
from humpback_ray.evaluate.lengthcontrol import Gamed, LengthControlled, length_controlled, read_gamed
from humpback_ray.evaluate.winrate import scored, tally

ROWS = 805
GLMS = {"length_controlled_v1": True, "length_controlled_minimal": False}
CASES = {
    "votes": (0.3, -1.2, 0.5),
    "shares, few wins": (-3.0, -1.2, 0.0),
    "no length": (0.1, 0.0, 0.0),
    "short": (-1, 2, 0),
}
"""Constant and weights of length and difficulty."""


def made(
    rng: np.random.Generator, difficulty: np.ndarray, weights: tuple[float, ...], votes: bool
) -> list[dict[str, Any]]:
    """Draw annotations from a GLM."""
    reference = rng.integers(200, 3000, ROWS)
    model = np.maximum(1, reference * rng.lognormal(0.2, 0.5, ROWS)).astype(int)
    delta = (reference - model) / np.std(reference - model, ddof=1)
    margin = weights[0] + weights[1] * np.tanh(delta) + weights[2] * difficulty
    share = 1 / (1 + np.exp(-margin))
    drawn = (rng.random(ROWS) < share) if votes else np.clip(share + rng.normal(0, 0.3, ROWS), 0, 1)
    preferences = [float(one) for one in 1 + drawn]
    for at in range(0, ROWS, 97):
        preferences[at], preferences[at + 1], preferences[at + 2] = np.nan, 0, 1.5
    return [
        {"preference": preference, "output_1": "r" * int(theirs), "output_2": "m" * int(mine), "generator_1": "base",
         "generator_2": "m1", "annotator": "judge", "instruction": str(at)}
        for at, (preference, theirs, mine) in enumerate(zip(preferences, reference, model, strict=True))
    ]  # fmt: skip


def write_gamed(path: Path, rng: np.random.Generator, difficulty: np.ndarray) -> None:
    """Write two rigged references: one that always writes more, one that always writes less."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        columns = ("preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline", "model")
        writer.writerow(columns)
        for sign, name in ((-1, "verbose"), (1, "concise")):
            for at in range(ROWS):
                delta = sign * abs(rng.normal(1, 0.5))
                share = np.clip(1 / (1 + np.exp(0.6 * np.tanh(delta))) + rng.normal(0, 0.2), 0, 1)
                writer.writerow([share, at, delta, difficulty[at], False, name])


def compare(rows: list[dict[str, Any]], table: Path, gamed: Gamed, theirs: Any) -> dict[str, float]:
    """Return the largest differences, in percentage points."""
    import pandas

    path = table.with_name("annotations.json")
    path.write_text(json.dumps(rows))
    (judged,) = read_all([str(path)])
    frame, mine, found = pandas.DataFrame(rows), tally(scored(judged)), {}
    whole = theirs.get_winrate(frame.copy())
    counts = ("n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate")
    found["counts"] = max(abs(float(whole[name]) - getattr(mine, name)) for name in counts)
    found["win rate, standard error"] = max(
        abs(whole[name] - getattr(mine, name)) for name in ("win_rate", "standard_error")
    )
    for glm, with_table in GLMS.items():
        ours = length_controlled(judged, scored(judged), gamed if with_table else None)
        assert isinstance(ours, LengthControlled)
        for tolerance in (1e-4, 1e-10):
            info = theirs.GLM_INFO[glm] | {"kwargs": {"n_splits": 5, "tol": tolerance, "max_iter": 1_000_000}}
            package = theirs.get_length_controlled_winrate(frame.copy(), glm, save_weights_dir=None, glm_info=info)
            found[f"{glm}, tolerance {tolerance:g}"] = abs(package["length_controlled_winrate"] - 100 * ours.rate)
    return found


def main() -> int:
    """Print the largest difference of each figure over all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    import alpaca_eval.metrics.glm_winrate as theirs  # type: ignore[import-not-found]

    worst: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "df_gamed.csv"
        theirs.hf_hub_download = lambda **_: str(table)
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            difficulty = rng.normal(0, 1, ROWS)
            write_gamed(table, rng, difficulty)
            for case, weights in CASES.items():
                rows = made(rng, difficulty, weights, votes="shares" not in case)
                for name, size in compare(rows, table, read_gamed(str(table)), theirs).items():
                    worst[name] = max(size, worst.get(name, 0.0))
    for name, size in worst.items():
        sys.stdout.write(f"{name:50} {size:.1e}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
