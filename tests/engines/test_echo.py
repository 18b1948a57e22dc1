import asyncio
import time

from humpback_ray.engines import EchoEngine, Request, generate_all
from humpback_ray.needs import Resources
from humpback_ray.prompts.marks import fill
from humpback_ray.prompts.rating import DIRECT, REASONED, parse_score


def test_a_prompt_that_asks_for_a_score_gets_one_and_others_do_not() -> None:
    engine = EchoEngine().build("", Resources())
    rated = [Request(fill(REASONED, f"q{i}", "a"), 99) for i in range(40)]
    scores = {parse_score(reply.text, reply.finish_reason) for reply in asyncio.run(generate_all(engine, rated))}
    assert scores == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert "Score" not in asyncio.run(engine.generate(Request("What is it?", 99))).text


def test_words_of_the_prompt_come_back_and_nothing_else() -> None:
    reply = asyncio.run(EchoEngine().build("", Resources()).generate(Request("alpha beta gamma", 99)))
    assert set(reply.text.split()) <= {"alpha", "beta", "gamma"}


def test_scoring_prefers_the_grade_that_it_would_write() -> None:
    engine = EchoEngine().build("", Resources())
    prompt, grades = fill(DIRECT, "q", "a"), tuple(f" {grade}" for grade in range(1, 6))
    written = asyncio.run(engine.generate(Request(prompt, 9, reply_prefix="Score:"))).text
    scored = asyncio.run(engine.generate(Request(prompt, reply_prefix="Score:", continuations=grades)))
    assert scored.logprobs is not None
    assert grades[scored.logprobs.index(max(scored.logprobs))] == written


def test_the_delay_is_paid_per_batch_of_rows() -> None:
    engine = EchoEngine(delay_s=0.05).build("", Resources(batch_rows=4))
    started = time.monotonic()
    asyncio.run(generate_all(engine, [Request(str(i), 2) for i in range(8)]))
    assert 0.1 <= time.monotonic() - started < 0.4
