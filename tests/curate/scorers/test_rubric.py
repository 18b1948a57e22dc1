import asyncio
import math
import random
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from humpback_ray.curate.scorers import FAILURES, Rubric, RubricExpected, ScorerConfig
from humpback_ray.curate.scorers.base import Sample, ScoreRow, Texts, score_row
from humpback_ray.curate.scorers.replies import expected_grade
from humpback_ray.engines import Completion, EchoEngine
from humpback_ray.needs import Resources
from humpback_ray.prompts.own import UserMessage
from humpback_ray.records import SCORE
from tests.curate.scorers.judges import CHAT, ROW, Judge, judge_of

RAW = "Question:\n{instruction}\nAnswer:\n{response}\nReview:\n"


def grades(*shares: float) -> Completion:
    return Completion("", 50, 0, "scored", tuple(math.log(share) if share else -math.inf for share in shares))


def rate(scorer: Rubric | RubricExpected, judge: Judge, row: Texts = ROW) -> ScoreRow:
    (rated,) = asyncio.run(scorer.score([row], CHAT, judge))
    assert set(rated) == set(SCORE.names) - {"scorer", "model", "sampling", "pre_score"}
    return rated


def test_parsed_samples_are_averaged_over_those_that_parse() -> None:
    judge = judge_of(("Good.\nScore: 4", "stop"), ("Score: 5", "length"), ("Fine\nScore: 5", "stop"), ("eh", "stop"))
    rated = rate(Rubric(samples=4, min_samples=2, retry_room=None), judge)
    assert rated["score"] == 4.5
    assert rated["samples"] == [4, None, 5, None]
    assert (rated["failed_samples"], rated["grade_masses"]) == (2, None)
    assert rated["finish_reasons"] == ["stop", "length", "stop", "stop"]
    assert rated["replies"] == ["Good.\nScore: 4", "Score: 5", "Fine\nScore: 5", "eh"]
    assert rated["drop_reason"] is None
    assert (rated["prompt_tokens"], rated["completion_tokens"]) == (50, 28)


@pytest.mark.parametrize(
    ("min_samples", "scored", "score"),
    [(None, 3, 5), (None, 2, None), (None, 1, None), (3, 2, None), (2, 2, 5), (2, 1, None), (1, 1, 5), (1, 0, None)],
)
def test_a_pair_with_too_few_samples_is_unrated_with_its_own_reason(
    min_samples: int | None, scored: int, score: float | None
) -> None:
    replies = [("Score: 5", "stop")] * scored + [("no idea", "stop")] * (3 - scored)
    rated = rate(Rubric(samples=3, min_samples=min_samples, retry_room=None), judge_of(*replies))
    reason = None if score else "unrated_too_few_samples" if scored else "unrated_unparsed"
    assert (rated["score"], rated["drop_reason"]) == (score, reason)
    assert rated["failed_samples"] == 3 - scored
    assert rated["samples"] == [5] * scored + [None] * (3 - scored)
    assert reason is None or reason in FAILURES


def test_samples_count_after_their_retry() -> None:
    rated = rate(Rubric(samples=2), judge_of(("Score: 5", "stop"), ("eh", "stop"), ("Score: 4", "stop")))
    assert (rated["score"], rated["failed_samples"], rated["drop_reason"]) == (4.5, 0, None)
    assert rated["first_failures"].count("unrated_unparsed") == 1


@pytest.mark.parametrize("failed_share", [0.3, 0.58])
def test_lost_samples_keep_no_more_mediocre_pairs(failed_share: float) -> None:
    """The judge's grades do not depend on whether a reply can be read, so the kept pairs must not either."""
    chance = random.Random(0)

    def kept(lost: float) -> float:
        rated = [
            score_row("i", "p", [
                Sample.of(None if chance.random() < lost else chance.choices(range(1, 6), (1, 2, 3.5, 2, 1.5))[0], DONE)
                for _ in range(3)
            ])
            for _ in range(4000)
        ]  # fmt: skip
        scores = [row["score"] for row in rated if row["score"] is not None]
        return sum(score >= 4.5 for score in scores) / len(scores)

    assert kept(failed_share) == pytest.approx(kept(0), abs=0.015)


DONE = Completion("", 1, 1, "stop")


@pytest.mark.parametrize(
    ("replies", "reason"),
    [
        ([("no idea", "stop")] * 3, "unrated_unparsed"),
        ([("Well, let me see", "length")] * 3, "unrated_unfinished"),
        ([("", "context")] * 3, "prompt_too_long"),
        ([("", "not_finite")] * 3, "logits_not_finite"),
        ([("no idea", "stop"), ("Well", "length"), ("Well", "length")], "unrated_unfinished"),
    ],
)
def test_a_rating_without_any_score_says_why(replies: list[tuple[str, str]], reason: str) -> None:
    rated = rate(Rubric(samples=3, retry_room=None), judge_of(*replies))
    assert (rated["score"], rated["samples"], rated["drop_reason"]) == (None, [None] * 3, reason)
    assert reason in FAILURES


def test_samples_have_their_own_seeds_and_rating_again_repeats_them() -> None:
    first, again = (judge_of(*[("Score: 3", "stop")] * 3) for _ in range(2))
    rate(Rubric(samples=3), first)
    rate(Rubric(samples=3), again)
    assert [request.seed for request in first.asked] == [request.seed for request in again.asked]
    assert len({request.seed for request in first.asked}) == 3
    assert {(r.temperature, r.top_p, r.max_new_tokens) for r in first.asked} == {(0.7, 0.9, 512)}


def test_the_expected_grade_is_read_at_the_place_of_the_replys_grade() -> None:
    judge = Judge(
        lambda r: grades(0, 0, 0.2, 0.2, 0.4) if r.continuations else Completion("Meh.\n**Score: 3**", 9, 5, "stop")
    )
    rated = rate(Rubric(read="expected", samples=1), judge)
    assert rated["score"] == pytest.approx((3 * 0.2 + 4 * 0.2 + 5 * 0.4) / 0.8)
    assert rated["grade_masses"] == [pytest.approx(0.8)]
    assert rated["replies"] == ["Meh.\n**Score: 3**"]
    assert judge.asked[1].reply_prefix == "Meh.\n**Score:"
    assert judge.asked[1].continuations == (" 1", " 2", " 3", " 4", " 5")
    assert judge.asked[1].prompt == judge.asked[0].prompt


def test_without_a_score_line_nothing_is_expected() -> None:
    judge = judge_of(("It is nice.", "stop"), ("Score: 3", "length"))
    rated = rate(Rubric(read="expected", samples=2, retry_room=None), judge)
    assert rated["score"] is None
    assert len(judge.asked) == 2


def test_rubric_expected_reads_the_grade_straight_after_the_prompt() -> None:
    judge = Judge(lambda r: grades(0.1, 0.1, 0.1, 0.1, 0.1))
    rated = rate(RubricExpected(), judge)
    (request,) = judge.asked
    assert rated["score"] == pytest.approx(3)
    assert rated["finish_reasons"] == ["scored"]
    assert (request.max_new_tokens, request.reply_prefix) == (0, "Score:")
    assert rate(RubricExpected(), judge_of(("", "context")))["drop_reason"] == "prompt_too_long"
    assert rate(RubricExpected(), judge_of(("", "not_finite")))["drop_reason"] == "logits_not_finite"
    assert rate(RubricExpected(), Judge(lambda r: grades(0, 0, 0, 0, 0)))["drop_reason"] == "unrated_no_number"


@pytest.mark.parametrize("scorer", [RubricExpected, Rubric])
@pytest.mark.parametrize(
    ("mass", "least", "rated_as"),
    [(1e-12, 0.5, None), (0.49, 0.5, None), (0.5, 0.5, 3), (0.49, 0.4, 3), (1e-12, 0, 3), (1.0, 1.0, 3)],
)
def test_grades_that_the_model_would_hardly_write_are_a_failure_that_records_their_mass(
    scorer: type[Rubric | RubricExpected], mass: float, least: float, rated_as: float | None
) -> None:
    judge = Judge(lambda r: grades(*[mass / 5] * 5) if r.continuations else Completion("Score: 2", 50, 7, "stop"))
    more = {"read": "expected", "samples": 1, "retry_room": None} if scorer is Rubric else {}
    rated = rate(scorer(min_grade_mass=least, **more), judge)
    assert rated["score"] == (None if rated_as is None else pytest.approx(rated_as))
    assert rated["drop_reason"] == ("unrated_grades_unlikely" if rated_as is None else None)
    assert rated["grade_masses"] == [pytest.approx(mass, abs=1e-9)]
    assert rated["drop_reason"] is None or rated["drop_reason"] in FAILURES


@pytest.mark.parametrize("said", ["N/A", "0", "10", "4-5", "4.5", "four", ""])
def test_no_grade_is_expected_if_the_reply_has_none(said: str) -> None:
    judge = Judge(lambda r: grades(*[0.2] * 5) if r.continuations else Completion(f"Score: {said}", 50, 7, "stop"))
    rated = rate(Rubric(read="expected", samples=1), judge)
    assert (rated["score"], rated["drop_reason"]) == (None, "unrated_unparsed")


@pytest.mark.parametrize(
    ("reply", "prefix", "continuation"),
    [("Score: 4/5", "Score:", " 1"), ("Score:4", "Score:", "1"), ("Score: **4**", "Score: **", "1")],
)
def test_grades_are_weighted_in_the_form_that_the_reply_uses(reply: str, prefix: str, continuation: str) -> None:
    judge = Judge(lambda r: grades(*[0.2] * 5) if r.continuations else Completion(reply, 50, 7, "stop"))
    assert rate(Rubric(read="expected", samples=1), judge)["score"] == pytest.approx(3)
    assert (judge.asked[1].reply_prefix, judge.asked[1].continuations[0]) == (prefix, continuation)


@pytest.mark.parametrize("lost", [(-math.inf,) * 5, (-1.0, math.nan, -1.0, -1.0, -1.0), None])
def test_without_a_probability_there_is_no_grade(lost: tuple[float, ...] | None) -> None:
    assert expected_grade(Completion("", 1, 0, "scored", lost), range(1, 6)) is None


def test_the_chat_layout_wraps_the_rating_prompt_and_raw_leaves_it_alone() -> None:
    chat, raw = (Rubric(prompt=RAW, layout=layout, tags="seed").render(ROW, CHAT) for layout in ("chat", "raw"))
    assert raw == "Question:\nWhat is a weir?\nAnswer:\nA low dam.\nReview:\n"
    assert chat == f"Q: {raw} S.\nA: "
    assert "S. W." in Rubric().render(ROW, CHAT)
    own = Rubric(prompt=RAW, layout="own").render(ROW, CHAT)
    assert isinstance(own, UserMessage)
    assert own == raw


def test_rows_that_share_a_prompt_share_its_hash_and_come_in_order() -> None:
    rows = [{**ROW, "id": f"r{i}", "response": "same" if i else "other"} for i in range(3)]
    engine = EchoEngine().build("", Resources())
    rated = asyncio.run(Rubric().score(rows, CHAT, engine))
    assert [row["id"] for row in rated] == ["r0", "r1", "r2"]
    assert rated[0]["prompt_hash"] != rated[1]["prompt_hash"] == rated[2]["prompt_hash"]
    assert rated[1]["samples"] != [None] * 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "rubric", "samples": 3, "temperature": 0}, "all 3 replies are the same; set samples to 1"),
        ({"kind": "additive", "min_samples": 4}, "min_samples is 4 but samples is 3, so every rating would fail; set"),
        ({"kind": "rubric_expected", "min_grade_mass": 1.5}, "less than or equal to 1"),
        ({"kind": "rubric", "prompt": "Rate {response}"}, "lacks {instruction}"),
        ({"kind": "rubric_expected", "samples": 3}, "Extra inputs"),
        ({"kind": "stars"}, "stars"),
    ],
)
def test_a_scorer_that_cannot_work_is_refused_with_the_fix(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(ScorerConfig).validate_python(values)
