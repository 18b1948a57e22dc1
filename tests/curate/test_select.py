from collections.abc import Mapping
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from humpback_ray.curate.rounds import CurateRecipe
from humpback_ray.curate.scorers import Additive, Chained, Likelihood, Rubric, RubricExpected
from humpback_ray.curate.select import (
    Rating,
    SelectRecipe,
    TooFewKept,
    check_threshold,
    counts_by_rule,
    curate,
    domain_of,
    require_kept,
    select,
)
from humpback_ray.records import CANDIDATE, PAIR

SCORES = st.dictionaries(st.text(max_size=3), st.none() | st.sampled_from([1.0, 2.5, 4.0, 4.5, 5.0]), max_size=30)


@given(SCORES, st.sampled_from([1.0, 4.0, 4.5]))
def test_a_threshold_keeps_exactly_what_reaches_it(scores: dict[str, float | None], threshold: float) -> None:
    fates = select(scores, SelectRecipe(threshold=threshold))
    assert list(fates) == list(scores)
    for row_id, score in scores.items():
        expected = "unrated" if score is None else None if score >= threshold else "below_threshold"
        assert fates[row_id] == expected


@given(SCORES, st.integers(1, 12), st.randoms())
def test_top_k_keeps_exactly_k_whatever_the_order_of_the_rows(
    scores: dict[str, float | None], k: int, rng: Random
) -> None:
    rule = SelectRecipe(threshold=None, top_k=k)
    fates = select(scores, rule)
    shuffled = list(scores.items())
    rng.shuffle(shuffled)
    assert select(dict(shuffled), rule) == fates
    rated = {row_id: score for row_id, score in scores.items() if score is not None}
    kept = {row_id for row_id, fate in fates.items() if fate is None}
    assert len(kept) == min(k, len(rated))
    left = rated.keys() - kept
    assert not left or min(rated[row_id] for row_id in kept) >= max(rated[row_id] for row_id in left)
    assert {fates[row_id] for row_id in left} <= {"not_in_top_k"}
    assert all(fates[row_id] == "unrated" for row_id in scores.keys() - rated.keys())


def test_equal_scores_are_kept_in_the_order_of_their_ids() -> None:
    fates = select({"b": 4.0, "a": 4.0, "c": 5.0}, SelectRecipe(threshold=None, top_k=2))
    assert fates == {"b": "not_in_top_k", "a": None, "c": None}


@given(SCORES, st.integers(1, 12), st.integers(1, 12))
def test_samples_are_drawn_from_passing_pairs_and_larger_ones_contain_smaller_ones(
    scores: dict[str, float | None], small: int, more: int
) -> None:
    passing = {row_id for row_id, score in scores.items() if score is not None and score >= 4}
    for rule, eligible in (
        (SelectRecipe(threshold=4, sample=small), passing),
        (SelectRecipe(threshold=None, sample=small), set(scores)),
    ):
        fates = select(scores, rule)
        kept = {row_id for row_id, fate in fates.items() if fate is None}
        assert kept <= eligible
        assert len(kept) == min(small, len(eligible))
        assert {fates[row_id] for row_id in eligible - kept} <= {"not_in_sample"}
        larger = select(scores, rule.model_copy(update={"sample": small + more}))
        assert kept <= {row_id for row_id, fate in larger.items() if fate is None}


def test_another_seed_draws_another_sample() -> None:
    scores = {str(number): 5.0 for number in range(100)}
    first, second = (select(scores, SelectRecipe(threshold=None, sample=50, sample_seed=seed)) for seed in (0, 1))
    assert first != second


CANDIDATES = pa.Table.from_pylist(
    [{"id": i, "instruction": f"x{i}", "response": f"y{i}"} for i in "abc"], schema=CANDIDATE
)
RATINGS: dict[str, Rating] = {
    "c": {"id": "c", "score": None, "drop_reason": "unrated_unparsed"},
    "a": {"id": "a", "score": 5.0, "drop_reason": None},
    "b": {"id": "b", "score": 4.0, "drop_reason": None},
}


def test_candidates_become_pairs_that_keep_their_score_and_lose_their_text_when_dropped() -> None:
    fates = select({row_id: rating["score"] for row_id, rating in RATINGS.items()}, SelectRecipe())
    pairs = curate(CANDIDATES, RATINGS, fates)
    assert pairs.schema == PAIR
    assert [list(row.values()) for row in pairs.to_pylist()] == [
        ["a", "xa", "ya", "augmented", 5.0, None],
        ["b", "", "", "augmented", 4.0, "below_threshold"],
        ["c", "", "", "augmented", None, "unrated_unparsed"],
    ]
    assert curate(CANDIDATES.slice(1, 1), RATINGS, fates) == pairs.slice(1, 1)


def test_a_candidate_that_was_never_rated_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 3 candidates have no rating, first: b"):
        curate(CANDIDATES, RATINGS, {"a": None, "c": "unrated"})


def test_too_few_kept_pairs_stop_the_run_with_both_numbers() -> None:
    require_kept(8, 100, SelectRecipe(min_kept=8), "out/round-1/curated")
    with pytest.raises(TooFewKept, match=r"scores >= 4.5\) kept 7 of 100 rated pairs, but min_kept is 8"):
        require_kept(7, 100, SelectRecipe(min_kept=8), "out/round-1/curated")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threshold": None}, "all off"),
        ({"top_k": 5}, r"both are set \(4.5 and 5\)"),
        ({"share": 0.1}, r"both are set \(4.5 and 0.1\)"),
        ({"threshold": None, "top_k": 5, "share": 0.1}, r"both are set \(5 and 0.1\)"),
        ({"threshold": None, "share": 0}, "greater than 0"),
        ({"threshold": None, "top_k": 5, "min_kept": 8}, "top_k 5 can never reach min_kept 8"),
        ({"threshold": float("inf")}, "finite"),
    ],
)
def test_rules_that_contradict_each_other_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SelectRecipe(**values)


def test_a_threshold_between_integers_needs_ratings_between_integers() -> None:
    once = Rubric(samples=1)
    with pytest.raises(ValueError, match=r"round 2 keeps scores >= 4.5 but rates each pair once, so 4.5 means 5; set"):
        check_threshold(SelectRecipe(), once, 2)
    for scorer in (Rubric(), Rubric(samples=1, read="expected"), RubricExpected()):
        check_threshold(SelectRecipe(), scorer, 2)
    check_threshold(SelectRecipe(threshold=4), once, 1)
    check_threshold(SelectRecipe(threshold=None, top_k=3), once, 1)


@pytest.mark.parametrize(
    ("scorer", "threshold", "said"),
    [
        (Rubric(), 5.5, "round 1 keeps scores >= 5.5, but the scores of rubric go from 1 to 5; set"),
        (Rubric(), 0.5, "go from 1 to 5"),
        (RubricExpected(), 0.5, "the scores of rubric_expected go from 1 to 5"),
        (Additive(), -1, "the scores of additive go from 0 to 5"),
        (Chained(then=Additive()), 5.5, "the scores of chained go from 0 to 5"),
    ],
)
def test_a_threshold_off_the_scale_is_refused_with_both_ends(scorer: Any, threshold: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_threshold(SelectRecipe(threshold=threshold), scorer, 1)


def test_a_threshold_may_be_any_number_on_the_scale() -> None:
    check_threshold(SelectRecipe(threshold=0), Additive(), 1)
    check_threshold(SelectRecipe(threshold=1), Rubric(), 1)
    check_threshold(SelectRecipe(threshold=5), RubricExpected(), 1)
    check_threshold(SelectRecipe(threshold=4.5), Chained(), 1)


@pytest.mark.parametrize("scorer", [Likelihood(), Chained(then=Likelihood(), first=RubricExpected())])
@pytest.mark.parametrize("threshold", [4.5, 0, -0.1])
def test_a_scorer_without_a_scale_takes_no_threshold_but_a_count_or_a_share(scorer: Any, threshold: float) -> None:
    assert scorer.scale is None
    with pytest.raises(ValueError, match=rf"keeps scores >= {threshold:g}, .* no scale .* threshold to null"):
        CurateRecipe(scorer=scorer, rounds=(SelectRecipe(threshold=threshold),))
    for rule in ({"top_k": 100}, {"share": 0.1}, {"sample": 5}):
        CurateRecipe(scorer=scorer, rounds=(SelectRecipe.model_validate({"threshold": None, **rule}),))


def test_a_threshold_off_the_scale_is_refused_when_the_recipe_is_read() -> None:
    with pytest.raises(ValidationError, match=r"round 2 keeps scores >= 0\.5, but the scores of rubric go from 1 to 5"):
        CurateRecipe(rounds=(SelectRecipe(), SelectRecipe(threshold=0.5)))
    with pytest.raises(ValidationError, match="no scale"):
        CurateRecipe(scorer=Likelihood())


@given(SCORES, st.sampled_from([0.01, 0.1, 0.3, 0.5, 1.0]), st.randoms())
def test_a_share_keeps_the_best_of_the_rated_whatever_the_order_of_the_rows(
    scores: dict[str, float | None], share: float, rng: Random
) -> None:
    rule = SelectRecipe(threshold=None, share=share)
    fates = select(scores, rule)
    shuffled = list(scores.items())
    rng.shuffle(shuffled)
    assert select(dict(shuffled), rule) == fates
    rated = [row_id for row_id, score in scores.items() if score is not None]
    most = -(-int(100 * share) * len(rated) // 100)
    best = sorted(rated, key=lambda row_id: (-(scores[row_id] or 0), row_id))[:most]
    assert {row_id for row_id, fate in fates.items() if fate is None} == set(best)
    assert {fates[row_id] for row_id in rated if row_id not in best} <= {"not_in_best_share"}
    assert all(fates[row_id] == "unrated" for row_id in scores.keys() - set(rated))


def test_a_share_counts_those_that_stay_after_duplicates() -> None:
    fates = chosen(ALIKE, SelectRecipe(threshold=None, share=0.6, near_duplicate_jaccard=0.8))
    assert [fates[i] for i in "abcdef"] == ["near_duplicate", None, "not_in_best_share", None, None, "unrated"]
    assert counts_by_rule(fates)[-1] == {"rule": "not_in_best_share", "dropped": 1, "kept": 3}
    assert SelectRecipe(threshold=None, share=0.083).words == "the best 8.3 %"


WORDS = st.lists(st.sampled_from("abcde"), min_size=1, max_size=5).map(" ".join)
RATED = st.dictionaries(
    st.text("xyz", min_size=1, max_size=4),
    st.tuples(st.none() | st.sampled_from([1.0, 4.0, 4.5, 5.0]), WORDS, st.sampled_from(["", "a.org", "b.org"])),
    max_size=25,
)
COMPARING = st.builds(
    SelectRecipe,
    threshold=st.none() | st.just(4.0),
    sample=st.just(1000),
    near_duplicate_jaccard=st.none() | st.sampled_from([0.5, 0.8, 1.0]),
    max_per_cluster=st.integers(1, 2),
    max_per_domain=st.none() | st.integers(1, 3),
)


def chosen(rows: Mapping[str, tuple[float | None, str, str]], rule: SelectRecipe) -> dict[str, str | None]:
    scores, instructions, urls = ({i: row[at] for i, row in rows.items()} for at in range(3))
    return select(scores, rule, instructions, {i: f"https://{url}/{i}" if url else "" for i, url in urls.items()})  # type: ignore[arg-type]


@given(RATED, COMPARING, st.none() | st.integers(1, 10), st.randoms())
def test_pairs_are_dropped_only_for_better_ones_that_stay_in_any_order_of_rows(
    rows: dict[str, tuple[float | None, str, str]], rule: SelectRecipe, top_k: int | None, rng: Random
) -> None:
    if rule.threshold is None and top_k:
        rule = rule.model_copy(update={"top_k": top_k})
    fates = chosen(rows, rule)
    shuffled = list(rows.items())
    rng.shuffle(shuffled)
    assert chosen(dict(shuffled), rule) == fates
    rank = {i: (row[0] is None, -(row[0] or 0), i) for i, row in rows.items()}
    stay = [i for i, fate in fates.items() if fate is None]

    def alike(left: str, right: str) -> bool:
        one, other = set(rows[left][1].split()), set(rows[right][1].split())
        return len(one & other) / len(one | other) >= (rule.near_duplicate_jaccard or 2)

    for i, fate in fates.items():
        better = [j for j in stay if rank[j] < rank[i]]
        like, neighbours = [j for j in better if alike(i, j)], [j for j in better if rows[j][2] == rows[i][2] != ""]
        if fate == "near_duplicate":
            assert like
        elif fate == "over_domain_cap":
            assert len(neighbours) == rule.max_per_domain
        elif fate == "not_in_top_k":
            assert len(better) == rule.top_k
        elif fate is None:
            assert rule.max_per_domain is None or len(neighbours) < rule.max_per_domain
            assert rule.max_per_cluster > 1 or not like
        else:
            assert fate == ("unrated" if rows[i][0] is None else "below_threshold")


ALIKE = {
    "a": (4.5, "How do I bake bread?", "www.a.org"),
    "b": (5.0, "how do i bake a bread", "a.org"),
    "c": (4.0, "How do I bake a bread?!", "b.org"),
    "d": (4.6, "What is a weir?", "A.org:8080"),
    "e": (4.5, "Name a river.", "a.org"),
    "f": (None, "How do I bake bread?", "a.org"),
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"threshold": 4}, {"f": "unrated"}),
        (
            {"threshold": 4, "near_duplicate_jaccard": 0.8},
            {"a": "near_duplicate", "c": "near_duplicate", "f": "unrated"},
        ),
        (
            {"threshold": 4, "near_duplicate_jaccard": 0.8, "max_per_cluster": 2},
            {"c": "near_duplicate", "f": "unrated"},
        ),
        ({"threshold": 4, "near_duplicate_jaccard": 1}, {"c": "near_duplicate", "f": "unrated"}),
        ({"threshold": 4, "max_per_domain": 2}, {"a": "over_domain_cap", "e": "over_domain_cap", "f": "unrated"}),
        (
            {"top_k": 3, "threshold": None, "near_duplicate_jaccard": 0.8, "max_per_domain": 3},
            {"a": "near_duplicate", "c": "not_in_top_k", "f": "unrated"},
        ),
        (
            {"threshold": 4.6, "near_duplicate_jaccard": 0.8},
            {"a": "below_threshold", "c": "below_threshold", "e": "below_threshold", "f": "unrated"},
        ),
    ],
)
def test_rules_apply_from_the_best_pair_on(changes: dict, expected: dict) -> None:
    assert chosen(ALIKE, SelectRecipe(**changes)) == dict.fromkeys(ALIKE) | expected


def test_a_pair_over_its_domain_cap_drops_no_other_pair() -> None:
    rows = {"a": (5.0, "What is a dam?", "x.org"), "b": (4.9, "What is a weir?", "x.org"),
            "c": (4.8, "what is a weir", "y.org")}  # fmt: skip
    fates = chosen(rows, SelectRecipe(near_duplicate_jaccard=0.9, max_per_domain=1))
    assert fates == {"a": None, "b": "over_domain_cap", "c": None}


def test_what_each_rule_dropped_and_left_adds_up() -> None:
    fates = chosen(ALIKE, SelectRecipe(threshold=4.5, near_duplicate_jaccard=0.8, max_per_domain=2, sample=1))
    assert counts_by_rule(fates) == [
        {"rule": "unrated", "dropped": 1, "kept": 5},
        {"rule": "below_threshold", "dropped": 1, "kept": 4},
        {"rule": "near_duplicate", "dropped": 1, "kept": 3},
        {"rule": "over_domain_cap", "dropped": 1, "kept": 2},
        {"rule": "not_in_sample", "dropped": 1, "kept": 1},
    ]


@pytest.mark.parametrize(
    ("url", "domain"),
    [
        ("https://www.Example.org/a?b", "example.org"),
        ("http://blog.example.co.uk:8080/", "example.co.uk"),
        ("https://somebody.github.io/page", "somebody.github.io"),
        ("example.org/path", "example.org"),
        ("http://user:secret@example.org./", "example.org"),
        ("http://localhost/", "localhost"),
        ("http://192.0.2.7/a", "192.0.2.7"),
        ("http://[2001:db8::1]/a", "2001:db8::1"),
        ("<http://[broken", ""),
        ("", ""),
    ],
)
def test_domains_are_read_from_urls(url: str, domain: str) -> None:
    assert domain_of(url) == domain


def test_a_rule_that_compares_texts_needs_the_texts() -> None:
    with pytest.raises(KeyError):
        select({"a": 5.0}, SelectRecipe(max_per_domain=1))
    assert SelectRecipe(near_duplicate_jaccard=0.8, max_per_domain=3).words == (
        "scores >= 4.5, at most 1 per cluster of near-duplicates (Jaccard >= 0.8), at most 3 per domain"
    )
