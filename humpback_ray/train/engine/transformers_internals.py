"""All uses of private parts of transformers and Liger's kernels; no other module of `train` touches them.

They follow the source of the version of transformers below; `tests/train/engine/test_transformers_internals.py` names
what has moved in another version.
"""

import copy
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

WRITTEN_AGAINST = "5.19.0"


def attention_is_replaceable(model: Any) -> bool:
    """Tell whether a model passes every argument on to a replaceable attention function and has no state."""
    return model._supports_attention_backend and model._supports_sdpa and not model._is_stateful


def class_of(config: "PreTrainedConfig") -> "tuple[Any, PreTrainedConfig]":
    """Return the class that AutoModelForCausalLM chooses, and its part of the configuration."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return kind, config if kind.config_class is type(config) else config.get_text_config()


def blueprint(kind: Any, config: "PreTrainedConfig", dtype: "torch.dtype") -> Any:
    """Build a model without values, as `from_pretrained(dtype=dtype)` first does; no weights are tied in it.

    Its tensors are on the meta device and have the dtypes that `from_pretrained` gives them, which for some is not
    `dtype`: families name modules that stay in float32.

    Args:
        kind: class of the model.
        config: its configuration.
        dtype: dtype that the model is loaded in.
    """
    config = copy.deepcopy(config)
    config.dtype = dtype
    with ExitStack() as stack:
        for context in kind.get_init_context(dtype, False, False, False):
            stack.enter_context(context)
        model = kind(config)
    kept = {pattern.replace("*", ".*"): other for pattern, other in model._get_dtype_plan(dtype).items()}
    for name, tensor in model.state_dict(keep_vars=True).items():
        for other in {other for pattern, other in kept.items() if re.search(pattern, name)}:
            tensor.data = tensor.data.to(other)
    return model


def make_buffers(model: Any) -> None:
    """Make a blueprint's buffers that no file has, on the host, with the values that `from_pretrained` gives them."""
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True  # nothing else is initialized
    model._move_missing_keys_from_meta_to_device(set(), None, None, None)
    model._initialize_missing_keys(False)


@dataclass(frozen=True)
class Conversion:
    """Stored tensors that become tensors of a model, or the reverse: renamed, stacked, split, transposed, permuted."""

    target: str
    """Name of the first tensor that is made; a `*` stands for its number if there are several."""
    transform: Any
    """transformers' own converter; None if the tensor is only renamed."""
    sources: dict[str, str] = field(default_factory=dict)
    """Names of the tensors it is made of, each with the converter's pattern that it fits."""

    def __call__(self, tensors: dict[str, "torch.Tensor"], model: Any) -> dict[str, "torch.Tensor"]:
        """Convert whole tensors, given by name; `model` is a blueprint. `tensors` is emptied, which frees memory."""
        if self.transform is None:
            return {self.target: tensors.pop(next(iter(self.sources)))}
        transform = copy.deepcopy(self.transform)
        for name, pattern in self.sources.items():
            transform.add_tensor(self.target, name, pattern, tensors.pop(name))
        made = transform.convert(self.target, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def conversions_to_load(model: Any, stored: Iterable[str]) -> tuple[list[Conversion], list[str]]:
    """Plan how stored tensors become those of a model, as `from_pretrained` does.

    The blueprint remembers which of transformers' rules fit: `conversions_to_save` reverses those.

    Args:
        model: blueprint of the model.
        stored: names in the files.

    Returns:
        The conversions, and the stored names that belong to no tensor and are no known leftovers.
    """
    from types import SimpleNamespace

    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import dot_natural_key, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings, converters, by_pattern = _sorted_out(rules)
    prefix, expected = model.base_model_prefix, model.state_dict()
    planned: dict[str, Conversion] = {}
    strange: dict[str, str] = {}
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, expected)
        if target not in expected and name in expected:
            target, pattern = rename_source_key(name, [], [], prefix, expected)
        if target in expected:
            planned.setdefault(target, Conversion(target, by_pattern.get(pattern))).sources[name] = pattern or name
        else:
            strange[target] = name
    model._weight_conversions = [rule for rule in rules if rule.was_used()]
    found = SimpleNamespace(missing_keys=set(), unexpected_keys=set(strange))
    model._adjust_missing_and_unexpected_keys(found)
    return list(planned.values()), [strange[name] for name in found.unexpected_keys]


def conversions_to_save(model: Any) -> list[Conversion]:
    """Plan how the tensors of a model become those that `save_pretrained` writes; tied weights are written once.

    Args:
        model: blueprint of a model, with its ties and the rules that its weights were loaded by.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange, dot_natural_key, rename_source_key
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    rules = getattr(model, "_weight_conversions", None)
    if rules is None:  # the model was not loaded from files
        rules = [
            rule for rule in get_model_conversion_mapping(model, add_legacy=False) if not isinstance(rule, PrefixChange)
        ]
    renamings, converters, by_pattern = _sorted_out([rule.reverse_transform() for rule in reversed(rules)])
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in model._keys_to_ignore_on_save}
    planned: dict[str, Conversion] = {}
    for name in sorted(remove_tied_weights_from_state_dict(state, model), key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, reverse=True)
        planned.setdefault(target, Conversion(target, by_pattern.get(pattern))).sources[name] = pattern or name
    return list(planned.values())


def _sorted_out(rules: Sequence[Any]) -> tuple[list[Any], list[Any], dict[str | None, Any]]:
    """Divide rules into those that rename and those that convert, and return the latter by their patterns too."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern: dict[str | None, Any] = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    return [rule for rule in rules if isinstance(rule, WeightRenaming)], converters, by_pattern


def tied_like(model: Any, other: Any) -> Any:
    """Tie a blueprint's weights as another model's are, let it remember that one's rules, and return it."""
    model.all_tied_weights_keys = dict(other.all_tied_weights_keys)
    model.tie_weights(recompute_mapping=False)
    remember_rules(model, other)
    return model


def remember_rules(model: Any, other: Any) -> None:
    """Let a model remember the rules that another one's weights were loaded by; they are reversed when it is saved."""
    model._weight_conversions = getattr(other, "_weight_conversions", None)


def put_liger_kernels(model: Any) -> bool:
    """Put Liger's Triton kernels into a model; return False if the package is not installed."""
    try:
        from liger_kernel.transformers import (  # pyright: ignore[reportMissingImports]
            _apply_liger_kernel_to_instance,
        )
    except ImportError:
        return False
    _apply_liger_kernel_to_instance(model)
    return True
