"""LoRA with peft: adapters are put into a loaded model in place, and merged for the export.

The model keeps its class and its layers' names. A layer with adapters holds the frozen weight as `base_layer` beside
`lora_A` and `lora_B`; only these two require gradients. Under ZeRO 3 the base weights are partitioned already, and
DeepSpeed partitions the adapters when the engine starts.

`choose` decides which layers get adapters before any step, from the model's structure alone, so every worker decides
alike and a model without weights (on the meta device) will do. A layer can have adapters if it multiplies its input
with a weight of its own and does nothing else: then the adapters can be merged.

Given up: adapters on experts that are fused into one parameter, on embeddings and on tied output layers. peft, too,
takes some names (`gate_proj`, ...) in families with experts to mean the fused experts, wherever they are; layers with
these names get none there.
"""

import contextlib
import functools
import inspect
import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from humpback_ray.records import seed_of
from humpback_ray.train.engine.deepspeed_internals import whole_shape
from humpback_ray.train.job import TrainingStopped
from humpback_ray.train.recipe import Full, Lora, TrainRecipe

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from torch import nn
    from transformers import PreTrainedModel

ADAPTER = "default"
"""The name that peft gives an adapter."""


@dataclass(frozen=True)
class Choice:
    """The layers of a model that get adapters, and those that were asked for with `all-linear` but get none."""

    layers: tuple[str, ...]
    """Their full names."""
    targets: tuple[str, ...]
    """The shortest list of names from which peft finds the same layers."""
    transposed: bool
    """Whether they are GPT-2's `Conv1D`, whose weights are [in, out]."""
    left_out: Mapping[str, str]
    """Fused experts, and linear layers that cannot have adapters: name → reason."""

    def words(self) -> str:
        """Say what is adapted and what is not, with counts."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            reasons.setdefault(reason, []).append(name)
        without = (f"{len(names)} do not ({_some(names)}): {reason}" for reason, names in reasons.items())
        return "; ".join([f"{len(self.layers)} layers get adapters ({_some(self.targets, 12)})", *without])


def attach(model: "PreTrainedModel", recipe: TrainRecipe) -> Choice | None:
    """Freeze a model and put new adapters into it, the same on every worker; do nothing for a full fine-tune.

    Raises:
        TrainingStopped: see `choose`.
    """
    if isinstance(recipe.method, Full):
        return None
    import torch
    from peft import inject_adapter_in_model

    choice = choose(model, recipe.method)
    with torch.random.fork_rng():
        torch.manual_seed(seed_of("adapters", recipe.seed))
        try:
            inject_adapter_in_model(configuration(recipe.method, choice), model)
        except ValueError as error:
            raise TrainingStopped(
                f"train.recipe.method: peft refuses to adapt {type(model).__name__}: {error}"
            ) from error
    adapted = {name for name, _ in layers(model)}
    assert adapted == set(choice.layers), adapted.symmetric_difference(choice.layers)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(getattr(torch, recipe.dtype))
        assert parameter.requires_grad == (".lora_" in name), name
    return choice


def choose(model: "PreTrainedModel", lora: Lora) -> Choice:
    """Decide which layers of a model get adapters; the model needs no weights.

    Raises:
        TrainingStopped: a name in the recipe's `targets` matches no layer, or one that cannot have adapters.
    """
    from transformers.pytorch_utils import Conv1D

    modules, faults, experts = dict(model.named_modules()), faults_of(model), fused_experts(model)
    if isinstance(lora.targets, str):
        found = _all_linear(model)
        chosen = [name for name in found if faults[name] is None]
        left_out = dict.fromkeys(experts, "fused experts are no linear layers")
        left_out |= {name: fault for name in found if (fault := faults[name])}
    else:
        chosen, left_out = _named(model, lora.targets, faults, experts), {}
    if not chosen:
        raise TrainingStopped(
            f"train.recipe.method: no layer of {type(model).__name__} can have adapters; use {{kind: full}}"
        )
    transposed = all(isinstance(modules[name], Conv1D) for name in chosen)
    return Choice(tuple(chosen), tuple(_short(chosen, modules)), transposed, left_out)


def _all_linear(model: "PreTrainedModel") -> list[str]:
    """Return the linear layers of a model's text decoder, whether they can have adapters or not; no output layer."""
    from torch import nn
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D

    modules = dict(model.named_modules())
    decoder, output = model.get_decoder(), model.get_output_embeddings()
    if not isinstance(decoder, PreTrainedModel):  # in some families, a layer of the output is called so
        decoder = model
    within = next(name for name, module in modules.items() if module is decoder)
    return [
        name
        for name, module in modules.items()
        if isinstance(module, nn.Linear | Conv1D) and module is not output
        if not within or name.startswith(f"{within}.")
    ]


def _named(
    model: "PreTrainedModel", targets: Sequence[str], faults: Mapping[str, str | None], experts: Sequence[str]
) -> list[str]:
    """Return the layers that the names in a recipe match.

    Raises:
        TrainingStopped: a name matches nothing, or something that cannot have adapters.
    """
    parameters = [name for name, _ in model.named_parameters()]
    usable = sorted({_leaf(name) for name in _all_linear(model) if faults[name] is None})
    instead = f"names that work: {', '.join(usable) or 'none'}"
    chosen: set[str] = set()
    for target in targets:
        said = f"train.recipe.method.targets: {target}"
        found = [name for name in faults if matches(name, target)]
        if unfit := [name for name in found if faults[name]]:
            raise TrainingStopped(f"{said} matches {_some(unfit)}, {faults[unfit[0]]}; {instead}")
        if not found and (held := [name for name in parameters if matches(name, target)]):
            kind = "a parameter with fused experts" if held[0] in experts else "a parameter"
            raise TrainingStopped(f"{said} matches {_some(held)}, {kind} and not a linear layer; {instead}")
        if not found:
            fused = f" (its experts are fused into parameters, {_some(experts)})" if experts else ""
            alone = "; all-linear is given by itself, not in a list" if target == "all-linear" else ""
            raise TrainingStopped(f"{said} matches no layer of {type(model).__name__}{fused}{alone}; {instead}")
        chosen.update(found)
    return [name for name in faults if name in chosen]


def matches(name: str, target: str) -> bool:
    """Tell whether a layer's name is a target's, or ends with it after a dot, as peft does."""
    return name == target or name.endswith(f".{target}")


def fused_experts(model: "nn.Module") -> list[str]:
    """Return the names of the parameters that hold a matrix of every expert."""
    return [n for n, tensor in model.named_parameters() if len(whole_shape(tensor)) == 3 and "expert" in n]


def faults_of(model: "PreTrainedModel") -> dict[str, str | None]:
    """Return for every module why it cannot have adapters; None if it can."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    modules, shared = dict(model.named_modules()), _shared(model)
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear | Conv1D)]
    meant = {leaf for leaf in set(map(_leaf, linear)) if _means_experts(model, leaf)}
    renamed = _renamed(model, linear)

    def fault(name: str, module: "nn.Module") -> str | None:
        kind, parent, leaf = type(module).__name__, modules[name.rpartition(".")[0]], _leaf(name)
        if isinstance(module, nn.Embedding):
            return "an embedding and not a linear layer"
        if not isinstance(module, nn.Linear | Conv1D):
            return f"a {kind} and not a linear layer"
        if tied := shared.get(id(module.weight), set()) - {f"{name}.weight"}:
            return f"a layer whose weight is tied to {min(tied)}: adapters would change both"
        if not _multiplies(type(module)):
            return f"a {kind}, which does more than multiply with its weight"
        if leaf in _read_directly(type(parent)):
            return (
                f"a layer whose weight {type(parent).__name__} uses without calling it: adapters would have no effect"
            )
        if leaf in meant:
            return f"a name that peft takes to mean the fused experts of {model.config.model_type}"
        if name in renamed:
            return f"a layer whose adapters peft would look for under another name in {model.config.model_type}"
        return None

    return {name: fault(name, module) for name, module in modules.items()}


def _shared(model: "nn.Module") -> dict[int, set[str]]:
    """Return the names of each parameter that has several, by its id."""
    found: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), set()).add(name)
    return {key: names for key, names in found.items() if len(names) > 1}


def _means_experts(model: "PreTrainedModel", leaf: str) -> bool:
    """Tell whether peft reads a name as that of experts, which it adapts in another way, in the family of a model."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=[leaf])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # it wants another name along with this one
        return True
    return leaf not in (config.target_modules or ())


def _renamed(model: "PreTrainedModel", names: Sequence[str]) -> set[str]:
    """Return the layers whose adapters peft renames when it loads them, by rules for files of older versions."""
    import torch
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    stored = {f"base_model.model.{name}.lora_A.weight": name for name in names}
    tensors = dict.fromkeys(stored, torch.empty(1, device="meta"))
    found = convert_peft_adapter_state_dict_for_transformers(model, LoraConfig(), tensors)
    return {name for key, name in stored.items() if key not in found}


@functools.cache
def _multiplies(kind: "type[nn.Module]") -> bool:
    """Tell whether a class of linear layers multiplies with its weight, adds its bias and does nothing else.

    Some routers derive from `nn.Linear` and return more than a product. A class with a `forward` of its own is tried.
    """
    import torch
    from torch import nn
    from torch.nn.functional import linear
    from transformers.pytorch_utils import Conv1D

    if getattr(kind, "forward", None) in (nn.Linear.forward, Conv1D.forward):
        return True
    with torch.random.fork_rng(), torch.no_grad():
        values = torch.linspace(-1, 1, 6).reshape(1, 2, 3)
        try:
            layer: Any = kind(3, 2)
            result = layer(values)
        except (TypeError, ValueError, AttributeError, RuntimeError, IndexError):
            return False
        plain = linear(values, layer.weight, layer.bias)
    return isinstance(result, torch.Tensor) and result.shape == plain.shape and torch.allclose(result, plain)


@functools.cache
def _read_directly(parent: "type[nn.Module]") -> frozenset[str]:
    """Return the names of children whose weights a module's code uses itself, as fused kernels do."""
    from torch import nn

    found: set[str] = set()
    for kind in itertools.takewhile(lambda kind: kind is not nn.Module, inspect.getmro(parent)):
        with contextlib.suppress(OSError, TypeError):  # a class without source
            found |= set(_WEIGHT.findall(inspect.getsource(kind)))
    return frozenset(found)


_WEIGHT = re.compile(r"\bself\.(\w+)\.weight\b(?!\.(?:dtype|device|shape|size|is_meta)\b)")
"""A child's weight in a module's code, unless only its form is looked at."""


def _short(chosen: Sequence[str], modules: Collection[str]) -> list[str]:
    """Return the last parts of names where they name the chosen layers and no others, else the whole names."""
    picked = set(chosen)
    clear = {leaf for leaf in map(_leaf, chosen) if all(name in picked for name in modules if matches(name, leaf))}
    return sorted(clear | {name for name in chosen if _leaf(name) not in clear})


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _some(names: Sequence[str], most: int = 1) -> str:
    """Write the first names of a list and the number of the others."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def configuration(lora: Lora, choice: Choice) -> "LoraConfig":
    """Return peft's own configuration of the adapters."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        target_modules=list(choice.targets),
        fan_in_fan_out=choice.transposed,
        bias="none",
        task_type="CAUSAL_LM",
    )


def attached(module: Any) -> "LoraConfig":
    """Return peft's configuration of the adapters that a model has."""
    return module.peft_config[ADAPTER]


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
