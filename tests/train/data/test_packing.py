import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.train.data.packing import computed_tokens, pack

lengths = st.lists(st.integers(1, 500), max_size=40)
workers = st.integers(1, 9)
room = st.integers(1, 1500)
boundary = st.none() | st.integers(0, 500)


def tokens(places: list[int], lengths: list[int]) -> int:
    return sum(lengths[place] for place in places)


@given(lengths, workers, room, st.booleans(), boundary)
def test_every_example_is_packed_exactly_once(
    lengths: list[int], workers: int, room: int, padded: bool, boundary: int | None
) -> None:
    shares = pack(lengths, workers, room, padded, boundary)
    assert Counter(place for share in shares for micro in share for place in micro) == Counter(range(len(lengths)))


@given(lengths, workers, room, st.booleans(), boundary)
def test_every_worker_has_the_same_number_of_rounds_and_at_least_one(
    lengths: list[int], workers: int, room: int, padded: bool, boundary: int | None
) -> None:
    shares = pack(lengths, workers, room, padded, boundary)
    assert len(shares) == workers
    assert len({len(share) for share in shares}) == 1
    assert shares[0]


@given(lengths, workers, room, boundary)
def test_a_micro_batch_is_within_its_tokens_or_a_single_example(
    lengths: list[int], workers: int, room: int, boundary: int | None
) -> None:
    micros = [micro for share in pack(lengths, workers, room, boundary=boundary) for micro in share]
    assert all(tokens(micro, lengths) <= room or len(micro) == 1 for micro in micros)


@given(lengths, workers, room, st.booleans(), st.integers(0, 500))
def test_no_micro_batch_holds_examples_on_both_sides_of_a_boundary(
    lengths: list[int], workers: int, room: int, padded: bool, boundary: int
) -> None:
    micros = [micro for share in pack(lengths, workers, room, padded, boundary) for micro in share]
    assert all(len({lengths[place] > boundary for place in micro}) <= 1 for micro in micros)


@given(lengths, workers, room, st.booleans())
def test_a_boundary_that_no_example_crosses_changes_nothing(
    lengths: list[int], workers: int, room: int, padded: bool
) -> None:
    plain = pack(lengths, workers, room, padded)
    assert pack(lengths, workers, room, padded, boundary=500) == pack(lengths, workers, room, padded, 0) == plain


def test_a_boundary_costs_no_more_rounds_than_the_two_kinds_need() -> None:
    (mine,) = pack([5000, 5000, 5000, *[700] * 8], 1, 5000, boundary=4000)
    assert sorted(map(len, mine)) == [1, 1, 1, 4, 4]
    (mine,) = pack([10_000, 10, 10], 1, 15, boundary=4000)
    assert sorted(mine) == [[0], [1], [2]]


@given(lengths, workers, room)
def test_padded_micro_batches_count_their_padding(lengths: list[int], workers: int, room: int) -> None:
    for micro in (micro for share in pack(lengths, workers, room, padded=True) for micro in share):
        assert len(micro) <= 1 or len(micro) * max(lengths[place] for place in micro) <= room


@given(lengths, workers, room)
def test_workers_wait_for_each_other_at_most_one_example_per_step(lengths: list[int], workers: int, room: int) -> None:
    shares = pack(lengths, workers, room)
    rounds = [[tokens(micro, lengths) for micro in turn] for turn in zip(*shares, strict=True)]
    loads = [sum(tokens(micro, lengths) for micro in share) for share in shares]
    waited = sum(max(turn) - min(turn) for turn in rounds)
    assert max(loads) - min(loads) <= waited <= max(lengths, default=0)
    assert all(min(fuller) >= max(emptier) for fuller, emptier in itertools.pairwise(rounds))


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), workers, room)
def test_the_fullest_micro_batch_leads_by_no_more_than_the_shortest_example_in_it(
    lengths: list[int], workers: int, room: int
) -> None:
    micros = [micro for share in pack(lengths, workers, room) for micro in share]
    fullest = max(micros, key=lambda micro: tokens(micro, lengths))
    least = min(tokens(micro, lengths) for micro in micros)
    assert tokens(fullest, lengths) - least <= min(lengths[place] for place in fullest)


def test_a_longer_example_goes_alone_and_the_others_share() -> None:
    assert pack([900, 100, 200, 300], 1, 600) == [[[0], [3, 2, 1]]]
    assert pack([10, 10], 3, 100) == [[[0]], [[1]], [[]]]


def test_padding_and_empty_micro_batches_are_counted_as_computed() -> None:
    lengths = [5, 3, 9]
    assert computed_tokens([[[0, 1]], [[2]]], lengths) == 17
    assert computed_tokens([[[0, 1], []], [[2], []]], lengths) == 19
    assert computed_tokens([[[0, 1], []], [[2], []]], lengths, padded=True) == 2 * 5 + 9 + 2
