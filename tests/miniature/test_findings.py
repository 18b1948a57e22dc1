import json
from collections.abc import Sequence
from html import unescape

import pytest

from humpback_ray.miniature.findings import ARMS, CLAIMS, RATERS, Claim, Values, findings, outcome, quantile, spread
from humpback_ray.miniature.page import findings_page

CLAIM = Claim("left is better", "left", "right")
AT_LEAST = Claim("left is at least as good", "left", "right", ">=")


def seeds(differences: Sequence[float | None]) -> list[Values]:
    return [{"left": None if d is None else 0.5 + d, "right": 0.5} for d in differences]


@pytest.mark.parametrize(
    ("differences", "verdict", "at_least"),
    [
        ([0.10, 0.12, 0.08, 0.11, 0.09], "appears", "appears"),
        ([0.30, -0.20, 0.10, -0.05, 0.02], "undecided", "undecided"),
        ([-0.10, -0.12, -0.08, -0.11, -0.09], "does not", "does not"),
        ([0.001, -0.001, 0.002, -0.002, 0.0], "undecided", "appears"),
        ([0.0, 0.0, 0.0], "does not", "appears"),
        ([0.5], "undecided", "undecided"),
        ([], "undecided", "undecided"),
    ],
)
def test_a_claim_is_judged_by_the_whole_interval(differences: list[float], verdict: str, at_least: str) -> None:
    assert outcome(CLAIM, seeds(differences)).verdict == verdict
    assert outcome(AT_LEAST, seeds(differences)).verdict == at_least


def test_the_interval_is_students_t_over_the_differences_of_the_seeds_that_have_both() -> None:
    found = outcome(CLAIM, seeds([1.0, 2.0, None, 3.0]))
    assert (found.seeds, found.difference) == (3, 2.0)
    assert found.low == pytest.approx(2 - 4.303 / 3**0.5)
    assert found.high == pytest.approx(2 + 4.303 / 3**0.5)


def test_differences_between_seeds_do_not_blur_a_difference_within_seeds() -> None:
    values: list[Values] = [{"left": base + 0.05, "right": base} for base in (0.1, 0.5, 0.9)]
    assert outcome(CLAIM, values).verdict == "appears"


def test_the_quantile_matches_tables_of_t_and_is_near_the_normal_quantile_beyond_them() -> None:
    assert [quantile(degrees) for degrees in (1, 4, 10, 30)] == [12.706, 2.776, 2.228, 2.042]
    assert quantile(100) == pytest.approx(1.96, abs=1e-3)


def test_a_spread_leaves_out_missing_values() -> None:
    found = spread("x", [0.25, None, 0.75])
    assert (found.seeds, found.mean, found.sd) == (2, 0.5, pytest.approx(0.5**0.5 / 2))
    assert spread("x", [None]).mean is None
    assert spread("x", [0.25]).sd is None


def measured(shift: float) -> Values:
    names = {name for claim in CLAIMS for name in (claim.left, claim.right)}
    names |= {f"{name}.test.{split}" for name, _ in ARMS for split in ("unseen", "pool")}
    names |= {f"{name}.{what}" for name, _ in RATERS for what in ("precision", "recall", "auc")}
    return {**dict.fromkeys(sorted(names), 0.5 + shift), "questions": 0.875, "oracle.test.unseen": None}


def test_page_and_tables_have_every_claim_and_arm_and_mark_missing_values() -> None:
    found = findings({7: measured(0.0), 11: measured(0.1)})
    page, tables = unescape(findings_page(found)), found.markdown()
    for text in (page, tables):
        assert all(claim.says in text for claim in CLAIMS)
        assert all(label in text for _, label in (*ARMS, *RATERS))
        assert "55.0 ± 7.1" in text
        assert "87.5 ± 0.0" in text
        assert "–" in text
    assert "<script" not in page
    assert json.loads(found.json())["values"]["11"]["questions"] == 0.875


def test_every_claim_compares_values_that_are_shown() -> None:
    shown = {f"{name}.test.unseen" for name, _ in ARMS}
    shown |= {f"{name}.{what}" for name, _ in RATERS for what in ("precision", "recall", "auc")}
    assert {name for claim in CLAIMS for name in (claim.left, claim.right)} <= shown
