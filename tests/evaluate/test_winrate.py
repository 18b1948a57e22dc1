"""The win rate by hand, and the figures of AlpacaEval's own package on the same rows."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.evaluate.judged import read_all
from humpback_ray.evaluate.winrate import scored, tally
from tests.evaluate.made import annotations


def test_two_wins_a_draw_and_a_loss_by_hand() -> None:
    found = tally(np.array([1, 1, 0.5, 0, np.nan]))
    assert (found.n_wins, found.n_draws, found.n_wins_base, found.n_total) == (2, 1, 1, 4)
    assert found.win_rate == 62.5
    # deviations 0.375, 0.375, −0.125, −0.625: sd² = 0.6875 / 3
    assert found.standard_error == pytest.approx(100 * math.sqrt(0.6875 / 3) / 2)
    assert found.discrete_win_rate == 62.5


def test_a_preference_near_a_draw_is_a_win_or_a_loss() -> None:
    found = tally(np.array([0.5000001, 0.4999999, 0.5]))
    assert (found.n_wins, found.n_wins_base, found.n_draws) == (1, 1, 1)
    assert found.win_rate == pytest.approx(50)


def test_too_few_rows_have_no_figure() -> None:
    assert math.isnan(tally(np.array([np.nan])).win_rate)
    assert tally(np.array([np.nan])).n_total == 0
    assert tally(np.array([1.0])).win_rate == 100
    assert math.isnan(tally(np.array([1.0])).standard_error)


def test_the_figures_of_alpaca_eval(tmp_path: Path) -> None:
    """From `get_winrate` of alpaca-eval 0.6.6; tests/benchmarks/winrates.py repeats the comparison on other rows."""
    (tmp_path / "annotations.json").write_text(json.dumps(annotations()))
    found = tally(scored(read_all([str(tmp_path / "annotations.json")])[0]))
    assert found.win_rate == pytest.approx(58.5, abs=1e-9)
    assert found.standard_error == pytest.approx(5.514822327702176, abs=1e-9)
    assert (found.n_wins, found.n_wins_base, found.n_draws, found.n_total) == (25, 15, 10, 50)
    assert found.discrete_win_rate == pytest.approx(60.0)


@pytest.mark.parametrize("output", ["", "  \n", None])
def test_a_missing_output_without_a_verdict_is_a_loss_and_a_judged_one_keeps_its_verdict(
    tmp_path: Path, output: str | None
) -> None:
    rows = [
        {"preference": preference, "output_1": "r", "output_2": text}
        for preference, text in [(2, "m"), (None, "m"), (None, output), (1.25, output), (2, output)]
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (judged,) = read_all([str(tmp_path / "a.json")])
    assert scored(judged) == pytest.approx([1, math.nan, 0, 0.25, 1], nan_ok=True)


@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan), st.sampled_from([0.0, 0.5, 1.0])), max_size=40))
def test_counts_add_up_and_turning_sides_mirrors_the_rate(values: list[float]) -> None:
    found, turned = tally(np.array(values, dtype=float)), tally(1 - np.array(values, dtype=float))
    assert found.n_wins + found.n_draws + found.n_wins_base == found.n_total == sum(v == v for v in values)
    if found.n_total:
        assert found.win_rate + turned.win_rate == pytest.approx(100)
