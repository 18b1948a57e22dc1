"""Where frequencies depend on what is read together, an example still has its loss alone, or training is refused."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from humpback_ray.placement import TrainPlacement
from humpback_ray.train.data.packing import pack
from humpback_ray.train.engine import rope
from humpback_ray.train.engine.attention import prepare
from humpback_ray.train.engine.losses import summed_loss
from humpback_ray.train.job import TrainingStopped
from humpback_ray.train.loop import Session, train
from tests.train.conftest import examples_of, make_tokenizer, plain_loop, rows, tokens_of
from tests.train.workers import RECIPE, job

SHAPE: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 2, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
LONG: dict[str, Any] = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4,
    "original_max_position_embeddings": 40,
}  # fmt: skip
LENGTHS = (39, 40, 41, 12, 90, 7, 3, 25, 60, 40)


def model_of(family: str, **more: Any) -> Any:
    import torch
    import transformers

    config = getattr(transformers, f"{family}Config")(**SHAPE | more)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)  # so that attention matters
    return model


def phi3(original: int = 40) -> Any:
    return model_of("Phi3", rope_parameters=dict(LONG), original_max_position_embeddings=original)


def phimoe() -> Any:
    scales = {"short_mscale": 1.0, "long_mscale": 1.3}
    return model_of("Phimoe", rope_parameters=LONG | scales, num_local_experts=2, sliding_window=None)


@pytest.mark.parametrize("family", [phi3, phimoe])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("workers", "room"), [(1, 100), (2, 130), (3, 400)])
def test_losses_are_those_of_each_example_alone_however_they_are_packed(
    family: Any, padded: bool, workers: int, room: int
) -> None:
    import torch

    model, some = family(), examples_of(LENGTHS)
    assert prepare(model, TrainPlacement()) == "packed"
    boundary = rope.boundary(model.config)
    assert boundary == 40
    batching = "padded" if padded else "packed"
    with torch.no_grad():
        alone = [summed_loss(model, [example], batching, "cpu").item() for example in some]
        for micro in (micro for share in pack(LENGTHS, workers, room, padded, boundary) for micro in share):
            found = summed_loss(model, [some[place] for place in micro], batching, "cpu").item()
            assert found == pytest.approx(sum(alone[place] for place in micro), rel=1e-5)
        mixed = summed_loss(model, some, batching, "cpu").item()
    assert abs(mixed / sum(alone) - 1) > 1e-3, "the two sets of frequencies differ, so they must be kept apart"


def test_other_models_have_no_boundary() -> None:
    assert rope.boundary(model_of("Llama").config) is None
    assert rope.boundary(model_of("GPT2").config) is None


PLAIN = {"rope_type": "default", "rope_theta": 1e4}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


@pytest.mark.parametrize(
    ("family", "parameters", "limit"),
    [
        ("Llama", DYNAMIC, 256),
        ("Gemma3Text", {"full_attention": LONG, "sliding_attention": PLAIN}, 40),
        ("Gemma3Text", {"full_attention": PLAIN, "sliding_attention": DYNAMIC}, 256),
    ],
)
def test_models_that_remember_the_longest_text_are_refused_if_an_example_is_that_long(
    family: str, parameters: dict[str, Any], limit: int
) -> None:
    config = model_of(family, rope_parameters=parameters, head_dim=8).config
    assert rope.problem(config, lambda: limit) is None
    said = rope.problem(config, lambda: limit + 1)
    assert said is not None
    assert f"beyond {limit} tokens" in said
    assert f"the longest example has {limit + 1}; set train.recipe.max_length_tokens to {limit} or less" in said


def test_a_long_text_changes_what_a_dynamic_model_computes_afterwards() -> None:
    """This is why it is refused: the same example has another loss after a longer one."""
    import torch

    model = model_of("Llama", rope_parameters=dict(DYNAMIC))
    first, longer = examples_of((260, 400))
    with torch.no_grad():
        before, _, after = (summed_loss(model, [one], "padded", "cpu").item() for one in (first, longer, first))
    assert abs(after / before - 1) > 1e-4


MEDIAN = 135
"""Tokens that half of the examples of the training have at most."""


def saved(model: Any, directory: Path) -> Path:
    model.save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


def written(directory: Path, limit: int = 256) -> tuple[str, ...]:
    pq.write_table(tokens_of(rows(30), make_tokenizer(), limit), directory / "tokens.parquet")
    return (str(directory / "tokens.parquet"),)


def test_a_training_on_both_sides_of_the_boundary_has_the_losses_of_a_plain_loop(tmp_path: Path) -> None:
    base, pairs = saved(phi3(MEDIAN), tmp_path / "base"), written(tmp_path)
    this = job(base, pairs, tmp_path / "model", steps={"m0": 4})
    found = train(this, TrainPlacement(micro_batch_tokens=600), Session.alone(str(tmp_path / "checkpoints")))
    recipe = RECIPE.model_copy(update={"steps": {"m0": 4}})
    assert [row.loss for row in found.metrics] == pytest.approx(
        [loss for loss, _ in plain_loop(base, pairs, recipe)], rel=1e-5
    )


def test_a_training_that_rotary_scaling_would_spoil_is_refused_before_its_first_step(tmp_path: Path) -> None:
    parameters = {"full_attention": LONG, "sliding_attention": PLAIN}
    base = saved(model_of("Gemma3Text", rope_parameters=parameters, head_dim=8), tmp_path / "base")
    this = job(base, written(tmp_path), tmp_path / "model")
    with pytest.raises(TrainingStopped, match=r"m0: the base model's rope_type is longrope: beyond 40 tokens"):
        train(this, TrainPlacement(), Session.alone(str(tmp_path / "checkpoints")))
