"""vLLM serves an exported model with the same greedy tokens as the model in memory."""

import asyncio
from pathlib import Path
from typing import Any

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


EXPERTS = {"kind": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@pytest.mark.parametrize(
    ("changes", "shape", "stage"),
    [({}, {}, 2), ({"method": Lora(rank=4), "learning_rate": 1e-2}, {}, 2), ({}, EXPERTS, 3)],
    ids=["full", "lora", "experts"],
)
def test_the_first_greedy_tokens_of_an_export_are_those_in_memory(
    pairs: tuple[str, ...], tmp_path: Path, changes: dict[str, object], shape: dict[str, Any], stage: int
) -> None:
    from transformers import AutoTokenizer

    base = save_model(tmp_path / "base", **shape)
    this = job(base, pairs, tmp_path / "model", **changes)
    placement = TrainPlacement.model_validate({"zero_stage": stage, "micro_batch_tokens": 600})
    result = train(this, placement, Session.alone(str(tmp_path / "c")))
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
