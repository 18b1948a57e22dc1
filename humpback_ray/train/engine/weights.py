"""Weights under ZeRO 3: safetensors files → the parts of each parameter that this worker keeps.

The model is created partitioned (`zero.Init`), without values. Then every worker reads from the files only the rows
that contain its own part of a parameter. Where a family's files name or lay out weights differently than transformers'
classes (fused experts), it reads all tensors that a parameter is made of, converts them with transformers' own rules
and keeps its part. So no process ever holds the whole model: beside its parts, a worker holds one parameter while
modules are created, and `PIECE_ELEMENTS`, or one conversion's input and output, while files are read. Names and shapes
must match exactly: weights left at random would train too, only worse.

`zero.Init` makes every float tensor of a constructor in the training dtype, rotary frequencies too. So all buffers are
made again on the host, as `from_pretrained` makes them. The model equals the one that `from_pretrained` returns,
except for parameters that a family keeps in float32: DeepSpeed trains all parameters in one dtype.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Protocol

from humpback_ray.train.engine import group
from humpback_ray.train.engine.deepspeed_internals import is_partitioned, part_of, whole_shape
from humpback_ray.train.engine.transformers_internals import (
    Conversion,
    blueprint,
    class_of,
    conversions_to_load,
    make_buffers,
    remember_rules,
)
from humpback_ray.train.job import TrainingStopped
from humpback_ray.train.safetensor_files import INDEX, SINGLE

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

PIECE_ELEMENTS = 16_000_000
"""Elements that are read at once."""


class Slices(Protocol):
    """A tensor in a safetensors file that can be read in parts."""

    def get_shape(self) -> list[int]:
        """Return the shape of the whole tensor."""
        ...

    def __getitem__(self, part: slice | EllipsisType) -> "torch.Tensor":
        """Read some rows, or all."""
        ...


def load_partitioned(
    base: Path, config: "PreTrainedConfig", dtype: "torch.dtype", engine: dict[str, Any]
) -> "PreTrainedModel":
    """Create a model partitioned over the workers and fill this worker's parts from the files; collective.

    The blueprint comes first, since it imports the family's classes: for a class that is imported inside `zero.Init`,
    DeepSpeed undoes the decorator of its constructor afterwards. transformers' experts have one, and later models of
    this process would lack what it sets.
    """
    from deepspeed import zero
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    plan = blueprint(*class_of(config), dtype)
    with no_init_weights(), zero.Init(config_dict_or_path=engine):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    replace_buffers(model, plan)
    missing = fill(model, plan, base)
    tie(model, missing)
    refuse_names(base, sorted(missing), [])
    return model


def replace_buffers(model: "PreTrainedModel", plan: Any) -> None:
    """Replace all buffers by those that `from_pretrained` makes; those that files have are left without values."""
    import torch

    make_buffers(plan)
    for name, buffer in plan.named_buffers(remove_duplicate=False):
        owner, _, own_name = name.rpartition(".")
        module = model.get_submodule(owner)
        device = getattr(module, own_name).device
        setattr(module, own_name, torch.empty_like(buffer, device=device) if buffer.is_meta else buffer.to(device))


def fill(model: "PreTrainedModel", plan: Any, base: Path) -> set[str]:
    """Read this worker's part of every parameter, and every persistent buffer, from a model directory.

    Args:
        model: partitioned model; weights are not tied yet.
        plan: its blueprint.
        base: the directory.

    Returns:
        The names of the tensors that the directory lacks.

    Raises:
        TrainingStopped: a stored name belongs to no tensor, or a tensor has another shape.
    """
    import torch
    from safetensors import safe_open

    names = stored_names(base)
    conversions, strange = conversions_to_load(plan, list(dict.fromkeys(chain(*names.values()))))
    refuse_names(base, [], strange)
    tensors, planned = model.state_dict(keep_vars=True), plan.state_dict()
    missing = set(tensors)
    with ExitStack() as opened, torch.no_grad():
        files = {file: opened.enter_context(safe_open(base / file, framework="pt")) for file in names}
        stored = {name: files[file].get_slice(name) for file, held in names.items() for name in held}
        for conversion in conversions:
            made = _made(conversion, stored, plan, planned[conversion.target].dtype, base)
            for name in list(made):
                _fill_one(tensors[name], made.pop(name), f"{base}: {name}")
                missing.discard(name)
    remember_rules(model, plan)
    return missing


def _made(
    conversion: Conversion, stored: "dict[str, Slices]", plan: Any, dtype: "torch.dtype", base: Path
) -> "dict[str, Slices | torch.Tensor]":
    """Return what a conversion makes of stored tensors; a tensor that is only renamed is not read yet."""
    if conversion.transform is None:
        return {conversion.target: stored[next(iter(conversion.sources))]}
    try:
        return {**conversion({name: stored[name][...].to(dtype) for name in conversion.sources}, plan)}
    except (RuntimeError, ValueError) as error:
        first, *rest = conversion.sources
        raise TrainingStopped(
            f"the base model in {base} stores {first} and {len(rest)} others, which transformers cannot convert to "
            f"{conversion.target}: {error}; are all of them there, with the shapes that its config.json calls for?"
        ) from error


def tie(model: "PreTrainedModel", missing: set[str]) -> None:
    """Tie weights as `from_pretrained` does, and take those that another one gives their value from `missing`.

    If the files have both weights of a pair, they are tied only if they are equal.
    """
    import torch

    tensors = model.state_dict(keep_vars=True)
    for target, source in list(model.all_tied_weights_keys.items()):
        parts = [part_of(tensors[name]).tensor for name in (target, source)]
        if not {target, source} & missing and not all(group.gathered(torch.equal(*parts))):
            del model.all_tied_weights_keys[target]
    model.tie_weights(missing_keys=missing, recompute_mapping=False)


def stored_names(base: Path) -> dict[str, list[str]]:
    """Return the names of a model directory's tensors by safetensors file, whether its index has them or not."""
    from safetensors import safe_open

    index, files = base / INDEX, [SINGLE]
    if index.exists():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    found = {}
    for file in files:
        with safe_open(base / file, framework="pt") as tensors:
            found[file] = list(tensors.keys())
    return found


_MASK = re.compile(r"\.attn(\.attention)?\.(bias|masked_bias|causal_mask)$")
"""Causal masks, which old files of GPT-Neo, GPT-J and CodeGen hold beside the parameters."""


def refuse_names(base: Path | str, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    """Stop unless a model directory has the parameters that its configuration calls for, and no others but masks."""
    unexpected = [name for name in unexpected if not _MASK.search(name)]
    for names, what, then in (
        (
            missing,
            "lacks the parameters",
            "is its config.json from another model? Training would begin with random weights",
        ),
        (
            unexpected,
            "has the unexpected parameters",
            "its language model does not use them. Is its config.json from another model? If they are for images or "
            "sound, save the language model alone and train that",
        ),
    ):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise TrainingStopped(f"the base model in {base} {what} {shown}; {then}")


def _fill_one(tensor: "torch.Tensor", stored: "Slices | torch.Tensor", where: str) -> None:
    """Copy one stored or converted tensor, or this worker's part of it, into the model."""
    import torch

    shape = list(stored.shape if isinstance(stored, torch.Tensor) else stored.get_shape())
    expected = list(whole_shape(tensor))
    if shape != expected:
        raise TrainingStopped(f"{where} has shape {shape}, but the model's configuration calls for {expected}")
    if not is_partitioned(tensor):
        tensor.copy_(stored[...])
        return
    part, first, last = part_of(tensor)
    if not shape:
        stored, shape = stored[...].reshape(1), [1]
    part.zero_()  # its end may lie beyond the parameter's
    for start, piece in pieces(stored, shape, first, last):
        part.narrow(0, start - first, piece.numel()).copy_(piece)


def pieces(
    stored: "Slices | torch.Tensor", shape: Sequence[int], first: int, last: int
) -> Iterator[tuple[int, "torch.Tensor"]]:
    """Read the elements `first` to `last` - 1 of a flattened tensor, whole rows at a time.

    Yields:
        The index of a piece's first element, and the piece, flat.
    """
    row = 1
    for size in shape[1:]:
        row *= size
    rows = max(1, PIECE_ELEMENTS // row)
    for top in range(first // row, -(-last // row), rows):
        bottom = min(top + rows, -(-last // row))
        start, end = max(first, top * row), min(last, bottom * row)
        yield start, stored[top:bottom].flatten()[start - top * row : end - top * row]
