"""The length-controlled win rate by hand, against its optimality conditions, and against AlpacaEval's own package."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from humpback_ray.config import ConfigError
from humpback_ray.evaluate.judged import Judged, read_all
from humpback_ray.evaluate.lengthcontrol import LengthControlled, fit, length_controlled, read_gamed
from humpback_ray.evaluate.winrate import scored
from tests.evaluate.made import annotations, write_gamed


def judged(folder: Path, rows: list[dict[str, Any]]) -> Judged:
    (folder / "annotations.json").write_text(json.dumps(rows))
    return read_all([str(folder / "annotations.json")])[0]


def fitted(folder: Path, rows: list[dict[str, Any]], gamed: Path | None = None) -> LengthControlled:
    one = judged(folder, rows)
    found = length_controlled(one, scored(one), read_gamed(str(gamed)) if gamed else None)
    assert isinstance(found, LengthControlled), found
    return found


def cells(*counts: tuple[int, int, int, int]) -> list[dict[str, Any]]:
    """Rows of (wins, losses, characters of the model's output, of the reference's)."""
    return [
        {"instruction": str(at), "preference": preference, "output_1": "r" * theirs, "output_2": "m" * mine}
        for wins, losses, mine, theirs in counts
        for at, preference in enumerate([2] * wins + [1] * losses)
    ]


def test_a_case_by_hand(tmp_path: Path) -> None:
    """Longer answers win 8 of 10, shorter ones 5 of 10; the win rate is 0.65.

    Two cells, two parameters: logit 0.8 = constant − t · weight and logit 0.5 = constant + t · weight, so the constant
    is (ln 4 + 0) / 2 = ln 2, and the rate at equal length is 2 / 3.
    """
    rows = cells((800, 200, 150, 100), (500, 500, 100, 150))
    rows = [{**one, "instruction": str(at)} for at, one in enumerate(rows)]
    order = np.random.default_rng(0).permutation(len(rows))
    found = fitted(tmp_path, [rows[at] for at in order])
    assert found.glm == "length_controlled_minimal"
    assert found.rate == pytest.approx(2 / 3, abs=1e-3)
    assert found.weights[1] == pytest.approx(math.log(2), abs=5e-3)
    half = math.tanh(1 / math.sqrt(2000 / 1999))
    assert found.weights[0] == pytest.approx(-math.log(2) / half, abs=1e-2)
    # Var of the constant: (1 / (1000 · 0.8 · 0.2) + 1 / (1000 · 0.5 · 0.5)) / 4; slope of the rate: 2/3 · 1/3
    error = 2 / 9 * math.sqrt((1 / 160 + 1 / 250) / 4)
    assert found.interval is not None
    assert (found.interval.high - found.interval.low) / 2 == pytest.approx(1.96 * error, rel=0.02)


def test_a_constant_alone_by_hand() -> None:
    """At the optimum, strength · n · (share − mean) = −1: the penalty lowers the rate by 1 / (strength · n)."""
    targets = np.array([1, 1, 1, 0.5, 0.7])
    (theta,) = fit(np.ones((5, 1)), targets, np.ones(5), 2.0)
    assert 1 / (1 + math.exp(-theta)) == pytest.approx(0.84 - 1 / (2 * 5))


def test_a_weak_signal_is_shrunk_to_zero() -> None:
    targets = np.array([1, 0.0, 1, 0, 0.6])
    assert fit(np.ones((5, 1)), targets, np.ones(5), 9.9)[0] == 0  # |slope| at 0 is 9.9 · 0.1 < 1
    assert fit(np.ones((5, 1)), targets, np.ones(5), 10.1)[0] > 0


def test_a_rate_that_the_penalty_sets_to_a_half_has_no_interval(tmp_path: Path) -> None:
    rows = [{"preference": 1 + at % 2, "output_1": "r" * (50 + at // 2), "output_2": "m" * 60} for at in range(100)]
    found = fitted(tmp_path, rows)
    assert (found.rate, found.interval, found.weights) == (0.5, None, (0, 0))


@pytest.mark.parametrize("strength", [1e-4, 0.03, 1.0, 20.0, 1e4])
def test_the_fit_is_the_optimum(strength: float) -> None:
    """At the optimum of Σ loss + Σ |θ|, each slope of the loss is −sign θ, or within 1 of 0 where θ = 0."""
    rng = np.random.default_rng(3)
    rows, weights = np.column_stack([rng.normal(size=(90, 2)), np.ones(90)]), rng.uniform(0.1, 1, 90)
    targets = np.clip(1 / (1 + np.exp(-rows @ [1.5, 0, -0.5])) + rng.normal(0, 0.3, 90), 0, 1)
    theta = fit(rows, targets, weights, strength)
    slope = strength * (weights * (1 / (1 + np.exp(-rows @ theta)) - targets)) @ rows
    for weight, at in zip(theta, slope, strict=True):
        assert at == pytest.approx(-np.sign(weight), abs=1e-4 * max(strength, 1)) if weight else abs(at) <= 1 + 1e-6


def test_rows_that_separate_perfectly_have_a_fit(tmp_path: Path) -> None:
    found = fitted(tmp_path, cells((30, 0, 150, 100), (0, 30, 100, 150)))
    assert 0.4 < found.rate < 0.6
    assert fitted(tmp_path, cells((30, 0, 150, 100), (30, 0, 100, 150))).rate > 0.99


@pytest.mark.parametrize(
    ("shift", "v1", "minimal"),
    [(0, 57.00208279717114, 57.78123726723857), (5, 52.93488119558574, 52.93488119558574)],
)
def test_the_figures_of_alpaca_eval(tmp_path: Path, shift: int, v1: float, minimal: float) -> None:
    """From `get_length_controlled_winrate` of alpaca-eval 0.6.6 with liblinear's tolerance at 1e-10.

    At the package's own tolerance of 1e-4 its first figures are 57.002113 and 57.781225.
    """
    write_gamed(tmp_path / "df_gamed.csv")
    found = fitted(tmp_path, annotations(shift=shift), tmp_path / "df_gamed.csv")
    assert (found.glm, 100 * found.rate) == ("length_controlled_v1", pytest.approx(v1, abs=1e-6))
    if shift == 0:
        assert 100 * (found.spread or 0) == pytest.approx(0.004815259762309619, abs=1e-6)
    found = fitted(tmp_path, annotations(shift=shift))
    assert (found.glm, 100 * found.rate) == ("length_controlled_minimal", pytest.approx(minimal, abs=1e-6))
    assert found.spread is None


def test_predictions_in_the_file_are_the_published_rate(tmp_path: Path) -> None:
    rows = [{**one, "glm_preference": 0.2 + 0.01 * at} for at, one in enumerate(annotations())]
    found = fitted(tmp_path, rows)
    shares = 0.2 + 0.01 * np.arange(60)
    assert (found.glm, found.rate) == ("glm_preference", pytest.approx(shares.mean()))
    assert found.spread == pytest.approx(shares.std(ddof=1) / math.sqrt(60))
    del rows[3]["glm_preference"]
    assert fitted(tmp_path, rows).glm == "length_controlled_minimal"
    write_gamed(tmp_path / "df_gamed.csv")
    assert fitted(tmp_path, rows, tmp_path / "df_gamed.csv").glm == "length_controlled_v1"


def test_the_index_of_a_row_names_its_prompt(tmp_path: Path) -> None:
    write_gamed(tmp_path / "df_gamed.csv")
    rows = [{**one, "index": at} for at, one in enumerate(annotations())]
    whole = fitted(tmp_path, rows, tmp_path / "df_gamed.csv")
    assert whole == fitted(tmp_path, annotations(), tmp_path / "df_gamed.csv")
    part = fitted(tmp_path, rows[:40], tmp_path / "df_gamed.csv")
    assert part.glm == "length_controlled_v1"
    for bad in (annotations()[:40], [{**rows[0], "index": 99}, *rows[1:]]):
        with pytest.raises(ConfigError, match="the table has 60 prompts"):
            fitted(tmp_path, bad, tmp_path / "df_gamed.csv")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"preference": 2}] * 9, "the files hold no outputs"),
        (cells((2, 1, 5, 9)), "at least 5 verdicts, and there are 3"),
        (cells((20, 10, 5, 9)), "the length difference is the same on every prompt"),
    ],
)
def test_what_cannot_be_fitted_is_left_out_and_says_why(tmp_path: Path, rows: list[Any], reason: str) -> None:
    one = judged(tmp_path, rows)
    found = length_controlled(one, scored(one))
    assert isinstance(found, str)
    assert reason in found


@pytest.mark.parametrize(
    "text",
    ["", "a,b\n1,2\n", "index,preference,std_delta_len,instruction_difficulty\n0,x,1,1\n",
     "index,preference,std_delta_len,instruction_difficulty\n0,1.5,1,1\n",
     "index,preference,std_delta_len,instruction_difficulty\n0,0.5,,1\n"],
)  # fmt: skip
def test_another_table_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ConfigError, match=r"t\.csv"):
        read_gamed(str(tmp_path / "t.csv"))
