"""The private parts of transformers that we use exist in the installed version."""

from collections.abc import Sequence
from pathlib import Path

from humpback_ray.train.engine import transformers_internals
from tests.train.internals import moved, privates

WANTED: dict[str, Sequence[str] | None] = {
    "_supports_attention_backend": None,
    "_supports_sdpa": None,
    "_is_stateful": None,
    "_keys_to_ignore_on_save": None,
    "_get_dtype_plan": ["dtype"],
    "_move_missing_keys_from_meta_to_device": ["missing_keys", "device_map", "device_mesh", "hf_quantizer"],
    "_initialize_missing_keys": ["is_quantized"],
    "_adjust_missing_and_unexpected_keys": ["loading_info"],
}
UNDOCUMENTED: dict[str, Sequence[str] | None] = {
    "get_init_context": ["dtype", "is_quantized", "_is_ds_init_called", "allow_all_kernels"],
    "tie_weights": ["missing_keys", "recompute_mapping"],
}
LOADING: dict[str, Sequence[str] | None] = {
    "rename_source_key": [
        "source_key",
        "weight_renamings",
        "weight_converters",
        "base_model_prefix",
        "meta_state_dict",
        "reverse",
    ],
    "dot_natural_key": ["s"],
}
SET = {"_weight_conversions", "_is_hf_initialized"}
"""Attributes that loading sets; test_families.py fails if they lose their meaning."""
LIGER = {"_apply_liger_kernel_to_instance"}


def test_models_have_what_we_use() -> None:
    from transformers import LlamaForCausalLM, PreTrainedModel

    for model in (PreTrainedModel, LlamaForCausalLM):
        wanted = WANTED | UNDOCUMENTED
        assert list(moved("transformers", transformers_internals.WRITTEN_AGAINST, model, wanted)) == []


def test_loading_has_what_we_use() -> None:
    from transformers import conversion_mapping, core_model_loading, modeling_utils

    mapping = {"get_model_conversion_mapping": ["model", "key_mapping", "hf_quantizer", "add_legacy"]}
    tied = {"remove_tied_weights_from_state_dict": ["state_dict", "model"]}
    rule = {
        "reverse_transform": [],
        "was_used": [],
        "add_tensor": ["target_key", "source_key", "source_pattern", "future"],
    }
    converter = {"convert": ["layer_name", "model", "config"]}
    for owner, wanted in (
        (core_model_loading, LOADING),
        (conversion_mapping, mapping),
        (modeling_utils, tied),
        (core_model_loading.WeightTransform, rule),
        (core_model_loading.WeightConverter, converter),
    ):
        assert list(moved("transformers", transformers_internals.WRITTEN_AGAINST, owner, wanted)) == []


def test_every_private_attribute_that_is_used_is_checked() -> None:
    assert privates(Path(transformers_internals.__file__)) == set(WANTED) | SET | LIGER
