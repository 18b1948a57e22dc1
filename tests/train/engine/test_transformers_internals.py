"""The private parts of transformers that we use exist in the installed version."""

from pathlib import Path

from humpback_ray.train.engine import transformers_internals
from tests.train.internals import moved, privates

WANTED: dict[str, None] = dict.fromkeys(
    ("_supports_attention_backend", "_supports_sdpa", "_is_stateful", "_keys_to_ignore_on_load_unexpected")
)
LIGER = {"_apply_liger_kernel_to_instance"}


def test_models_have_what_we_use() -> None:
    from transformers import LlamaForCausalLM, PreTrainedModel

    for model in (PreTrainedModel, LlamaForCausalLM):
        assert list(moved("transformers", transformers_internals.WRITTEN_AGAINST, model, WANTED)) == []


def test_every_private_attribute_that_is_used_is_checked() -> None:
    assert privates(Path(transformers_internals.__file__)) == set(WANTED) | LIGER
