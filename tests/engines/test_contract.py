"""The contract of every engine. To add an engine, add one line to `ENGINES`."""

import asyncio
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from humpback_ray.engines import (
    Completion,
    EchoEngine,
    Engine,
    Request,
    TransformersEngine,
    VllmEngine,
    generate_all,
)  # fmt: skip
from humpback_ray.needs import Resources
from tests.engines.tiny import save_model

CONTEXT_TOKENS = 256
LONG = "the river flows through the town of Arden " * 400

ENGINES = {
    "echo": EchoEngine(max_context_tokens=CONTEXT_TOKENS),
    "transformers": TransformersEngine(dtype="float32"),
    "transformers, bf16": TransformersEngine(dtype="bfloat16"),
    "vllm": VllmEngine(dtype="float32", eager=True),
}
NEEDS = {"vllm": pytest.mark.vllm}

Run = Callable[..., list[Completion]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), context_tokens=CONTEXT_TOKENS)


@pytest.fixture(scope="module", params=[pytest.param(name, marks=NEEDS.get(name, ())) for name in ENGINES])
def engine(request: pytest.FixtureRequest, model: Path) -> Iterator[Engine]:
    engine = ENGINES[request.param].build(str(model), Resources(cpus=1, batch_rows=4, cache_bytes=64 << 20))
    yield engine
    engine.close()


@pytest.fixture
def run(engine: Engine) -> Run:
    return lambda *requests: asyncio.run(generate_all(engine, requests))


def test_completions_come_in_the_order_of_the_requests(run: Run) -> None:
    requests = [Request(f"{i} " * (1 + i % 7), max_new_tokens=1 + i % 5) for i in range(11)]
    alone = [run(request)[0] for request in requests]
    together = run(*requests)
    assert [c.prompt_tokens for c in together] == [c.prompt_tokens for c in alone]
    assert [c.completion_tokens <= r.max_new_tokens for c, r in zip(together, requests, strict=True)] == [True] * 11


def test_requests_of_several_callers_run_at_once(engine: Engine) -> None:
    async def two_shards() -> tuple[list[Completion], list[Completion]]:
        shards = [[Request(f"{shard} {i}", max_new_tokens=3) for i in range(6)] for shard in "ab"]
        first, second = await asyncio.gather(*(generate_all(engine, shard) for shard in shards))
        return first, second

    assert [len(shard) for shard in asyncio.run(two_shards())] == [6, 6]


def test_a_caller_that_cancels_does_not_affect_other_requests(engine: Engine) -> None:
    async def abandon() -> Completion:
        tasks = [asyncio.create_task(engine.generate(Request(f"x{i}", max_new_tokens=4))) for i in range(9)]
        await asyncio.sleep(0)
        for task in tasks[:8]:
            task.cancel()
        return await tasks[8]

    assert asyncio.run(abandon()).completion_tokens <= 4


def test_a_reply_cut_at_its_limit_says_so_and_uses_all_of_it(run: Run) -> None:
    for completion in run(*(Request(f"{i} rivers", max_new_tokens=2) for i in range(8))):
        if completion.finish_reason == "length":
            assert completion.completion_tokens == 2
        assert completion.finish_reason in ("stop", "length")


def test_a_reply_that_ends_by_itself_says_so(run: Run) -> None:
    replies = run(*(Request(f"{i} rivers", max_new_tokens=60, temperature=1.5, seed=i) for i in range(12)))
    ended = [reply for reply in replies if reply.finish_reason == "stop"]
    assert ended
    assert all("</s>" not in reply.text for reply in ended)


def test_each_request_has_its_own_limit(run: Run) -> None:
    # As if alone: the longer limit of another request of the batch does not lengthen a reply.
    for limit, completion in zip((1, 5, 2), run(*(Request("a b c", max_new_tokens=n) for n in (1, 5, 2))), strict=True):
        assert completion.completion_tokens <= limit


def test_a_request_for_no_tokens_gets_none(run: Run) -> None:
    (completion,) = run(Request("a b c", max_new_tokens=0))
    assert (completion.text, completion.completion_tokens, completion.finish_reason) == ("", 0, "length")


def test_a_prompt_that_does_not_fit_the_context_is_reported_and_affects_no_other_request(run: Run) -> None:
    too_long, fits = run(Request(LONG, max_new_tokens=2), Request("short", max_new_tokens=2))
    assert (too_long.text, too_long.completion_tokens, too_long.finish_reason) == ("", 0, "context")
    assert too_long.prompt_tokens > CONTEXT_TOKENS
    assert fits.finish_reason in ("stop", "length")
    (no_room_for_reply,) = run(Request("short", max_new_tokens=CONTEXT_TOKENS))
    assert no_room_for_reply.finish_reason == "context"
    (not_scored,) = run(Request(LONG, continuations=(" 1", " 2")))
    assert (not_scored.finish_reason, not_scored.logprobs) == ("context", None)


def test_the_same_seed_samples_the_same_reply_and_another_seed_another_one(run: Run) -> None:
    def sampled(seed: int) -> Request:
        return Request("Which river flows through Arden?", max_new_tokens=12, temperature=0.9, top_p=0.95, seed=seed)

    first, again, *others = run(sampled(7), sampled(7), *(sampled(seed) for seed in range(100, 105)))
    assert first == again
    assert len({other.text for other in others}) > 1


def test_a_greedy_reply_does_not_depend_on_the_seed(run: Run) -> None:
    first, second = run(Request("a river", max_new_tokens=5, seed=1), Request("a river", max_new_tokens=5, seed=2))
    assert first == second


def test_probabilities_of_continuations_add_up_to_at_most_one(run: Run) -> None:
    grades = tuple(f" {grade}" for grade in range(1, 6))
    for completion in run(*(Request(f"{i} rivers", reply_prefix="Score:", continuations=grades) for i in range(6))):
        assert completion.finish_reason == "scored"
        assert completion.logprobs is not None
        assert len(completion.logprobs) == 5
        assert completion.scored_tokens is not None
        assert all(tokens >= 1 for tokens in completion.scored_tokens)
        assert all(math.isfinite(logprob) for logprob in completion.logprobs)
        assert sum(math.exp(logprob) for logprob in completion.logprobs) <= 1 + 1e-3


def test_the_greedy_reply_is_the_likeliest_continuation(run: Run) -> None:
    requests = [Request(f"{i} rivers. Score:", max_new_tokens=1, reply_prefix="Score:") for i in range(16)]
    # If the first token is the end token or a part of a character, there is no text to score.
    written = [(r, c.text) for r, c in zip(requests, run(*requests), strict=True) if c.text and "\ufffd" not in c.text]
    assert written
    for request, text in written:
        others = tuple(f" {grade}" for grade in range(1, 6) if f" {grade}" != text)
        (scored,) = run(Request(request.prompt, reply_prefix="Score:", continuations=(*others, text)))
        assert scored.logprobs is not None
        assert max(scored.logprobs) == pytest.approx(scored.logprobs[-1], abs=0.05)  # bf16 has 8 bits


def test_scoring_and_generating_mix(run: Run) -> None:
    requests = [
        Request(f"{i} rivers", continuations=(" 1", " two tokens")) if i % 2 else Request(f"{i}", max_new_tokens=2)
        for i in range(9)
    ]
    kinds = [completion.finish_reason == "scored" for completion in run(*requests)]
    assert kinds == [bool(i % 2) for i in range(9)]


@pytest.mark.parametrize("text", ["", " ", "\n\n", "</s></s><s>", "naïve 😀 東京 \u202e\x00", "a\r\nb"])
def test_any_text_is_a_prompt(run: Run, text: str) -> None:
    generated, scored = run(
        Request(text, max_new_tokens=3), Request(text, reply_prefix=text, continuations=(" 1", " 2"))
    )
    assert generated.finish_reason in ("stop", "length")
    assert scored.finish_reason == "scored"


def test_special_tokens_in_a_prompt_are_plain_text(run: Run) -> None:
    plain, spelled = run(Request("ab", max_new_tokens=1), Request("a</s>b", max_new_tokens=1))
    assert spelled.prompt_tokens >= plain.prompt_tokens
    if plain.prompt_tokens > 1:  # an engine with a real tokenizer: the end token is one token, but its text is several
        assert spelled.prompt_tokens > plain.prompt_tokens + 1
