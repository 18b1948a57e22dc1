"""The bootstrap's laws: coverage, pairing, clusters, seeds, and the correction for several comparisons."""

import math

import numpy as np
import pytest

from humpback_ray.evaluate.bootstrap import Floats, Sums, differences, interval, rate_interval, resampled


def sums(*columns: list[float]) -> Sums:
    """One row per prompt; NaN where a model was not judged."""
    values = np.column_stack([np.array(column, dtype=float) for column in columns])
    return Sums(np.nan_to_num(values), (~np.isnan(values)).astype(float))


def verdicts(rng: np.random.Generator, prompts: int) -> tuple[Floats, Floats]:
    """Two models' verdicts, with true rates 0.6 and 0.5, that share how easy a prompt is."""
    easy = rng.uniform(-0.3, 0.3, prompts)
    return (rng.random(prompts) < 0.6 + easy).astype(float), (rng.random(prompts) < 0.5 + easy).astype(float)


def test_intervals_hold_the_truth_in_95_of_100_studies() -> None:
    rng, held = np.random.default_rng(5), np.zeros(2)
    for study in range(400):
        totals = sums(*(list(one) for one in verdicts(rng, 100)))
        draws = resampled(totals, 400, study)
        (found,) = differences(totals, draws, [(0, 1)])
        rate = rate_interval(draws[:, 0], float(totals.rates()[0]), 100)
        held += [not rate.excludes(0.6), not found.interval.excludes(0.1)]
    assert (abs(held / 400 - 0.95) < 0.035).all(), held / 400  # three standard errors


def test_a_comparison_of_equal_models_rarely_decides_even_among_many() -> None:
    """Six equal models, 15 comparisons: about 5 of 100 studies decide any of them; without the correction, a third."""
    rng, wrong, uncorrected = np.random.default_rng(11), 0, 0
    pairs = [(a, b) for a in range(6) for b in range(a)]
    for study in range(200):
        easy = rng.uniform(0.2, 0.8, 150)
        totals = sums(*((rng.random(150) < easy).astype(float).tolist() for _ in range(6)))
        found = differences(totals, resampled(totals, 300, study), pairs)
        wrong += any(one.decided for one in found)
        uncorrected += any(one.interval.excludes(0) for one in found)
    assert wrong <= 20
    assert uncorrected >= 40


def test_the_standard_error_of_a_difference_is_that_of_the_paired_test() -> None:
    a, b = verdicts(np.random.default_rng(1), 200)
    totals = sums(a.tolist(), b.tolist())
    draws = resampled(totals, 4000, 0)
    (found,) = differences(totals, draws, [(0, 1)])
    assert found.value == pytest.approx((a - b).mean())
    assert found.standard_error == pytest.approx((a - b).std(ddof=1) / math.sqrt(200))
    assert (draws[:, 0] - draws[:, 1]).std() == pytest.approx(found.standard_error, rel=0.05)


def test_repeated_rows_of_a_prompt_are_no_new_prompts() -> None:
    a, _ = verdicts(np.random.default_rng(2), 100)
    single, tenfold = sums(a.tolist()), Sums(10 * a[:, None], np.full((100, 1), 10.0))
    assert (resampled(single, 500, 3) == resampled(tenfold, 500, 3)).all()


def test_the_same_seed_gives_the_same_resamples_and_another_one_others() -> None:
    totals = sums(verdicts(np.random.default_rng(3), 2000)[0].tolist())
    first = resampled(totals, 700, 7)  # more than one chunk
    assert (first == resampled(totals, 700, 7)).all()
    assert (first != resampled(totals, 700, 8)).any()


def test_a_model_is_neither_better_nor_worse_than_itself() -> None:
    a = verdicts(np.random.default_rng(4), 50)[0].tolist()
    totals = sums(a, a)
    (found,) = differences(totals, resampled(totals, 200, 0), [(0, 1)])
    assert (found.value, found.share_better, found.share_worse, found.p_value) == (0, 0, 0, 1)
    assert not found.decided


def test_a_difference_turned_around_is_the_difference_of_the_other_side() -> None:
    a, b = verdicts(np.random.default_rng(6), 80)
    totals = sums(a.tolist(), b.tolist())
    draws = resampled(totals, 300, 0)
    (found,), (other,) = differences(totals, draws, [(0, 1)]), differences(totals, draws, [(1, 0)])
    turned = found.turned()
    assert turned.interval == pytest.approx(other.interval)
    assert (turned.value, turned.share_better, turned.p_value) == (other.value, other.share_better, other.p_value)


def test_more_comparisons_widen_the_interval_and_raise_the_p_value() -> None:
    a, b = verdicts(np.random.default_rng(8), 150)
    totals = sums(a.tolist(), b.tolist(), b[::-1].tolist(), a[::-1].tolist())
    draws = resampled(totals, 1000, 0)
    (alone,) = differences(totals, draws, [(0, 1)])
    many = differences(totals, draws, [(0, 1), (0, 2), (3, 1), (3, 2)])
    assert many[0].interval == alone.interval
    assert many[0].simultaneous.low < alone.simultaneous.low
    assert alone.p_adjusted == alone.p_value <= many[0].p_adjusted
    assert many[0].critical > alone.critical


def test_nothing_but_wins_has_the_exact_bound() -> None:
    totals = sums([1.0] * 20)
    found = rate_interval(resampled(totals, 100, 0)[:, 0], 1.0, 20)
    assert found.high == 1
    assert found.low**20 == pytest.approx(0.025)
    lost = rate_interval(resampled(sums([0.0] * 20), 100, 0)[:, 0], 0.0, 20)
    assert (lost.low, lost.high) == pytest.approx((0, 1 - found.low))


@pytest.mark.parametrize(("prompts", "decided"), [(1, False), (5, False), (6, True), (40, True)])
def test_a_difference_that_never_varies_is_bounded_like_a_sign_test(prompts: int, decided: bool) -> None:
    totals = sums([1.0] * prompts, [0.0] * prompts)
    (found,) = differences(totals, resampled(totals, 100, 0), [(0, 1)])
    assert (found.value, found.decided, found.turned().decided) == (1, decided, decided)
    assert found.p_value == pytest.approx(2 * 0.5**prompts)
    assert ((1 + found.interval.low) / 2) ** prompts == pytest.approx(0.025)
    (other,) = differences(totals, resampled(totals, 100, 0), [(1, 0)])
    assert other.interval == pytest.approx(found.turned().interval)
    totals = sums([1.0] * prompts, [0.0] * prompts, [0.5] * prompts)
    many = differences(totals, resampled(totals, 100, 0), [(0, 1), (0, 2), (1, 2)])
    assert many[0].simultaneous.low < found.interval.low == many[0].interval.low
    assert many[0].p_adjusted == pytest.approx(min(1, 3 * found.p_value))


def test_one_prompt_has_no_interval_and_an_unknown_interval_excludes_nothing() -> None:
    found = rate_interval(np.array([1.0, 1.0]), 0.7, 1)
    assert math.isnan(found.low)
    assert not found.excludes(0)
    assert math.isnan(interval(np.array([np.nan])).low)
