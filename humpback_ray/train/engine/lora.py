"""LoRA with peft: adapters are put into a loaded model in place, and merged for the export.

The model keeps its class and its layers' names. A layer with adapters holds the frozen weight as `base_layer` beside
`lora_A` and `lora_B`; only these two require gradients. Under ZeRO 3 the base weights are partitioned already, and
DeepSpeed partitions the adapters when the engine starts.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from humpback_ray.records import seed_of
from humpback_ray.train.recipe import Full, Lora, TrainRecipe

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from torch import nn

ADAPTER = "default"
"""The name that peft gives an adapter."""


def attach(model: "nn.Module", recipe: TrainRecipe) -> None:
    """Freeze a model and put new adapters into it, the same on every worker; do nothing for a full fine-tune.

    Raises:
        ValueError: no layer has a name in the recipe's `targets`.
    """
    if isinstance(recipe.method, Full):
        return
    import torch
    from peft import inject_adapter_in_model

    with torch.random.fork_rng():
        torch.manual_seed(seed_of("adapters", recipe.seed))
        inject_adapter_in_model(configuration(recipe.method), model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(getattr(torch, recipe.dtype))
        assert parameter.requires_grad == (".lora_" in name), name


def configuration(lora: Lora) -> "LoraConfig":
    """Return peft's own configuration of the adapters."""
    from peft import LoraConfig

    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        target_modules=targets,
        bias="none",
        task_type="CAUSAL_LM",
    )


def layers(module: "nn.Module") -> Iterator[tuple[str, Any]]:
    """Yield the name of every layer that has adapters, and the layer."""
    for name, layer in module.named_modules():
        if ADAPTER in getattr(layer, "lora_A", {}):
            yield name, layer


def merged(layer: Any) -> "torch.Tensor":
    """Return a layer's frozen weight with its adapters merged in, in the frozen weight's dtype.

    The three tensors must be whole: gather them first under ZeRO 3.
    """
    weight = layer.base_layer.weight
    return (weight.float() + layer.get_delta_weight(ADAPTER).float()).to(weight.dtype)
