"""All uses of DeepSpeed that its documentation does not promise; no other module of `train` has any.

They concern where its ZeRO optimizers keep master weights and moments, how their state is created and published, and
the attributes of partitioned parameters. They follow the source of the version below;
`tests/train/engine/test_deepspeed_internals.py` names what has moved in another version.
"""

import contextlib
import ctypes
import gc
import platform
from collections.abc import Iterator, Sequence
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from humpback_ray.train.types import TrainingEngine

if TYPE_CHECKING:
    import torch
    from torch import nn

WRITTEN_AGAINST = "0.19.8"

_COMPILED_COLLECTIVES = "deepspeed_shm_comm"
"""An extension that CPU workers would compile for a minute and a half before their first step; gloo replaces it."""

_COUNTER = "step"
"""The name under which PyTorch's optimizers count updates."""


class Held(NamedTuple):
    """Elements of one trained parameter that this worker keeps in float32, with their optimizer moments."""

    name: str
    start: int
    """Index of the first element in the flattened parameter."""
    weight: "torch.Tensor"
    """A view with one dimension, like the moments."""
    moments: dict[str, "torch.Tensor"]
    """Moments by the optimizer's names (`exp_avg`); empty before the first update."""


class Part(NamedTuple):
    """This worker's part of a parameter that ZeRO 3 has partitioned."""

    tensor: "torch.Tensor"
    """A tensor with one dimension; its end may lie beyond the parameter's."""
    first: int
    """Index of its first element in the flattened parameter."""
    last: int
    """Index after its last element that belongs to the parameter."""


def run_on_cpu() -> None:
    """Make DeepSpeed run on CPUs without compiling anything."""
    import deepspeed
    from deepspeed.accelerator import set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    deepspeed.ops.__compatible_ops__[_COMPILED_COLLECTIVES] = False
    set_accelerator(CPU_Accelerator())


def is_partitioned(tensor: "torch.Tensor") -> bool:
    """Tell whether each worker holds only a part of a parameter."""
    return hasattr(tensor, "ds_id")


def whole_shape(tensor: "torch.Tensor") -> tuple[int, ...]:
    """Return the shape of a tensor; for a partitioned one, the shape of the whole."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def whole_elements(tensor: "torch.Tensor") -> int:
    """Count the elements of a tensor; for a partitioned one, the elements of the whole."""
    return getattr(tensor, "ds_numel", tensor.numel())


def part_of(parameter: Any) -> Part:
    """Return this worker's part of a partitioned parameter."""
    import torch.distributed as dist

    tensor, rank = parameter.ds_tensor, dist.get_rank(group=parameter.ds_process_group)
    first = min(tensor.numel() * rank, parameter.ds_numel)
    return Part(tensor, first, min(first + tensor.numel(), parameter.ds_numel))


def held(engine: TrainingEngine) -> list[Held]:
    """Return the elements of each trained parameter that this worker holds, at any ZeRO stage."""
    find = {0: _whole, 3: _share}.get(engine.zero_optimization_stage(), _laid_end_to_end)
    trained = [(name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad]
    found = (find(engine.optimizer, name, parameter) for name, parameter in trained)
    return [one for one in found if one is not None]


def _whole(optimizer: Any, name: str, parameter: "nn.Parameter") -> Held:
    return Held(name, 0, parameter.data.view(-1), _moments(optimizer.state.get(parameter), parameter))


def _laid_end_to_end(optimizer: Any, name: str, parameter: Any) -> Held | None:
    """Find a parameter's elements in this worker's share of all parameters laid end to end (stages 1 and 2)."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    return Held(name, mapping.lp_fragment_address.start, mapping.hp_fragment.data, mapping.optim_fragment or {})


def _share(optimizer: Any, name: str, parameter: Any) -> Held | None:
    """Find this worker's share of a parameter (stage 3): all shares are equal, and the last one is padded."""
    group, offset, share = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = share * optimizer._get_param_partition_rank(parameter)
    count = min(share, parameter.ds_numel - start)
    if count <= 0:
        return None
    flat = optimizer.fp32_partitioned_groups_flat[group]
    part = slice(offset, offset + count)
    moments = _moments(optimizer.optimizer.state.get(flat), flat)
    return Held(name, start, flat.data[part], {kind: tensor[part] for kind, tensor in moments.items()})


def _moments(state: dict[str, Any] | None, like: "torch.Tensor") -> dict[str, "torch.Tensor"]:
    import torch

    tensors = {kind: value for kind, value in (state or {}).items() if torch.is_tensor(value) and kind != _COUNTER}
    return {kind: value.view(-1) for kind, value in tensors.items() if value.shape == like.shape}


def start_optimizer(engine: TrainingEngine, updates: int) -> None:
    """Make the optimizer create its state by an update at rate 0 without gradients, and set its number of updates."""
    import torch

    zero, stage = engine.optimizer, engine.zero_optimization_stage()
    optimizer = getattr(zero, "optimizer", zero)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    if stage == 3:
        for number, flat in enumerate(zero.fp32_partitioned_groups_flat):
            with _no_gradients([flat]):
                zero._optimizer_step(number)
    else:
        with _no_gradients([flat for group in optimizer.param_groups for flat in group["params"]]):
            optimizer.step()
        if stage > 0:
            zero._lazy_init_hp_params_optimizer_state()
    for counts in [*optimizer.state.values(), *optimizer.param_groups]:
        if _COUNTER in counts:
            count = counts[_COUNTER]
            counts[_COUNTER] = torch.full_like(count, updates) if torch.is_tensor(count) else updates


@contextlib.contextmanager
def _no_gradients(flats: Sequence["torch.Tensor"]) -> Iterator[None]:
    """Replace gradients by zeros in the block."""
    import torch

    before = [flat.grad for flat in flats]
    for flat in flats:
        flat.grad = torch.zeros_like(flat)
    yield
    for flat, gradient in zip(flats, before, strict=True):
        flat.grad = gradient


def publish(engine: TrainingEngine) -> None:
    """Update the weights of the forward pass from the master weights; every worker calls it at once."""
    zero, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage in (1, 2):
        zero.update_lp_params()
    elif stage == 3:
        zero._partition_all_parameters()
        for number in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(number)
        zero._post_step(set())


def drop_update(engine: Any) -> None:
    """Discard the gradients instead of calling `engine.step()`, as ZeRO does if they are not finite; for ZeRO 0."""
    engine.zero_grad()
    engine.micro_steps += 1


def forget_dropped(engine: TrainingEngine) -> None:
    """Clear the gradients of an update that ZeRO dropped.

    If stage 2 offloads the optimizer of a bfloat16 model, DeepSpeed keeps these non-finite gradients, adds the next
    step's to them, and so drops every later update.
    """
    kept = getattr(engine.optimizer, "averaged_gradients", {})
    kept.update(dict.fromkeys(kept))


_SEARCHED = ("builtins", "collections", "functools", "itertools", "torch", "deepspeed", "transformers", "peft")
"""Packages whose objects `end` looks into, beside the engine's; others, such as loggers, lead anywhere."""


def end(engine: Any) -> None:
    """Free the memory that an engine holds on its device and on the host; nobody can use it afterwards.

    DeepSpeed's hooks keep an engine alive as long as its process, and `destroy` undoes that for stages 0 to 2 only. So
    every tensor that the engine leads to is emptied.
    """
    import torch

    engine.destroy()
    for tensor in _tensors([engine, engine.module, engine.optimizer]):
        if tensor.untyped_storage().resizable():
            tensor.untyped_storage().resize_(0)
        else:  # it lies in a file
            tensor.data = tensor.data.new_empty(0)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # zero.keep_freed_memory had glibc keep it


def _tensors(roots: Sequence[object]) -> list["torch.Tensor"]:
    """Return all tensors that some objects lead to, but not through functions, classes or modules."""
    import torch

    seen: set[int] = set()
    tensors: list[torch.Tensor] = []
    left = list(roots)
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, type | FunctionType | ModuleType):
            continue
        seen.add(id(thing))
        if not type(thing).__module__.startswith(_SEARCHED):
            continue
        if isinstance(thing, torch.Tensor):
            tensors.append(thing)
            left.append(thing.grad if thing.is_leaf else None)
        left += [*gc.get_referents(thing), getattr(thing, "__dict__", None)]
    return tensors
