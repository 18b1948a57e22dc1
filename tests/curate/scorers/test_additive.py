import asyncio

import pytest

from humpback_ray.curate.scorers import Additive
from humpback_ray.curate.scorers.base import ScoreRow
from humpback_ray.engines import Completion, Request
from humpback_ray.prompts.rating import parse_points
from tests.curate.scorers.judges import CHAT, ROW, Judge, judge_of


def rate(scorer: Additive, judge: Judge) -> ScoreRow:
    (rated,) = asyncio.run(scorer.score([ROW], CHAT, judge))
    return rated


@pytest.mark.parametrize(
    ("reply", "finish_reason", "points"),
    [
        ("One point for each.\nScore: 5", "stop", 5),
        ("None of it holds.\n\nScore: 0\n", "stop", 0),
        ("**Score: 3**", "stop", 3),
        ("Score: 5\nOn reflection, no.", "stop", None),
        ("Score: 4", "length", None),
        ("Score: 6", "stop", None),
        ("Score: 4/5", "stop", 4),
        ("Total: 4 points", "stop", 4),
        ("Score: 3.5", "stop", 3.5),
        ("Score: 2 + 1", "stop", None),
        ("Score: -1", "stop", None),
        ("", "stop", None),
    ],
)
def test_only_the_last_line_of_a_finished_reply_gives_points(
    reply: str, finish_reason: str, points: float | None
) -> None:
    assert parse_points(reply, finish_reason) == points


def test_three_samples_are_averaged_and_zero_points_is_a_score() -> None:
    rated = rate(Additive(), judge := judge_of(("Score: 0", "stop"), ("Score: 0", "stop"), ("Score: 1", "stop")))
    assert (rated["score"], rated["samples"], rated["drop_reason"]) == (pytest.approx(1 / 3), [0, 0, 1], None)
    assert "What is a weir?" in judge.asked[0].prompt
    assert "0 to 5" in judge.asked[0].prompt


def test_the_expected_sum_weights_all_six() -> None:
    def reply(request: Request) -> Completion:
        logprobs = tuple(-1.0 - 0.5 * k for k in range(len(request.continuations)))
        return Completion("", 9, 0, "scored", logprobs) if logprobs else Completion("Score: 1", 9, 3, "stop")

    rated = rate(Additive(samples=1, read="expected"), judge := Judge(reply))
    assert judge.asked[1].continuations == (" 0", " 1", " 2", " 3", " 4", " 5")
    weights = [2.718281828459045 ** (-0.5 * k) for k in range(6)]
    assert rated["score"] == pytest.approx(sum(k * w for k, w in enumerate(weights)) / sum(weights))
