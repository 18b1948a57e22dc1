"""Shapes have exactly as many parameters as transformers' models."""

from typing import Any

import pytest

from humpback_ray.train.sizes import SIZES, Shape, shape_of


def transformers_config(shape: Shape) -> Any:
    from transformers import LlamaConfig, Qwen3Config

    return (Qwen3Config if shape.qk_norm else LlamaConfig)(
        hidden_size=shape.hidden, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, intermediate_size=shape.ffn, vocab_size=shape.vocabulary,
        head_dim=shape.head, tie_word_embeddings=shape.tied,
    )  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_a_size_has_the_parameters_of_transformers_model_on_the_meta_device(name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    shape = SIZES[name]
    config = transformers_config(shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.largest == max(parameter.numel() for parameter in model.parameters())
    assert shape_of(config.to_dict()) == shape


@pytest.mark.parametrize(
    ("name", "published"),
    [("llama-7b", 6_738_415_616), ("llama-65b", 65_285_660_672), ("llama-3.1-8b", 8_030_261_248),
     ("llama-3.1-70b", 70_553_706_496), ("qwen3-8b", 8_190_735_360)],
)  # fmt: skip
def test_known_models_have_the_published_number_of_parameters(name: str, published: int) -> None:
    assert SIZES[name].parameters == published


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match="family is gpt2"):
        shape_of({"model_type": "gpt2"})


def test_flops_are_two_per_matrix_element_and_token_and_four_per_pair_of_tokens_and_dimension() -> None:
    shape = Shape(hidden=8, layers=2, heads=2, kv_heads=1, ffn=16, vocabulary=10, head=4)
    matrices = 2 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16)
    assert shape.forward_flops(1, 0) == 2 * matrices + 2 * 8 * 10
    assert shape.forward_flops(6, 6) - shape.forward_flops(6, 0) == 2 * 2 * 4 * (4 * 6 * 6) / 2
    assert shape.forward_flops(6, 0, logits=1) == 6 * 2 * matrices + 2 * 8 * 10
