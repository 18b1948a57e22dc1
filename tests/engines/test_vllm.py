"""vLLM beyond the contract: its numbers equal those of plain transformers, and its processes end."""

import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from humpback_ray.engines import Engine, Request, VllmEngine, generate_all
from humpback_ray.needs import Resources
from humpback_ray.prompts.chat import encode_prompt
from humpback_ray.stages.processes import Dead
from tests.engines.test_transformers import generate_plainly
from tests.engines.tiny import save_model

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
RESOURCES = Resources(cpus=1, cache_bytes=64 << 20)
CONFIG = VllmEngine(dtype="float32", eager=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), context_tokens=512)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    engine = CONFIG.build(str(folder), RESOURCES)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(
        folder
    )


def test_a_step_is_as_large_as_the_placement_says(folder: Path) -> None:
    limits = {"max_num_seqs": 7, "max_num_batched_tokens": 600}
    engine: Any = CONFIG.build(str(folder), replace(RESOURCES, **limits))
    scheduler = engine._llm.vllm_config.scheduler_config
    engine.close()
    assert {name: getattr(scheduler, name) for name in limits} == limits


def engine_processes(pid: int) -> list[psutil.Process]:
    """Return the processes that vLLM started below one, without the one that Python adds."""
    below = psutil.Process(pid).children(recursive=True)
    return [process for process in below if "resource_tracker" not in " ".join(process.cmdline())]


def test_prompts_of_many_requests_at_once_are_read_and_sampled(engine: Engine) -> None:
    """There are more than vLLM reads in a step; on a CPU it must not read a seeded request's prompt in parts."""
    text = "the library of Arden " * 20
    requests = [Request(f"{i} {text}", max_new_tokens=3, temperature=1.0, seed=i) for i in range(60)]
    replies = asyncio.run(generate_all(engine, requests))
    assert min(reply.prompt_tokens for reply in replies) * len(requests) > 8192
    assert all(reply.completion_tokens for reply in replies)


def test_greedy_replies_equal_plain_generate(engine: Engine, plain: Any) -> None:
    requests = [Request(f"{i} rivers flow through Arden " * (1 + i % 9), max_new_tokens=1 + i % 12) for i in range(24)]
    replies = asyncio.run(generate_all(engine, requests))
    assert [reply.text for reply in replies] == [generate_plainly(plain, request) for request in requests]
    assert len({reply.finish_reason for reply in replies}) == 2, "some end, some are cut"


@pytest.mark.parametrize("text", ["", "the river of Arden " * 40], ids=["short", "in the cache"])
def test_continuations_have_the_log_probability_of_all_their_tokens(engine: Engine, plain: Any, text: str) -> None:
    import torch

    model, tokenizer = plain
    words = (" 1", " 5", " the library", "é", "</s>", " the library of Arden opens at nine and closes at five")
    every = tuple(t for i in range(3, len(tokenizer)) if "\ufffd" not in (t := tokenizer.decode([i])))
    for continuations in (words[:2], words[:5], words, every):
        request = Request(text, continuations=continuations)
        once, again = asyncio.run(generate_all(engine, [request, request]))
        assert once.logprobs is not None
        head, expected = encode_prompt(tokenizer, text), []
        for continuation in continuations:
            tail = tokenizer.encode(continuation, add_special_tokens=False, split_special_tokens=True)
            with torch.no_grad():
                logprobs_TV = torch.log_softmax(model(torch.tensor([[*head, *tail]])).logits[0], -1)
            expected.append(sum(logprobs_TV[len(head) + i - 1, token].item() for i, token in enumerate(tail)))
        assert once.logprobs == pytest.approx(expected, abs=1e-3)
        assert again.logprobs == pytest.approx(expected, abs=1e-3)


def test_requests_that_fill_the_context_to_the_last_token_are_scored_and_generated(engine: Engine, plain: Any) -> None:
    tokenizer = plain[1]
    prompt = "a" * (512 - len(encode_prompt(tokenizer, "")) - 1)
    room = 512 - len(encode_prompt(tokenizer, prompt))
    scored, written = asyncio.run(
        generate_all(engine, [Request(prompt, continuations=("b",)), Request(prompt, max_new_tokens=room)])
    )
    assert (scored.finish_reason, written.finish_reason) == ("scored", written.finish_reason)
    assert written.finish_reason in ("stop", "length")
    (over,) = asyncio.run(generate_all(engine, [Request(prompt, max_new_tokens=room + 1)]))
    assert over.finish_reason == "context"


def test_a_request_that_vllm_refuses_affects_no_other_request(engine: Engine) -> None:
    async def both() -> list[Any]:
        requests = [Request("a", max_new_tokens=3, temperature=99.0), Request("b", max_new_tokens=3)]
        return await asyncio.gather(*map(engine.generate, requests), return_exceptions=True)

    refused, served = asyncio.run(both())
    assert isinstance(refused, Exception)
    assert not isinstance(refused, Dead)
    assert "temperature" in str(refused)
    assert served.completion_tokens >= 1


def test_a_caller_that_cancels_ends_its_request_in_vllm(engine: Any) -> None:
    async def abandon() -> None:
        tasks = [
            asyncio.create_task(engine.generate(Request(f"x{i}", max_new_tokens=450, temperature=1.0)))
            for i in range(9)
        ]
        while engine._llm.get_num_unfinished_requests() < 9:
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.cancelled() for task in tasks)
        deadline = time.monotonic() + 10
        while engine._llm.get_num_unfinished_requests():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    asyncio.run(abandon())


def test_the_checkpoints_sampling_defaults_and_end_tokens(folder: Path, tmp_path: Path, plain: Any) -> None:
    """Its sampling defaults have no effect, but its end tokens do; then every request learns that the engine died."""
    import shutil

    import torch
    from transformers import GenerationConfig

    request = Request("the library of Arden", max_new_tokens=12)
    model, tokenizer = plain
    ids = encode_prompt(tokenizer, request.prompt)
    said = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :].tolist()
    changed = shutil.copytree(folder, tmp_path / "changed")
    GenerationConfig(
        do_sample=True, temperature=2.0, repetition_penalty=3.0, eos_token_id=[1, said[3]]
    ).save_pretrained(changed)
    before = set(engine_processes(os.getpid()))
    engine = CONFIG.build(str(changed), RESOURCES)
    reply = asyncio.run(engine.generate(request))
    assert reply.text == tokenizer.decode(said[: said.index(said[3])])
    assert reply.finish_reason == "stop"

    async def outlive() -> list[Any]:
        requests = [Request(f"{i}", max_new_tokens=490, temperature=1.0, seed=i) for i in range(40)]
        tasks = [asyncio.create_task(engine.generate(request)) for request in requests]
        await asyncio.sleep(0.05)
        for process in set(engine_processes(os.getpid())) - before:
            process.kill()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)

    assert Dead in {type(outcome) for outcome in asyncio.run(outlive())}
    with pytest.raises(Dead, match="vLLM has died"):
        asyncio.run(engine.generate(request))
    engine.close()
