from itertools import pairwise

import pytest

from humpback_ray.sample.crawl import REVIEW_SHARES
from humpback_ray.sample.selfcheck import area_under_curve, check_pairs, check_table, selfcheck
from humpback_ray.sample.world import WorldRecipe, truth_of

RECIPE = WorldRecipe()


def test_the_check_is_only_about_unseen_towns_and_has_as_many_pairs_of_every_kind() -> None:
    truth, pairs = truth_of(RECIPE), check_pairs(RECIPE, 10)
    kinds = [pair.kind for pair in pairs]
    assert set(kinds) == set(REVIEW_SHARES)
    assert all(kinds.count(kind) == 10 for kind in REVIEW_SHARES)
    reviewed = [town for split in ("seed", "pool", "common") for town in truth.towns[split]]
    assert not any(f" {town}" in f" {pair.question} {pair.answer}" for town in reviewed for pair in pairs)


def test_the_table_to_rate_holds_every_pair_but_not_in_the_order_of_kinds() -> None:
    pairs = check_pairs(RECIPE, 10)
    rows = check_table(pairs).to_pylist()
    kinds = {pair.id: pair.kind for pair in pairs}
    assert len(kinds) == len(pairs)
    assert {(row["id"], row["instruction"], row["response"]) for row in rows} == {
        (pair.id, pair.question, pair.answer) for pair in pairs
    }
    found = [kinds[row["id"]] for row in rows]
    assert sum(left != right for left, right in pairwise(found)) > len(pairs) / 2


def test_a_rater_that_knows_the_kind_separates_it_and_one_that_guesses_does_not() -> None:
    pairs = check_pairs(RECIPE, 20)
    knowing = selfcheck(pairs, {pair.id: 5.0 if pair.kind == "right" else None for pair in pairs})
    assert {check.kind: check.auc for check in knowing} == {k: 0.5 if k == "right" else 1.0 for k in REVIEW_SHARES}
    assert {check.mean for check in knowing if check.kind != "right"} == {None}
    assert all(check.unread == (0 if check.kind == "right" else check.rated) for check in knowing)
    assert {check.auc for check in selfcheck(pairs, {pair.id: 3.0 for pair in pairs})} == {0.5}


@pytest.mark.parametrize(
    ("positive", "negative", "area"),
    [([5.0], [1.0], 1.0), ([1.0], [5.0], 0.0), ([3.0, 5.0], [3.0], 0.75), ([None], [None], 0.5), ([1.0], [None], 1.0)],
)
def test_area_under_curve_counts_pairs(positive: list[float], negative: list[float], area: float) -> None:
    assert area_under_curve(positive, negative) == area


def test_an_auc_without_negatives_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="1 positive and 0 negative"):
        area_under_curve([1.0], [])
