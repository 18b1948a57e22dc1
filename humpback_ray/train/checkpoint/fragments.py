"""What of a model one worker holds, whatever the ZeRO stage: runs of each parameter's elements, with optimizer state.

A `Fragment` is named by its parameter and by where it begins in the flattened parameter, so those of any layout meet
in the same coordinates: the whole parameter (stage 0), what falls into this worker's share of all parameters laid end
to end (1, 2), this worker's share of each parameter (3). Its tensors are views of the float32 master weights and of
the optimizer's moments, on the device or offloaded: reading them saves, writing them loads. Frozen parameters are not
among them, for they are those of the base model.

The optimizer creates its moments with the first update, and `start_optimizer` without one. After writing, `publish`
brings the weights that the forward pass sees up to date (both in deepspeed_internals.py).

Given up: offload to NVMe, and optimizers whose state has another shape than their parameter.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from humpback_ray.train.engine import deepspeed_internals
from humpback_ray.train.types import TrainingEngine

if TYPE_CHECKING:
    import torch

WEIGHT = "weight"
"""The kind of tensor that every fragment has; the others are called as the optimizer calls them (`exp_avg`)."""


@dataclass(frozen=True)
class Fragment:
    """Elements `start` to `stop` of one flattened parameter."""

    name: str
    start: int
    tensors: dict[str, "torch.Tensor"]
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


def held(engine: TrainingEngine) -> list[Fragment]:
    """Return what this worker holds; moments only where there has been an update."""
    found = deepspeed_internals.held(engine)
    return [Fragment(name, start, {WEIGHT: weight, **moments}) for name, start, weight, moments in found]


def owned(engine: TrainingEngine, rank: int, workers: int) -> list[Fragment]:
    """Return what this worker saves: of stage 0, where every worker holds all, an equal part of each parameter."""
    fragments = held(engine)
    if engine.zero_optimization_stage() > 0:
        return fragments
    parts = [f.part(f.stop * rank // workers, f.stop * (rank + 1) // workers) for f in fragments]
    return [part for part in parts if part.start < part.stop]
