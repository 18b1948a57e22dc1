"""The single retry: when it happens, how it differs from the first reply, and that all of it is recorded."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from humpback_ray.curate.scorers import FAILURES, Rubric
from humpback_ray.curate.scorers.base import ScoreRow
from humpback_ray.engines import Completion, TransformersEngine
from humpback_ray.needs import Resources
from humpback_ray.prompts.chat import ChatRecipe
from tests.curate.scorers.judges import CHAT, ROW, Judge, judge_of
from tests.engines.tiny import save_model

GREEDY = Rubric(samples=1, temperature=0, max_new_tokens=48)


def rate(scorer: Rubric, judge: Judge) -> ScoreRow:
    (rated,) = asyncio.run(scorer.score([ROW], CHAT, judge))
    return rated


@pytest.mark.parametrize(
    ("failed", "reason"),
    [(("Well, let me see", "length"), "unrated_unfinished"), (("no idea", "stop"), "unrated_unparsed")],
)
@pytest.mark.parametrize("scorer", [GREEDY, Rubric(samples=1, max_new_tokens=48)])
def test_a_failed_reply_is_generated_once_more_with_more_room(scorer: Rubric, failed: Any, reason: str) -> None:
    judge = judge_of(failed, ("Fine.\nScore: 4", "stop"))
    rated = rate(scorer, judge)
    first, second = judge.asked
    assert second.max_new_tokens == 2 * first.max_new_tokens == 96
    assert second.temperature == 0.7
    assert second.seed != first.seed
    assert second.prompt == first.prompt
    assert (rated["score"], rated["samples"], rated["drop_reason"]) == (4, [4], None)
    assert rated["first_failures"] == [reason]
    assert rated["replies"] == ["Fine.\nScore: 4"]
    assert (rated["reply_tokens"], rated["completion_tokens"], rated["prompt_tokens"]) == ([7], 14, 50)


def test_a_double_failure_is_unrated_for_the_second_reason_and_both_are_recorded() -> None:
    rated = rate(GREEDY, judge := judge_of(("Well", "length"), ("no idea", "stop")))
    assert len(judge.asked) == 2
    assert (rated["score"], rated["first_failures"]) == (None, ["unrated_unfinished"])
    assert rated["drop_reason"] == "unrated_unparsed"
    assert rated["finish_reasons"] == ["stop"]


def test_a_good_reply_and_a_prompt_that_does_not_fit_are_not_retried() -> None:
    rated = rate(GREEDY, judge := judge_of(("Score: 2", "stop")))
    assert (len(judge.asked), rated["first_failures"]) == (1, [None])
    rated = rate(GREEDY, judge := judge_of(("", "context")))
    assert (len(judge.asked), rated["first_failures"], rated["drop_reason"]) == (
        1,
        ["prompt_too_long"],
        "prompt_too_long",
    )


def test_if_more_room_does_not_fit_the_context_the_first_room_is_tried() -> None:
    judge = judge_of(("Well", "length"), ("", "context"), ("Score: 3", "stop"))
    assert rate(GREEDY, judge)["score"] == 3
    assert [request.max_new_tokens for request in judge.asked] == [48, 96, 48]


def test_every_sample_has_its_own_retry_and_the_same_one_each_time() -> None:
    def asked() -> list[tuple[int, float]]:
        judge = Judge(lambda r: Completion("no idea", 9, 2, "stop"))
        rate(Rubric(samples=3), judge)
        return [(request.seed, request.temperature) for request in judge.asked]

    assert asked() == asked()
    assert len({seed for seed, _ in asked()}) == 6


def test_the_retry_can_be_turned_off() -> None:
    judge = judge_of(("Well", "length"))
    rated = rate(GREEDY.model_copy(update={"retry_room": None}), judge)
    assert len(judge.asked) == 1
    assert (rated["first_failures"], rated["drop_reason"]) == (["unrated_unfinished"], "unrated_unfinished")


def test_a_grade_without_a_probability_is_retried_and_never_becomes_a_number() -> None:
    def reply(request: Any) -> Completion:
        if request.continuations:
            return Completion("", 50, 0, "scored", (float("nan"),) * 5, (1,) * 5)
        return Completion("Score: 3", 50, 7, "stop")

    rated = rate(GREEDY.model_copy(update={"read": "expected"}), judge := Judge(reply))
    assert len(judge.asked) == 4
    assert (rated["score"], rated["first_failures"]) == (None, ["unrated_no_number"])
    assert rated["drop_reason"] == "unrated_no_number"


def test_a_real_model_that_writes_no_verdict_leaves_an_unrated_row_the_same_each_time(tmp_path: Path) -> None:
    """A random Llama, greedy: the same request would repeat its first reply, its retry differs."""
    save_model(tmp_path, context_tokens=1024)
    scorer = Rubric(prompt="{instruction} {response} Review:", layout="raw", samples=1, temperature=0, max_new_tokens=8)
    rows = [{**ROW, "id": f"r{i}"} for i in range(4)]

    def once() -> list[ScoreRow]:
        engine = TransformersEngine().build(str(tmp_path), Resources())
        try:
            return asyncio.run(scorer.score(rows, ChatRecipe(), engine))
        finally:
            engine.close()

    rated = once()
    assert all(row["score"] is None and row["drop_reason"] in FAILURES for row in rated)
    assert all(row["first_failures"][0] in FAILURES for row in rated)
    assert len({row["replies"][0] for row in rated}) > 1, "drawn with the seed of each row"
    assert once() == rated
