"""What all files together say: intervals, comparisons, parts, lengths, and the sentences about them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from humpback_ray.evaluate.judged import read_all
from humpback_ray.evaluate.standings import Standing, standings
from humpback_ray.evaluate.wording import MOST_COMPARISONS, compared, equal_lengths, sentences
from tests.evaluate.made import annotations, row, written


def standing(folder: Path, *files: list[dict[str, Any]], resamples: int = 500, seed: int = 0) -> list[Standing]:
    paths = [written(folder, *rows, name=f"{at}.json") for at, rows in enumerate(files)]
    return standings(read_all(paths), resamples=resamples, seed=seed)


def won(share: float, model: str, prompts: int = 200, first: int = 0, **more: Any) -> list[dict[str, Any]]:
    """Rows of which a share is won, the same prompts first for every model."""
    return [
        row(2 if at < share * prompts else 1, second=model, instruction=f"p{first + at}", **more)
        for at in range(prompts)
    ]


def test_json_has_the_figures_and_leaves_out_those_that_there_are_not(tmp_path: Path) -> None:
    (full,) = standing(tmp_path, annotations())
    plain = json.loads(json.dumps(full.as_json(), allow_nan=False))
    assert {"win_rate", "standard_error", "n_wins", "n_draws", "n_total", "length_controlled_win_rate"} <= plain.keys()
    assert (plain["win_rate"], plain["n_total"], plain["n_no_verdict"]) == (pytest.approx(58.5), 50, 10)
    assert plain["length_controlled_glm"] == "length_controlled_minimal"
    assert plain["interval"][0] < 58.5 < plain["interval"][1]
    (bare,) = standing(tmp_path, [row(2)])
    plain = json.loads(json.dumps(bare.as_json(), allow_nan=False))
    assert not {"length_controlled_win_rate", "avg_length", "by_dataset", "lc_standard_error"} & plain.keys()
    assert plain["length_controlled_missing"] == "the files hold no outputs, so their lengths are unknown"
    assert (plain["win_rate"], plain["standard_error"], plain["interval"]) == (100, None, [None, None])


def test_no_verdict_at_all_has_no_rate(tmp_path: Path) -> None:
    (found,) = standing(tmp_path, [row(None), row(None)])
    plain = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert (plain["win_rate"], plain["n_total"], plain["n_no_verdict"]) == (None, 0, 2)
    assert list(sentences(found)) == ["m1: no verdict in 2 rows, so there is no win rate."]


def test_datasets_and_categories_have_rates_of_their_own(tmp_path: Path) -> None:
    rows = won(1, "m1", 20, dataset="koala") + won(0.5, "m1", 20, 20, dataset="vicuna", category="math")
    (found,) = standing(tmp_path, rows)
    assert found.by_dataset is not None
    assert found.by_category is not None
    assert {name: part.win_rate for name, part in found.by_dataset.items()} == {"koala": 100, "vicuna": 50}
    assert {name: part.n_total for name, part in found.by_category.items()} == {"(none)": 20, "math": 20}
    assert found.by_dataset["vicuna"].interval.low < 50 < found.by_dataset["vicuna"].interval.high
    assert found.by_dataset["koala"].interval.low == pytest.approx(100 * 0.025 ** (1 / 20))


def test_lengths_are_means_of_characters_rounded_down(tmp_path: Path) -> None:
    rows = [row(2, output_1="abc", output_2="é" * 4), row(1, output_1="ab", output_2="é" * 5), row(1, output_2="")]
    (found,) = standing(tmp_path, rows)
    assert (found.avg_length, found.reference_avg_length) == (3, 1)


def test_missing_outputs_are_losses_and_said(tmp_path: Path) -> None:
    rows = won(0.5, "m1", 40, output_1="r", output_2="m")
    rows += [row(None, instruction=f"gone {at}", output_1="r", output_2="") for at in range(10)]
    rows += [row(1.5, instruction="odd", output_1="r", output_2=" ")]
    (found,) = standing(tmp_path, rows)
    assert (found.n_missing_outputs, found.n_empty_outputs, found.n_total) == (10, 1, 51)
    assert found.win_rate == pytest.approx(100 * 20.5 / 51)
    assert found.win_rate_of_judged == pytest.approx(50)
    said = " ".join(sentences(found))
    assert "10 rows with a missing output and no verdict, counted as losses (50.00 % without them)" in said
    assert "1 row with an empty output that was judged, counted as judged" in said


def test_two_models_are_compared_on_the_prompts_that_both_were_judged_on(tmp_path: Path) -> None:
    better, worse = won(0.9, "m2"), won(0.6, "m1")
    better[3]["preference"] = worse[150]["preference"] = None
    (m2, m1) = standing(tmp_path, better, worse)
    (found,), (mirrored,) = m2.comparisons, m1.comparisons
    assert (found.other, found.n_prompts, found.n_comparisons) == ("m1", 198, 1)
    assert found.difference == pytest.approx(found.win_rate - found.other_win_rate)
    assert (found.win_rate, found.other_win_rate) == (pytest.approx(100 * 178 / 198), pytest.approx(100 * 119 / 198))
    assert found.decided
    assert found.share_better == 1
    assert mirrored.difference == -found.difference
    assert mirrored.interval == pytest.approx([-found.interval.high, -found.interval.low])
    assert found.interval == found.simultaneous_interval
    (said,) = compared([m2, m1])
    assert said.startswith("m2 beats m1 by 29.8 points (95 % interval ")
    assert list(compared([m1, m2])) == [said]


def test_one_shared_prompt_decides_nothing(tmp_path: Path) -> None:
    found = standing(tmp_path, won(1, "m2", 40), won(0, "m1", 40, first=39))
    assert [one.decided for one in found[0].comparisons] == [False]
    (said,) = compared(found)
    assert "m2 and m1: undecided; the difference is +100.0 points (few prompts, so an interval" in said
    assert "true difference" not in said
    (said,) = compared(standing(tmp_path, won(0.5, "m2"), won(0.5, "m1")))
    assert said == "m2 and m1: undecided; the difference is +0.0 points (95 % interval 0.0 to 0.0)."


def test_pairing_narrows_the_interval(tmp_path: Path) -> None:
    """The models differ on few prompts, so their difference is known better than either rate."""
    m2, _ = standing(tmp_path, won(0.55, "m2"), won(0.5, "m1"))
    (found,) = m2.comparisons
    assert found.standard_error < m2.standard_error / 2
    assert found.decided


def test_what_is_not_decided_is_said_with_what_would_be(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = [
        [row(int(rng.integers(1, 3)), second=f"m{k}", instruction=f"p{at}") for at in range(100)] for k in range(3)
    ]
    found = standing(tmp_path, *files)
    said = list(compared(found))
    assert len(said) == 3
    for line in said:
        assert "undecided; the difference is" in line
        assert "for 3 comparisons" in line
        assert "These 100 prompts decide a true difference of " in line
    comparison = found[0].comparisons[0]
    assert comparison.p_adjusted >= comparison.p_value
    assert 2.8 < comparison.detectable / comparison.standard_error < 3.6  # 2.35 for three comparisons, and 0.84


def test_of_many_comparisons_neighbors_are_said(tmp_path: Path) -> None:
    models = 7
    found = standing(tmp_path, *(won(0.1 * k + 0.1, f"m{k}", 30) for k in range(models)))
    assert models * (models - 1) // 2 > MOST_COMPARISONS
    *said, last = compared(found)
    assert len(said) == models - 1
    assert last == "These are neighbors in the ranking; --json has all 21 comparisons."


def test_models_of_the_same_name_in_two_files_stay_two(tmp_path: Path) -> None:
    one, other = standing(tmp_path, won(0.9, "m2"), won(0.5, "m2"))
    assert (one.model, one.label) == ("m2", f"m2 ({tmp_path}/0.json)")
    assert one.comparisons[0].other == other.label == f"m2 ({tmp_path}/1.json)"


def test_models_against_different_references_or_by_different_judges_are_not_compared(tmp_path: Path) -> None:
    rows = won(0.5, "m1") + won(0.5, "m2", annotator="other")
    found = standing(tmp_path, rows, [row(2, first="base2", second="m1")])
    assert [one.comparisons for one in found] == [[], [], []]


def test_models_that_share_no_prompt_are_not_compared(tmp_path: Path) -> None:
    found = standing(tmp_path, won(0.5, "m1"), won(0.5, "m2", first=1000))
    assert [one.comparisons for one in found] == [[], []]
    assert [one.n_absent_prompts for one in found] == [200, 200]
    assert "no row for 200 prompts that other models have" in " ".join(sentences(found[0]))


def test_rows_of_one_prompt_count_in_the_rate_and_as_one_prompt_in_the_interval(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [row(int(rng.integers(1, 3)), instruction=f"p{at}") for at in range(100)]
    (once,) = standing(tmp_path, rows)
    (fourfold,) = standing(tmp_path, rows * 4)
    assert (fourfold.n_total, fourfold.n_prompts, fourfold.win_rate) == (400, 100, pytest.approx(once.win_rate))
    assert fourfold.standard_error < 0.6 * once.standard_error  # the leaderboard's formula takes rows for prompts
    assert fourfold.interval == pytest.approx(once.interval)
    assert "400 rows hold 100 prompts" in " ".join(sentences(fourfold))


def test_prompts_without_text_are_all_different(tmp_path: Path) -> None:
    (found,) = standing(tmp_path, [{"preference": 1 + at % 2} for at in range(50)])
    assert found.n_prompts == 50
    assert found.interval.low > 30
    two = standing(tmp_path, [{"preference": 1, "generator_2": model} for model in ("m1", "m2") * 9])
    assert [one.comparisons for one in two] == [[], []]


def test_the_seed_decides_the_intervals_and_the_order_of_files_the_order_of_models(tmp_path: Path) -> None:
    files = annotations("m1"), annotations("m2", shift=5)
    again = [standing(tmp_path, *files, seed=seed) for seed in (1, 1, 2)]
    assert [one.model for one in again[0]] == ["m1", "m2"]
    assert again[0] == again[1]
    assert again[0][0].interval != again[2][0].interval


@pytest.mark.parametrize(
    ("share", "said"), [(0.8, "prefers it to base"), (0.2, "the judge prefers base."), (0.5, "neither reliably")]
)
def test_a_win_rate_is_said_with_what_it_decides(tmp_path: Path, share: float, said: str) -> None:
    (found,) = standing(tmp_path, won(share, "m1"))
    assert said in next(sentences(found))
    (few,) = standing(tmp_path, won(share, "m1", 20))
    assert "20 prompts are few" in " ".join(sentences(few))


def test_the_origin_of_length_controlled_rates_is_said_once_for_each(tmp_path: Path) -> None:
    fitted = [{**one, "glm_preference": 0.5} for one in annotations("m3")]
    found = standing(tmp_path, annotations("m1"), annotations("m2"), fitted, [row(2, second="m4")])
    first, second, third = equal_lengths(found)
    assert first.startswith("Equal length, m1, m2: AlpacaEval's smallest model")
    assert second == "Equal length, m3: the mean of AlpacaEval's own predictions in the files (glm_preference)."
    assert third == "Equal length, m4: no rate, because the files hold no outputs, so their lengths are unknown."
    even = [row(1 + at % 2, instruction=str(at), output_1="r" * (50 + at // 2), output_2="m") for at in range(60)]
    *_, last = equal_lengths(standing(tmp_path, even))
    assert last == "Equal length, m1: the fit's penalty sets the rate to 50, which is no estimate."
    assert math.isclose(found[2].as_json()["length_controlled_win_rate"], 50)
