import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.train.data.schedule import STEPS_BY_EXAMPLES, Schedule, batch_examples, schedule, steps
from humpback_ray.train.recipe import TrainRecipe

counts = st.integers(1, 400)


@pytest.mark.parametrize(
    ("examples", "batch", "count"),
    [
        (100, 8, 30), (800, 8, 300), (1_600, 8, 600), (3_200, 32, 500), (6_400, 32, 600), (12_800, 32, 600),
        (25_600, 32, 1_200), (51_200, 32, 1_600),
    ],
)  # fmt: skip
def test_batch_and_steps_match_the_papers_table(examples: int, batch: int, count: int) -> None:
    assert (batch_examples(examples), steps(examples)) == (batch, count)


def test_the_batch_grows_at_three_thousand_examples() -> None:
    assert [batch_examples(n) for n in (1, 2_999, 3_000)] == [8, 8, 32]


def test_steps_are_constant_below_the_table_and_grow_per_doubling_above_it() -> None:
    assert [steps(n) for n in (1, 48, 100)] == [30, 30, 30]
    assert steps(102_400) == 2_000
    assert steps(409_600) == 2_800


@given(st.integers(101, 51_199))
def test_steps_between_two_points_of_the_table_are_between_their_steps(examples: int) -> None:
    low = max(point for point in STEPS_BY_EXAMPLES if point[0] <= examples)
    high = min(point for point in STEPS_BY_EXAMPLES if point[0] >= examples)
    assert min(low[1], high[1]) <= steps(examples) <= max(low[1], high[1])


@given(counts)
def test_the_rate_starts_at_1e_5_and_ends_at_exactly_9e_6(examples: int) -> None:
    plan = schedule(TrainRecipe(), "m0", examples)
    assert plan.rate(1) == 1e-5
    assert plan.rate(plan.steps) == 9e-6


def test_the_rate_falls_by_equal_amounts() -> None:
    plan = Schedule(100, 8, 5, 1.0, 0.6, 0, 0)
    assert [plan.rate(step) for step in range(1, 6)] == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6])


def test_the_rate_rises_during_warm_up_and_decays_after_it() -> None:
    plan = Schedule(100, 8, 6, 1.0, 0.4, 2, 0)
    assert [plan.rate(step) for step in range(1, 7)] == pytest.approx([0.5, 1.0, 1.0, 0.8, 0.6, 0.4])


def test_a_single_step_has_the_final_rate() -> None:
    assert Schedule(100, 8, 1, 1.0, 0.4, 0, 0).rate(1) == 0.4


@given(counts, st.integers(1, 40), st.integers(0, 3))
def test_every_pass_sees_every_example_once(examples: int, batch: int, seed: int) -> None:
    passes = 3
    plan = Schedule(examples, batch, -(-passes * examples // batch), 1.0, 1.0, 0, seed)
    stream = [index for step in range(1, plan.steps + 1) for index in plan.batch(step)]
    for number in range(passes):
        assert sorted(stream[number * examples : (number + 1) * examples]) == list(range(examples))


@given(counts, st.integers(1, 40), st.integers(1, 50))
def test_a_batch_depends_only_on_seed_and_step(examples: int, batch: int, step: int) -> None:
    short, long = (Schedule(examples, batch, total, 1.0, 1.0, 0, 7) for total in (50, 5_000))
    assert short.batch(step) == long.batch(step)
    assert len(short.batch(step)) == batch


def test_another_seed_is_another_order() -> None:
    first, second = (schedule(TrainRecipe(seed=seed), "m0", 100) for seed in (0, 1))
    assert first.batch(1) != second.batch(1)


def test_no_examples_is_refused() -> None:
    with pytest.raises(ValueError, match="m0 has no examples"):
        schedule(TrainRecipe(), "m0", 0)
