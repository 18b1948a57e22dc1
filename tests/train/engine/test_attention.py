"""Packed examples compute the same as alone, in every family that can pack; the others are padded and correct too."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from humpback_ray.placement import TrainPlacement
from humpback_ray.train.data.examples import Example
from humpback_ray.train.engine.attention import can_pack, logits_of, prepare
from humpback_ray.train.engine.losses import summed_cross_entropy, summed_loss
from humpback_ray.train.job import TrainingStopped

VOCABULARY = 64
SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
SHAPE: dict[str, Any] = {
    **SMALL,
    "vocab_size": VOCABULARY,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
}
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("LlamaConfig", SHAPE, "packed"),
    "qwen3": ("Qwen3Config", SHAPE, "packed"),
    "mistral": ("MistralConfig", {**SHAPE, "sliding_window": 5}, "packed"),
    "gemma3": (
        "Gemma3TextConfig",
        {**SHAPE, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
        "packed",
    ),
    "mixtral": ("MixtralConfig", {**SHAPE, "sliding_window": 5, "num_local_experts": 3}, "packed"),
    "ministral3": (
        "Ministral3Config",
        {
            **SHAPE,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "llama_4_scaling_beta": 0.5,
                "original_max_position_embeddings": 8,
            },
        },
        "packed",
    ),
    "nemotron, which drops arguments": ("NemotronConfig", SHAPE, "padded"),
    "phimoe": ("PhimoeConfig", {**SHAPE, "num_local_experts": 3, "sliding_window": None}, "packed"),
    "phimoe, whose attention knows no window": (
        "PhimoeConfig",
        {**SHAPE, "num_local_experts": 3, "sliding_window": 5},
        "padded",
    ),
    "doge, which makes its own mask": ("DogeConfig", SHAPE, "padded"),
    "llama4, which counts the row's tokens": (
        "Llama4TextConfig",
        {
            **SHAPE,
            "intermediate_size_mlp": 48,
            "num_local_experts": 2,
            "pad_token_id": 0,
            "floor_scale": 4,
            "layer_types": ["full_attention"] * 2,
            "no_rope_layers": [1, 0],
        },
        "padded",
    ),
    "opt": ("OPTConfig", {**SMALL, "vocab_size": VOCABULARY, "ffn_dim": 48, "word_embed_proj_dim": 32}, "packed"),
    "gpt_neox": ("GPTNeoXConfig", {**SMALL, "vocab_size": VOCABULARY}, "packed"),
    "gpt2": ("GPT2Config", {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4}, "packed"),
    "gemma4": (
        "Gemma4TextConfig",
        {
            **SMALL,
            "vocab_size": VOCABULARY,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "global_head_dim": 8,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "packed",
    ),
    "gemma2": ("Gemma2Config", SHAPE, "padded"),
    "mamba": (
        "MambaConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2},
        "padded",
    ),
}


def model_of(family: str) -> Any:
    import torch
    import transformers

    name, values, _ = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**values)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def examples() -> list[Example]:
    draw = np.random.default_rng(0)
    sizes = [(17, 5), (9, 8), (23, 1), (2, 1)]
    return [
        Example(str(number), draw.integers(0, VOCABULARY, length, np.int32), start)
        for number, (length, start) in enumerate(sizes)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_examples_have_the_same_logits_in_a_micro_batch_as_alone(family: str) -> None:
    import torch

    model, some = model_of(family), examples()
    with torch.no_grad():
        alone = [
            model(torch.tensor(example.ids[None], dtype=torch.long)).logits[0, example.loss_start - 1 : -1]
            for example in some
        ]
        batching = prepare(model, TrainPlacement())
        together, targets = logits_of(model, some, batching, "cpu")
    assert batching == FAMILIES[family][2]
    assert targets.tolist() == [int(token) for example in some for token in example.ids[example.loss_start :]]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_scores_are_capped_as_the_model_asks() -> None:
    """torch's kernel would leave the cap out."""
    import torch

    model = model_of("gemma2")
    model.config.attn_logit_softcapping = 0.01
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = 0.01
    some = examples()[:1]
    with torch.no_grad():
        without = logits_of(model, some, "padded", "cpu")[0]
        found = logits_of(model, some, prepare(model, TrainPlacement()), "cpu")[0]
        model.set_attn_implementation("eager")
        expected = logits_of(model, some, "padded", "cpu")[0]
    torch.testing.assert_close(found, expected)
    assert (without - expected).abs().max() > 10 * (found - expected).abs().max() + 1e-6


def test_a_model_whose_tokens_see_later_ones_is_refused() -> None:
    from transformers import AutoModelForCausalLM, RobertaConfig

    values: dict[str, Any] = {**SMALL, "vocab_size": VOCABULARY}
    with pytest.raises(TrainingStopped, match=r"RobertaForCausalLM cannot be trained to write: its tokens see"):
        prepare(AutoModelForCausalLM.from_config(RobertaConfig(**values)), TrainPlacement())
    decoder = AutoModelForCausalLM.from_config(RobertaConfig(**values, is_decoder=True))
    assert prepare(decoder, TrainPlacement()) == "padded", "its positions begin behind the padding token's id"


def test_an_empty_micro_batch_has_no_loss_but_a_graph() -> None:
    for family in ("llama", "mamba"):
        model = model_of(family)
        loss = summed_loss(model, [], prepare(model, TrainPlacement()), "cpu")
        loss.backward()
        assert loss.item() == 0
        assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
        assert any(parameter.grad is not None for parameter in model.parameters())


def test_a_prepared_model_still_reads_a_single_text_and_padding() -> None:
    import torch

    plain, model = model_of("mistral"), model_of("mistral")
    prepare(model, TrainPlacement())
    ids, mask = torch.tensor([examples()[0].ids.tolist()] * 2), torch.ones(2, 17, dtype=torch.long)
    mask[1, :4] = 0
    with torch.no_grad():
        for attention_mask in (None, mask):
            expected, found = (m(ids, attention_mask=attention_mask).logits for m in (plain, model))
            seen = (attention_mask if attention_mask is not None else torch.ones(2, 17)) > 0
            torch.testing.assert_close(found[seen], expected[seen], rtol=1e-4, atol=1e-5)


def test_families_that_mask_in_chunks_are_not_packed() -> None:
    from transformers import Llama4TextConfig
    from transformers.models.llama4.modeling_llama4 import Llama4ForCausalLM

    config = Llama4TextConfig(**SHAPE, intermediate_size_mlp=48, num_local_experts=2, pad_token_id=0)
    assert "chunked_attention" in (config.layer_types or [])
    assert not can_pack(Llama4ForCausalLM(config))


def test_the_loss_does_not_depend_on_how_many_logits_are_taken_at_once() -> None:
    import torch

    found = []
    for at_once in (1 << 26, 200, 1):
        torch.manual_seed(0)
        logits = torch.randn(11, VOCABULARY, requires_grad=True)
        loss = summed_cross_entropy(logits, torch.arange(11), at_once)
        loss.backward()
        assert logits.grad is not None
        found.append((loss.item(), logits.grad))
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)
        torch.testing.assert_close(gradient, found[0][1])


def test_training_does_not_use_cudnn_attention() -> None:
    import torch

    torch.backends.cuda.enable_cudnn_sdp(True)
    prepare(model_of("llama"), TrainPlacement())
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_flash_attention_without_a_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="gpus_per_worker is 0"):
        TrainPlacement(attention="flash_attention_2")


def test_ligers_kernels_are_used_only_on_gpus_and_only_if_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    assert prepare(model, TrainPlacement(gpus_per_worker=1)) == "packed"  # Liger is not installed here
    changed: list[Any] = []
    liger = SimpleNamespace(_apply_liger_kernel_to_instance=changed.append)
    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace(transformers=liger))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", liger)
    prepare(model, TrainPlacement(gpus_per_worker=0))
    prepare(model, TrainPlacement(gpus_per_worker=1, kernels="plain"))
    assert changed == []
    prepare(model, TrainPlacement(gpus_per_worker=1))
    assert changed == [model]
