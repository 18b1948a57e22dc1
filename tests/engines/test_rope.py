"""Models with frequencies for short and for long sequences: a reply must not depend on the rows beside it."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from humpback_ray.engines import Request, TransformersEngine, generate_all
from humpback_ray.engines.rope import looks_at_positions, turning_point
from humpback_ray.needs import Resources
from humpback_ray.prompts.chat import encode, encode_prompt
from tests.engines.tiny import save_model

TURN = 32
"""Most tokens of a short sequence."""
FACTORS = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": TURN,
    "short_factor": [1.0] * 8, "long_factor": [3.0 + n for n in range(8)],
}  # fmt: skip
PHI = {"hidden_size": 64, "head_dim": 16, "original_max_position_embeddings": TURN, "rope_parameters": FACTORS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("phi3"), kind="phi3", **PHI)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def run(folder: Path, requests: list[Request]) -> list[Any]:
    engine = TransformersEngine(dtype="float32").build(str(folder), Resources(cpus=1, batch_rows=5))
    try:
        return asyncio.run(generate_all(engine, requests))
    finally:
        engine.close()


def test_replies_of_short_long_and_growing_rows_equal_plain_generate_one_by_one(folder: Path, plain: Any) -> None:
    model, tokenizer = plain
    draw = random.Random(0)
    head = "Which of five grades fits the town? "  # more tokens than a prefix needs
    texts = [head * (n % 3 == 0) + "Arden " * draw.choice([1, 2, 3, 14]) + f"{n}" for n in range(18)]
    requests = [Request(text, draw.choice([3, 12, 40])) for text in texts]
    lengths = [len(encode_prompt(tokenizer, request.prompt)) for request in requests]
    ends = [length + request.max_new_tokens for length, request in zip(lengths, requests, strict=True)]
    assert any(end <= TURN for end in ends)
    assert any(length > TURN for length in lengths)
    assert sum(length <= TURN < end for length, end in zip(lengths, ends, strict=True)) > 3
    expected = []
    for request in requests:
        ids = torch.tensor([encode_prompt(tokenizer, request.prompt)])
        # With a cache, transformers 5.19 forgets all but the last token when a sequence passes the turning point.
        out = model.generate(ids, max_new_tokens=request.max_new_tokens, do_sample=False, use_cache=False)
        expected.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    assert [completion.text for completion in run(folder, requests)] == expected


def test_scores_do_not_depend_on_the_rows_beside_them(folder: Path, plain: Any) -> None:
    model, tokenizer = plain
    prompts = ["Arden " * count for count in (1, 6, 13, 14, 15, 16, 20, 40)]
    requests = [Request(prompt, continuations=(" river", " 1 2 3")) for prompt in prompts]
    for request, scored in zip(requests, run(folder, requests), strict=True):
        head = encode_prompt(tokenizer, request.prompt)
        for text, found in zip(request.continuations, scored.logprobs, strict=True):
            tail = encode(tokenizer, text)
            with torch.no_grad():  # all but the last token, whose own position is not needed
                logprobs = model(torch.tensor([[*head, *tail[:-1]]])).logits[0, -len(tail) :].log_softmax(-1)
            wanted = logprobs.gather(1, torch.tensor(tail)[:, None]).sum().item()
            assert found == pytest.approx(wanted, abs=1e-3)


def test_only_such_models_turn_and_look_at_positions(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    def loaded(where: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(where)

    assert turning_point(loaded(folder)) == TURN
    assert looks_at_positions(loaded(folder))
    other = loaded(save_model(tmp_path / "llama"))
    assert turning_point(other) is None
    assert not looks_at_positions(other)
    dynamic = loaded(
        save_model(tmp_path / "dynamic", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    )
    assert turning_point(dynamic) is None
    assert looks_at_positions(dynamic)
