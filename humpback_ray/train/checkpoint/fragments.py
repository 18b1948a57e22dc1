"""The part of a model that one worker holds at any ZeRO stage: runs of each parameter's elements, and optimizer state.

A `Fragment` is named by its parameter and by where it begins in the flattened parameter, so fragments of all layouts
share the same coordinates: the whole parameter (stage 0), its overlap with this worker's share of all parameters laid
end to end (1, 2), this worker's share of each parameter (3). Its tensors are views of the float32 master weights and of
the optimizer's moments, on the device or offloaded: we read them to save and write them to load. Frozen parameters have
no fragments, since they are the base model's.

The optimizer creates its moments at the first update; `start_optimizer` creates them without one. After loading,
`publish` updates the weights that the forward pass sees (both in deepspeed_internals.py).

Given up: offload to NVMe, and optimizers whose state has another shape than its parameter.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from humpback_ray.train.engine import deepspeed_internals
from humpback_ray.train.types import TrainingEngine

if TYPE_CHECKING:
    import torch

WEIGHT = "weight"
"""The kind of tensor that every fragment has; other kinds have the optimizer's names (`exp_avg`)."""


@dataclass(frozen=True)
class Fragment:
    """Elements `start` to `stop` of one flattened parameter."""

    name: str
    start: int
    tensors: dict[str, "torch.Tensor"]
    """One-dimensional tensors by kind."""

    @property
    def stop(self) -> int:
        """The element after the last one."""
        return self.start + self.tensors[WEIGHT].numel()

    @property
    def bytes(self) -> int:
        """Size of all tensors, in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def part(self, start: int, stop: int) -> "Fragment":
        """Return the elements `start` to `stop` of the parameter that it has, without copying."""
        low, high = max(start, self.start), min(stop, self.stop)
        views = {kind: tensor[low - self.start : high - self.start] for kind, tensor in self.tensors.items()}
        return Fragment(self.name, low, views)

    def on_host(self) -> "Fragment":
        """Return a copy in host memory, which training does not touch."""
        tensors = {kind: tensor.detach().to("cpu", copy=True) for kind, tensor in self.tensors.items()}
        return Fragment(self.name, self.start, tensors)


def held(engine: TrainingEngine) -> list[Fragment]:
    """Return the fragments that this worker holds; they have moments once there has been an update."""
    found = deepspeed_internals.held(engine)
    return [Fragment(name, start, {WEIGHT: weight, **moments}) for name, start, weight, moments in found]


def owned(engine: TrainingEngine, rank: int, workers: int) -> list[Fragment]:
    """Return the fragments that this worker saves; at stage 0 every worker holds all and saves an equal part."""
    fragments = held(engine)
    if engine.zero_optimization_stage() > 0:
        return fragments
    parts = [f.part(f.stop * rank // workers, f.stop * (rank + 1) // workers) for f in fragments]
    return [part for part in parts if part.start < part.stop]
