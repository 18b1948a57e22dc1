"""Weights under ZeRO 3: safetensors files → the parts of each parameter that this worker keeps.

The model is created partitioned (`zero.Init`), without values. Then every worker reads from the files only the rows
that contain its own part of a parameter. No process ever holds the whole model: beside its parts, a worker holds one
parameter while modules are created, and `PIECE_ELEMENTS` while files are read. Names and shapes must match exactly:
weights left at random would train too, only worse.

Given up: families whose checkpoints name or lay out parameters differently than transformers' classes. They stop with
an error that names the parameters, and load with ZeRO 2.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from humpback_ray.train.engine.deepspeed_internals import is_partitioned, part_of, whole_shape
from humpback_ray.train.engine.transformers_internals import known_leftovers
from humpback_ray.train.job import TrainingStopped

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

PIECE_ELEMENTS = 16_000_000
"""Elements that are read at once."""


class Slices(Protocol):
    """A tensor in a safetensors file that can be read in parts."""

    def get_shape(self) -> list[int]:
        """Return the shape of the whole tensor."""
        ...

    def __getitem__(self, part: slice) -> "torch.Tensor":
        """Read some rows."""
        ...


def load_partitioned(
    base: Path, config: "PreTrainedConfig", dtype: "torch.dtype", engine: dict[str, Any]
) -> "PreTrainedModel":
    """Create a model partitioned over the workers and fill this worker's parts from the files; collective."""
    from deepspeed import zero
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with no_init_weights(), zero.Init(config_dict_or_path=engine):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    fill(model, base)
    restore_rotary(model)
    return model


def fill(model: "nn.Module", base: Path) -> None:
    """Read this worker's part of every parameter, and every persistent buffer, from a model directory."""
    import torch
    from safetensors import safe_open

    names = stored_names(base)
    wanted = wanted_names(model, {name for held in names.values() for name in held}, base)
    for file, held in names.items():
        with safe_open(base / file, framework="pt") as tensors, torch.no_grad():
            for name in held:
                if name in wanted:
                    _fill_one(wanted[name], tensors.get_slice(name), f"{base}: {name}")


def stored_names(base: Path) -> dict[str, list[str]]:
    """Return the names of a model directory's tensors by safetensors file."""
    from safetensors import safe_open

    index = base / "model.safetensors.index.json"
    found: dict[str, list[str]] = defaultdict(list)
    if index.exists():
        for name, file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
            found[file].append(name)
        return found
    with safe_open(base / "model.safetensors", framework="pt") as tensors:
        return {"model.safetensors": list(tensors.keys())}


def wanted_names(model: "nn.Module", stored: set[str], base: Path) -> dict[str, "torch.Tensor"]:
    """Return the tensors of a model by stored name, each once; tied tensors have several names.

    Raises:
        TrainingStopped: a tensor is not stored under any of its names, or a stored name belongs to no tensor.
    """
    tensors = model.state_dict(keep_vars=True)
    aliases: dict[int, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        aliases[id(tensor)].append(name)
    chosen = [next((name for name in names if name in stored), None) for names in aliases.values()]
    missing = [names[0] for names, name in zip(aliases.values(), chosen, strict=True) if name is None]
    ignored = [r"rotary_emb\.inv_freq", *known_leftovers(model)]
    strange = [name for name in stored - set(tensors) if not any(re.search(pattern, name) for pattern in ignored)]
    refuse_names(base, missing, strange)
    return {name: tensors[name] for name in chosen if name is not None}


def refuse_names(base: Path, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    """Stop unless a model directory has the parameters that its configuration calls for, and no others."""
    for names, what in ((missing, "lacks the parameters"), (unexpected, "has the unexpected parameters")):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise TrainingStopped(
                f"the base model in {base} {what} {shown}; is its config.json from another model? Training would "
                "begin with random weights"
            )


def _fill_one(tensor: "torch.Tensor", stored: Slices, where: str) -> None:
    """Copy one stored tensor, or this worker's part of it, into the model."""
    shape, expected = list(stored.get_shape()), list(whole_shape(tensor))
    if shape != expected:
        raise TrainingStopped(f"{where} has shape {shape}, but the model's configuration calls for {expected}")
    if not is_partitioned(tensor):
        tensor.copy_(stored[:])
        return
    part, first, last = part_of(tensor)
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


def restore_rotary(model: "nn.Module") -> None:
    """Compute rotary frequencies again in float32: `zero.Init` made them in the training dtype."""
    for module in model.modules():
        buffers = dict(module.named_buffers(recurse=False))
        if "inv_freq" in buffers and hasattr(module, "config"):
            fresh: nn.Module = type(module)(module.config).to(buffers["inv_freq"].device)
            for name, buffer in fresh.named_buffers(recurse=False, remove_duplicate=False):
                setattr(module, name, buffer)
