"""The roofline model of engines."""

from humpback_ray.operate.plan.inference import RowWork, row_s, weights_fit
from humpback_ray.rates import GB, PlanConfig
from humpback_ray.train.sizes import SIZES

SEVEN, LARGE, RATES = SIZES["llama-7b"], SIZES["llama-65b"], PlanConfig()


def test_reading_is_two_flops_per_parameter_and_token_at_the_share_of_the_peak() -> None:
    seconds = row_s(SEVEN, 1, True, 2, RowWork(500), RATES)
    floor = 2 * SEVEN.parameters * 500 / (RATES.known["H100-80G"].peak_flops * RATES.prefill_mfu)
    assert 0.95 * floor < seconds < 1.1 * floor


def test_writing_takes_longer_than_reading_and_is_shared_by_replies_at_once() -> None:
    read, one, three = (
        row_s(SEVEN, 1, True, 2, work, RATES) for work in (RowWork(500), RowWork(500, 100), RowWork(500, 100, 3))
    )
    assert read < one < three < 3 * one
    alone = row_s(SEVEN, 1, True, 2, RowWork(500, 100), PlanConfig(most_sequences=1))
    assert alone > 20 * one


def test_two_gpus_take_half_the_time_and_a_core_takes_forever() -> None:
    work = RowWork(500, 100)
    assert row_s(SEVEN, 2, True, 2, work, RATES) < 0.6 * row_s(SEVEN, 1, True, 2, work, RATES)
    assert row_s(SEVEN, 1, False, 4, work, RATES) > 1000 * row_s(SEVEN, 1, True, 2, work, RATES)


def test_weights_need_room_for_keys_and_values_beside_them() -> None:
    assert weights_fit(14 * GB, 1, RATES)
    assert not weights_fit(2 * LARGE.parameters, 2, RATES) or 2 * LARGE.parameters < 0.85 * 2 * 78 * GB
    assert not weights_fit(2 * LARGE.parameters, 1, RATES)
    assert weights_fit(2 * LARGE.parameters, 4, RATES)
