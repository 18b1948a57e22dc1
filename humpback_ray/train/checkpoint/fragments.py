"""What of a model one worker holds, whatever the ZeRO stage: runs of each parameter's elements, with optimizer state.

A `Fragment` is named by its parameter and by where it begins in the flattened parameter, so those of any layout meet
in the same coordinates: the whole parameter (stage 0), what falls into this worker's share of all parameters laid end
to end (1, 2), this worker's share of each parameter (3). Its tensors are views of the float32 master weights and of
the optimizer's moments, on the device or offloaded: reading them saves, writing them loads. Frozen parameters are not
among them, for they are those of the base model.

The optimizer creates its moments with the first update; `start_optimizer` does before what that does. After writing,
`publish` brings the weights that the forward pass sees up to date.

Given up: offload to NVMe, and optimizers whose state has another shape than their parameter.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

WEIGHT = "weight"
"""The kind of tensor that every fragment has; the others are called as the optimizer calls them (`exp_avg`)."""


@dataclass(frozen=True)
class Fragment:
    """Elements `start` to `stop` of one flattened parameter."""

    name: str
    start: int
    tensors: dict[str, Any]
    """By kind, each of one dimension."""

    @property
    def stop(self) -> int:
        """The element after the last one."""
        return self.start + self.tensors[WEIGHT].numel()

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def part(self, start: int, stop: int) -> "Fragment":
        """Return what is of these elements of the parameter, without copying."""
        low, high = max(start, self.start), min(stop, self.stop)
        views = {kind: tensor[low - self.start : high - self.start] for kind, tensor in self.tensors.items()}
        return Fragment(self.name, low, views)

    def on_host(self) -> "Fragment":
        """Return a copy in host memory, which training does not touch."""
        tensors = {kind: tensor.detach().to("cpu", copy=True) for kind, tensor in self.tensors.items()}
        return Fragment(self.name, self.start, tensors)


def held(engine: Any) -> list[Fragment]:
    """Return what this worker holds; moments only where there has been an update."""
    find = {0: _whole, 3: _shared}.get(engine.zero_optimization_stage(), _laid_end_to_end)
    trained = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    found = (find(engine.optimizer, name, parameter) for name, parameter in trained)
    return [fragment for fragment in found if fragment is not None]


def owned(engine: Any, rank: int, workers: int) -> list[Fragment]:
    """Return what this worker saves: of stage 0, where every worker holds all, an equal part of each parameter."""
    fragments = held(engine)
    if engine.zero_optimization_stage() > 0:
        return fragments
    parts = [f.part(f.stop * rank // workers, f.stop * (rank + 1) // workers) for f in fragments]
    return [part for part in parts if part.start < part.stop]


def _whole(optimizer: Any, name: str, parameter: Any) -> Fragment:
    return Fragment(name, 0, {WEIGHT: parameter.data.view(-1), **_moments(optimizer.state.get(parameter), parameter)})


def _laid_end_to_end(optimizer: Any, name: str, parameter: Any) -> Fragment | None:
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    return Fragment(
        name, mapping.lp_fragment_address.start, {WEIGHT: mapping.hp_fragment.data, **(mapping.optim_fragment or {})}
    )


def _shared(optimizer: Any, name: str, parameter: Any) -> Fragment | None:
    """Find a worker's share under stage 3: equal ones, the last of them padded."""
    group, offset, share = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = share * optimizer._get_param_partition_rank(parameter)
    count = min(share, parameter.ds_numel - start)
    if count <= 0:
        return None
    flat = optimizer.fp32_partitioned_groups_flat[group]
    whole = {WEIGHT: flat.data, **_moments(optimizer.optimizer.state.get(flat), flat)}
    return Fragment(name, start, {kind: tensor[offset : offset + count] for kind, tensor in whole.items()})


def _moments(state: dict[str, Any] | None, like: Any) -> dict[str, Any]:
    import torch

    tensors = {kind: value for kind, value in (state or {}).items() if torch.is_tensor(value) and kind != _COUNTER}
    return {kind: value.view(-1) for kind, value in tensors.items() if value.shape == like.shape}


_COUNTER = "step"


def start_optimizer(engine: Any, updates: int) -> None:
    """Let the optimizer create its state, by an update at rate 0 on no gradients, and tell it how many it has made."""
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
def _no_gradients(flats: Sequence[Any]) -> Iterator[None]:
    """Put zeros in the place of gradients."""
    import torch

    before = [flat.grad for flat in flats]
    for flat in flats:
        flat.grad = torch.zeros_like(flat)
    yield
    for flat, gradient in zip(flats, before, strict=True):
        flat.grad = gradient


def publish(engine: Any) -> None:
    """Bring the weights of the forward pass up to date with the master weights; every worker calls it at once."""
    zero, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage in (1, 2):
        zero.update_lp_params()
    elif stage == 3:
        zero._partition_all_parameters()
        for number in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(number)
        zero._post_step(set())
