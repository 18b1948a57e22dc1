"""What checkpoints cost a fine-tune: bytes in storage, and seconds in which it waits for them.

Each worker copies its part to host memory, which stops training, and stores the copy while the next steps run. It waits
for the previous checkpoint first (`train/checkpoint/saver.py`). So if storing one takes longer than the steps between
two, storage sets the pace. The last checkpoint is waited for in any case.
"""

import math
from dataclasses import dataclass

from humpback_ray import storage
from humpback_ray.operate.plan.training import Step
from humpback_ray.placement import TrainPlacement
from humpback_ray.rates import Machine, PlanConfig
from humpback_ray.train.memory import FP32, MOMENTS
from humpback_ray.train.sizes import Shape


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one fine-tune."""

    bytes: int
    """Size of one, of all workers together."""
    kept_bytes: int
    """Size of those that stay in storage until `jobs.gc`."""
    node_copy_bytes: int
    """Host memory for the copies of a node's workers."""
    count: int
    """Number that a fine-tune writes; the last one after its last step."""
    copy_s: float
    """Seconds that each one stops training for its copy."""
    store_s: float
    """Seconds until the copy is stored."""
    apart_s: float
    """Seconds of steps between two."""

    @property
    def stall_s(self) -> float:
        """Seconds that training waits for each one except the last."""
        return self.copy_s + max(self.store_s - self.apart_s, 0)

    @property
    def seconds(self) -> float:
        """Seconds that they add to a fine-tune."""
        return (self.count - 1) * self.stall_s + self.copy_s + self.store_s


def checkpoints(
    shape: Shape, placement: TrainPlacement, steps: int, step: Step, uri: str, machine: Machine, rates: PlanConfig
) -> Checkpoints:
    """Return the checkpoints of a fine-tune of `steps` steps that are stored under `uri`."""
    size = (FP32 + MOMENTS) * shape.parameters
    part, together = size / step.workers, min(step.workers, machine.per_node)
    stored = min(rates.storage_bytes_per_s, rates.node_storage_bytes_per_s / together)
    if not storage.is_s3(uri):
        stored = rates.disk_bytes_per_s / together
    between = placement.checkpoint_every_steps
    if placement.checkpoint_every_minutes is not None:
        between = min(between, max(math.ceil(60 * placement.checkpoint_every_minutes / step.seconds), 1))
    between, count = min(between, steps), math.ceil(steps / between)
    return Checkpoints(
        bytes=size, kept_bytes=size * min(placement.keep_checkpoints, count),
        node_copy_bytes=step.memory.checkpoint * together, count=count, copy_s=part / rates.host_copy_bytes_per_s,
        store_s=part / stored, apart_s=between * step.seconds,
    )  # fmt: skip
