"""vLLM serves an exported model with the same greedy tokens as the model in memory."""

import asyncio
from pathlib import Path

import pytest

from humpback_ray.engines import Request, VllmEngine
from humpback_ray.needs import Resources
from humpback_ray.placement import TrainPlacement
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.train.export.reload import probe_prompt
from humpback_ray.train.loop import Session, train
from humpback_ray.train.recipe import Lora
from tests.engines.tiny import save_model
from tests.train.workers import job

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.mark.parametrize("changes", [{}, {"method": Lora(rank=4), "learning_rate": 1e-2}], ids=["full", "lora"])
def test_the_first_greedy_tokens_of_an_export_are_those_in_memory(
    pairs: tuple[str, ...], tmp_path: Path, changes: dict[str, object]
) -> None:
    from transformers import AutoTokenizer

    base = save_model(tmp_path / "base")
    this = job(base, pairs, tmp_path / "model", **changes)
    result = train(this, TrainPlacement(zero_stage=2, micro_batch_tokens=600), Session.alone(str(tmp_path / "c")))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    engine = VllmEngine(dtype="float32", eager=True).build(
        str(tmp_path / "model"), Resources(cpus=1, cache_bytes=64 << 20)
    )
    prompt = probe_prompt(ChatRecipe(), "forward")
    reply = asyncio.run(engine.generate(Request(prompt, max_new_tokens=len(result.greedy))))
    engine.close()
    end = tokenizer.eos_token_id
    expected = result.greedy[: result.greedy.index(end)] if end in result.greedy else result.greedy
    assert reply.text == tokenizer.decode(expected)
    assert reply.completion_tokens >= len(expected) > 0
