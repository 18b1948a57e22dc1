import pytest

from humpback_ray.sample.crawl import REVIEW_SHARES
from humpback_ray.sample.selfcheck import area_under_curve, check_pairs, selfcheck
from humpback_ray.sample.world import WorldRecipe, truth_of

RECIPE = WorldRecipe()


def test_the_check_speaks_of_unseen_towns_alone_and_of_every_kind_alike() -> None:
    truth, pairs = truth_of(RECIPE), check_pairs(RECIPE, 10)
    kinds = [kind for kind, _ in pairs]
    assert set(kinds) == set(REVIEW_SHARES)
    assert all(kinds.count(kind) == 10 for kind in REVIEW_SHARES)
    reviewed = [town for split in ("seed", "pool", "common") for town in truth.towns[split]]
    assert not any(f" {town}" in f" {asked} {answer}" for town in reviewed for _, (asked, answer) in pairs)


def test_a_rater_that_knows_the_kind_separates_it_and_one_that_guesses_does_not() -> None:
    kinds = {pair: kind for kind, pair in check_pairs(RECIPE, 20)}
    knowing = selfcheck(RECIPE, lambda pairs: [5.0 if kinds[pair] == "right" else None for pair in pairs], 20)
    assert {check.kind: check.auc for check in knowing} == {k: 0.5 if k == "right" else 1.0 for k in REVIEW_SHARES}
    assert {check.mean for check in knowing if check.kind != "right"} == {None}
    assert all(check.unread == (0 if check.kind == "right" else check.rated) for check in knowing)
    assert {check.auc for check in selfcheck(RECIPE, lambda pairs: [3.0] * len(pairs), 20)} == {0.5}


@pytest.mark.parametrize(
    ("positive", "negative", "area"),
    [([5.0], [1.0], 1.0), ([1.0], [5.0], 0.0), ([3.0, 5.0], [3.0], 0.75), ([None], [None], 0.5), ([1.0], [None], 1.0)],
)
def test_area_under_curve_counts_pairs(positive: list[float], negative: list[float], area: float) -> None:
    assert area_under_curve(positive, negative) == area


def test_a_curve_without_negatives_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="1 positive and 0 negative"):
        area_under_curve([1.0], [])
