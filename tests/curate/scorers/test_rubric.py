import asyncio
import math
from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from humpback_ray.curate.scorers import FAILURES, Rubric, RubricExpected, ScorerConfig
from humpback_ray.curate.scorers.replies import expected_grade
from humpback_ray.engines import Completion, EchoEngine
from humpback_ray.placement import Resources
from humpback_ray.prompts.own import UserMessage
from humpback_ray.records import SCORE
from tests.curate.scorers.judges import CHAT, ROW, Judge, judge_of

RAW = "Question:\n{instruction}\nAnswer:\n{response}\nReview:\n"


def grades(*shares: float) -> Completion:
    return Completion("", 50, 0, "scored", tuple(math.log(share) if share else -math.inf for share in shares))


def rate(scorer: Rubric | RubricExpected, judge: Judge, row: Mapping[str, Any] = ROW) -> dict[str, Any]:
    (rated,) = asyncio.run(scorer.score([row], CHAT, judge))
    assert set(rated) == set(SCORE.names) - {"scorer", "model", "sampling", "pre_score"}
    return rated


def test_parsed_samples_are_averaged_over_those_that_parse() -> None:
    judge = judge_of(("Good.\nScore: 4", "stop"), ("Score: 5", "length"), ("Fine\nScore: 5", "stop"), ("eh", "stop"))
    rated = rate(Rubric(samples=4, retry_room=None), judge)
    assert rated["score"] == 4.5
    assert rated["samples"] == [4, None, 5, None]
    assert rated["finish_reasons"] == ["stop", "length", "stop", "stop"]
    assert rated["replies"] == ["Good.\nScore: 4", "Score: 5", "Fine\nScore: 5", "eh"]
    assert rated["drop_reason"] is None
    assert (rated["prompt_tokens"], rated["completion_tokens"]) == (50, 28)


@pytest.mark.parametrize(
    ("replies", "reason"),
    [
        ([("no idea", "stop")] * 3, "unrated_unparsed"),
        ([("Well, let me see", "length")] * 3, "unrated_unfinished"),
        ([("", "context")] * 3, "prompt_too_long"),
        ([("no idea", "stop"), ("Well", "length"), ("Well", "length")], "unrated_unfinished"),
    ],
)
def test_a_rating_without_any_score_says_why(replies: list[tuple[str, str]], reason: str) -> None:
    rated = rate(Rubric(samples=3, retry_room=None), judge_of(*replies))
    assert (rated["score"], rated["samples"], rated["drop_reason"]) == (None, [None] * 3, reason)
    assert reason in FAILURES


def test_samples_have_seeds_of_their_own_that_a_retry_repeats() -> None:
    first, again = (judge_of(*[("Score: 3", "stop")] * 3) for _ in range(2))
    rate(Rubric(samples=3), first)
    rate(Rubric(samples=3), again)
    assert [request.seed for request in first.asked] == [request.seed for request in again.asked]
    assert len({request.seed for request in first.asked}) == 3
    assert {(r.temperature, r.top_p, r.max_new_tokens) for r in first.asked} == {(0.7, 0.9, 512)}


def test_the_expected_grade_is_read_where_the_reply_put_its_own() -> None:
    judge = Judge(
        lambda r: grades(0, 0, 0.1, 0.1, 0.2) if r.continuations else Completion("Meh.\n**Score: 3**", 9, 5, "stop")
    )
    rated = rate(Rubric(read="expected", samples=1), judge)
    assert rated["score"] == pytest.approx((3 * 0.1 + 4 * 0.1 + 5 * 0.2) / 0.4)
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
    assert rate(RubricExpected(), Judge(lambda r: grades(0, 0, 0, 0, 0)))["drop_reason"] == "unrated_no_number"


@pytest.mark.parametrize("lost", [(-math.inf,) * 5, (-1.0, math.nan, -1.0, -1.0, -1.0), None])
def test_no_probability_is_no_grade(lost: tuple[float, ...] | None) -> None:
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
        ({"kind": "rubric", "prompt": "Rate {response}"}, "lacks {instruction}"),
        ({"kind": "rubric_expected", "samples": 3}, "Extra inputs"),
        ({"kind": "stars"}, "stars"),
    ],
)
def test_a_scorer_that_cannot_work_is_refused_with_the_fix(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(ScorerConfig).validate_python(values)
