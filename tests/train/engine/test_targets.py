"""Which layers get adapters: `all-linear`, names, what is refused; what passes trains and is merged as peft would."""

from pathlib import Path
from typing import Any

import pytest

from humpback_ray.config import ConfigError, configured
from humpback_ray.placement import TrainPlacement
from humpback_ray.train.engine import lora
from humpback_ray.train.job import TrainingStopped
from humpback_ray.train.loop import Session, train
from humpback_ray.train.recipe import Lora, TrainRecipe
from tests.conftest import Said
from tests.train.conftest import make_tokenizer
from tests.train.tiny import SHAPE, make_family
from tests.train.workers import job


def on_meta(family: str, **changes: Any) -> Any:
    """A model without weights: the choice needs none."""
    import torch

    with torch.device("meta"):
        return make_family(family, **changes)


ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")
MLP_0 = tuple(f"model.layers.0.mlp.{name}" for name in ("down_proj", "gate_proj", "up_proj"))
ALL_LINEAR = {
    "llama": (14, ("down_proj", "gate_proj", *ATTENTION[:3], "up_proj", "v_proj")),
    "gpt2": (8, ("c_attn", "c_fc", "c_proj")),
    "falcon": (8, ("dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value")),
    "mixtral": (8, ATTENTION),
    "qwen3_moe": (8, ATTENTION),
    "phimoe": (8, ATTENTION),
    "laguna": (13, ("g_proj", "k_proj", *MLP_0, "o_proj", "q_proj", "v_proj")),
    "deepseek_v3": (10, ("kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_a_proj", "q_b_proj")),
}


@pytest.mark.parametrize("family", ALL_LINEAR)
def test_all_linear_is_every_linear_layer_whose_adapters_can_be_merged(family: str) -> None:
    choice = lora.choose(on_meta(family), Lora())
    assert (len(choice.layers), choice.targets) == ALL_LINEAR[family]
    assert not any("experts" in name or "lm_head" in name for name in choice.layers)


def test_what_all_linear_leaves_out_is_told_once_with_counts(
    said: Said, tmp_path: Path, pairs: tuple[str, ...]
) -> None:
    save(tmp_path / "base", "phimoe")
    train(
        job(tmp_path / "base", pairs, tmp_path / "model", steps={"m0": 1}, method=Lora(rank=2)),
        TrainPlacement(zero_stage=2, micro_batch_tokens=600), Session.alone(str(tmp_path / "checkpoints")),
    )  # fmt: skip
    (told,) = [text for _, text in said.records if "get adapters" in text]
    assert told == (
        "m0: 8 layers get adapters (k_proj, o_proj, q_proj, v_proj); 4 do not (model.layers.0.mlp.experts.gate_up_proj "
        "and 3 more): fused experts are no linear layers; 2 do not (model.layers.0.mlp.router and 1 more): a "
        "PhimoeTopKRouter, which does more than multiply with its weight"
    )


REFUSED = {
    ("llama", "query"): "query matches no layer of LlamaForCausalLM; names that work: down_proj, gate_proj, k_proj",
    ("llama", "proj"): "proj matches no layer",
    ("llama", "(q|v)_proj"): r"matches no layer",
    ("llama", "all-linear"): "all-linear matches no layer of LlamaForCausalLM; all-linear is given by itself, not in a",
    ("llama", "embed_tokens"): "embed_tokens matches model.embed_tokens, an embedding and not a linear layer; names",
    ("llama", "self_attn"): "matches model.layers.0.self_attn and 1 more, a LlamaAttention and not a linear layer",
    ("llama", "norm"): "norm matches model.norm, a LlamaRMSNorm and not a linear layer",
    ("llama", "q_proj.weight"): "matches model.layers.0.self_attn.q_proj.weight and 1 more, a parameter and not a",
    ("gpt2", "lm_head"): "a layer whose weight is tied to transformer.wte.weight: adapters would change both; names",
    ("gpt2", "q_proj"): "q_proj matches no layer of GPT2LMHeadModel; names that work: c_attn, c_fc, c_proj",
    ("mixtral", "w1"): r"w1 matches no layer of MixtralForCausalLM \(its experts are fused into parameters, model",
    ("mixtral", "gate_up_proj"): "gate_up_proj and 1 more, a parameter with fused experts and not a linear layer",
    ("mixtral", "experts"): "matches model.layers.0.mlp.experts and 1 more, a MixtralExperts and not a linear layer",
    ("mixtral", "gate"): "matches model.layers.0.mlp.gate and 1 more, a MixtralTopKRouter and not a linear layer",
    ("phimoe", "router"): "a PhimoeTopKRouter, which does more than multiply with its weight",
    ("deepseek_v3", "gate_proj"): "a name that peft takes to mean the fused experts of deepseek_v3",
    ("mamba", "dt_proj"): "a layer whose weight MambaMixer uses without calling it: adapters would have no effect",
}  # fmt: skip


@pytest.mark.parametrize(("family", "target"), REFUSED)
def test_a_name_that_cannot_have_adapters_is_refused_with_what_it_matches_and_names_that_work(
    family: str, target: str
) -> None:
    for targets in ((target,), (lora.choose(on_meta(family), Lora()).targets[0], target)):
        with pytest.raises(TrainingStopped, match=REFUSED[family, target]) as refusal:
            lora.choose(on_meta(family), Lora(targets=targets))
        assert str(refusal.value).startswith(f"train.recipe.method.targets: {target} matches ")
        assert "names that work: " in str(refusal.value)


def test_names_are_matched_as_peft_matches_them() -> None:
    """Whole names, and endings after a dot."""
    found = lora.choose(on_meta("llama"), Lora(targets=("layers.1.self_attn.q_proj", "self_attn.v_proj")))
    assert found.layers == (
        "model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj",
    )  # fmt: skip
    assert found.targets == ("model.layers.1.self_attn.q_proj", "v_proj")


def test_the_vision_tower_of_a_model_for_text_and_images_gets_no_adapters() -> None:
    import torch
    from transformers import AutoConfig, Gemma3ForConditionalGeneration

    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    text = SHAPE | {"head_dim": 16}
    config: Any = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=1, image_token_id=299
    )
    with torch.device("meta"):
        choice = lora.choose(Gemma3ForConditionalGeneration(config), Lora())
    assert len(choice.layers) == 14
    assert all(".language_model." in name for name in choice.layers)
    assert any("vision" in name for name, _ in Gemma3ForConditionalGeneration(config).named_modules())
    assert "model.language_model.layers.0.self_attn.q_proj" in choice.targets  # the tower has one too
    assert "gate_proj" in choice.targets


@pytest.mark.parametrize("targets", ["q_proj", "All-Linear", "", [], [""], ["q_proj", "q_proj"], [".q_proj"], [3]])
def test_targets_that_are_no_list_of_names_are_refused_by_the_configuration(targets: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"^method\.targets: it (is all-linear or a list of names|names q_proj twice)"
    ):
        configured(TrainRecipe, {"method": {"kind": "lora", "targets": targets}})


def save(directory: Path, family: str, **changes: Any) -> Path:
    make_family(family, **changes).save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


@pytest.mark.parametrize("family", ["llama", "mixtral", "qwen3_moe", "gpt2"])
def test_what_passes_the_check_trains_and_is_merged_as_peft_would(
    family: str, pairs: tuple[str, ...], tmp_path: Path
) -> None:
    """With the defaults, dropout included; the adapters load into a fresh base model. Llama's embeddings are tied."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tied = {"tie_word_embeddings": True} if family == "llama" else {}
    base = save(tmp_path / "base", family, **tied)
    rates = {"learning_rate": 2e-2, "final_learning_rate": 2e-2, "steps": {"m0": 2}}
    done = train(
        job(base, pairs, tmp_path / "model", method=Lora(rank=4), **rates),
        TrainPlacement(zero_stage=2, micro_batch_tokens=600), Session.alone(str(tmp_path / "checkpoints")),
    )  # fmt: skip
    assert done.metrics[0].gradient_norm > 0
    fresh = AutoModelForCausalLM.from_pretrained(base)
    ours: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    peft: Any = PeftModel.from_pretrained(fresh, str(tmp_path / "model" / "adapter"))
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    theirs = peft.merge_and_unload().state_dict()
    assert before.keys() == theirs.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-6, msg=name)
    untouched = AutoModelForCausalLM.from_pretrained(base).state_dict()
    changed = {name for name in before if not before[name].equal(untouched[name])}
    assert len(changed) == ALL_LINEAR[family][0]
    assert not any("experts" in name or "embed" in name or "lm_head" in name for name in changed)


def test_adapters_with_dropout_under_zero_3_are_merged_as_peft_would(tmp_path: Path, pairs: tuple[str, ...]) -> None:
    """GPT-2's layers keep their weights transposed."""
    from safetensors.torch import load_file

    base = save(tmp_path / "base", "gpt2")
    weights = []
    for stage in (2, 3):
        at = tmp_path / str(stage)
        train(
            job(base, pairs, at / "model", method=Lora(rank=4, dropout=0.3), steps={"m0": 2}, learning_rate=2e-2),
            TrainPlacement(zero_stage=stage, micro_batch_tokens=600), Session.alone(str(at / "checkpoints")),
        )  # fmt: skip
        weights.append(load_file(at / "model/model.safetensors"))
    two, three = weights
    assert two.keys() == three.keys()
    for name in two:
        assert two[name].allclose(three[name], atol=1e-5), name


@pytest.mark.parametrize("stage", [2, 3])
def test_a_target_that_does_not_fit_stops_the_training_before_its_first_step(
    stage: Any, base: Path, pairs: tuple[str, ...], tmp_path: Path
) -> None:
    told: list[Any] = []
    with pytest.raises(TrainingStopped, match=r"^train\.recipe\.method\.targets: embed_tokens matches"):
        train(
            job(base, pairs, tmp_path / "model", method=Lora(targets=("q_proj", "embed_tokens"))),
            TrainPlacement(zero_stage=stage), Session.alone(str(tmp_path / "checkpoints"), told.append),
        )  # fmt: skip
    assert not told
