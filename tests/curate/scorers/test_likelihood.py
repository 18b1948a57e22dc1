"""-ln IFD compared with its definition, computed with plain transformers; pairs without a score say why."""

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from humpback_ray.curate.scorers import FAILURES, Likelihood
from humpback_ray.curate.scorers.base import ScoreRow
from humpback_ray.engines import Completion, EchoEngine, Engine, TransformersEngine
from humpback_ray.needs import Resources
from humpback_ray.prompts.chat import ChatRecipe, encode
from tests.curate.scorers.judges import CHAT, ROW, Judge
from tests.engines.tiny import save_model

RAW = Likelihood(prompt="{instruction}\n", layout="raw")


def rate(scorer: Likelihood, engine: Any, rows: list[dict[str, str]]) -> list[ScoreRow]:
    return asyncio.run(scorer.score(rows, CHAT, engine))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    running = TransformersEngine(dtype="float32").build(str(folder), Resources())
    yield running
    running.close()


def perplexity(folder: Path, before: str, text: str) -> float:
    """Return the perplexity of a text after another: the exponential of the model's own mean loss over its tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    head, tail = [tokenizer.bos_token_id, *encode(tokenizer, before)], encode(tokenizer, text)
    labels = torch.tensor([[-100] * len(head) + tail])
    with torch.inference_mode():
        return math.exp(model(torch.tensor([head + tail]), labels=labels).loss.item())


def test_the_score_is_minus_the_log_of_ifd(folder: Path, engine: Engine) -> None:
    rows = [ROW, {**ROW, "id": "r2", "response": "The library of Arden opens at nine and closes at five."}]
    for row, rated in zip(rows, rate(RAW, engine, rows), strict=True):
        ifd = perplexity(folder, f"{row['instruction']}\n", row["response"]) / perplexity(folder, "", row["response"])
        assert rated["score"] == pytest.approx(-math.log(ifd), abs=1e-4)
        assert rated["samples"] == [rated["score"]]
        assert (rated["drop_reason"], rated["first_failures"], rated["completion_tokens"]) == (None, [None], 0)


def test_an_instruction_that_makes_the_response_likelier_is_above_0_and_another_is_at_0() -> None:
    def reply(request: Any) -> Completion:
        told = request.continuations[0] in request.prompt
        return Completion("", len(request.prompt), 0, "scored", (-2.0 if told else -20.0,), (10,))

    helped, useless = rate(RAW, Judge(reply), [{**ROW, "instruction": "Say A low dam."}, ROW])
    assert helped["score"] == pytest.approx(1.8)
    assert useless["score"] == 0


def test_the_model_reads_both_passes(folder: Path, engine: Engine) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    (rated,) = rate(RAW, engine, [ROW])
    prompt, response = (len(encode(tokenizer, text)) for text in ("What is a weir?\n", ROW["response"]))
    assert rated["prompt_tokens"] == (1 + prompt + response) + (1 + response)


def test_the_chat_layout_asks_as_the_forward_model_was_trained() -> None:
    judge = Judge(lambda r: Completion("", 9, 0, "scored", (-1.0,), (1,)))
    rate(Likelihood(tags="seed"), judge, [ROW])
    assert [(r.prompt, r.continuations) for r in judge.asked] == [
        ("Q: What is a weir? S.\nA: ", ("A low dam.",)),
        ("", ("A low dam.",)),
    ]


def test_an_empty_response_and_one_that_does_not_fit_are_failures_and_affect_no_other_row(engine: Engine) -> None:
    rows = [{**ROW, "response": " \n"}, ROW, {**ROW, "response": "dam " * 400}]
    empty, good, long = rate(RAW, engine, rows)
    assert (empty["score"], empty["drop_reason"], empty["samples"]) == (None, "unrated_empty_response", [])
    assert good["score"] is not None
    assert (long["score"], long["drop_reason"], long["samples"]) == (None, "prompt_too_long", [None])
    assert {empty["drop_reason"], long["drop_reason"]} <= FAILURES


def test_a_score_needs_both_passes_to_fit() -> None:
    engine = EchoEngine(max_context_tokens=6).build("", Resources())
    (rated,) = rate(RAW, engine, [ROW])
    assert rated["drop_reason"] == "prompt_too_long"


@pytest.mark.parametrize(
    "scored",
    [
        Completion("", 9, 0, "scored", (-math.inf,), (3,)),
        Completion("", 9, 0, "scored", (math.nan,), (3,)),
        Completion("", 9, 0, "scored", (-3.0,), (0,)),
        Completion("", 9, 0, "scored", None, None),
    ],
)
def test_a_score_that_is_not_finite_is_a_failure(scored: Completion) -> None:
    (rated,) = rate(RAW, Judge(lambda r: scored), [ROW])
    assert (rated["score"], rated["drop_reason"]) == (None, "unrated_no_number")


@pytest.mark.parametrize(
    ("prompt", "message"), [("Say:", r"lacks \{instruction\}"), ("{instruction} {response}", r"contains \{response\}")]
)
def test_a_prompt_with_the_response_or_without_the_instruction_is_refused(prompt: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Likelihood(prompt=prompt)


def test_the_default_is_usable_with_any_layout(engine: Engine) -> None:
    (rated,) = asyncio.run(Likelihood().score([ROW], ChatRecipe(), engine))
    assert rated["score"] is not None
    assert math.isfinite(rated["score"])
