"""How long a step of a fine-tune takes on n GPUs, and how many GPUs are sensible: pure functions of shape and rates.

A step of this method is small: 32 examples are about 14,000 tokens. Beyond some number of GPUs a worker computes less
than one example, while ZeRO 3 still gathers the same weights (twice per micro-batch) and reduces the same gradients, so
more GPUs cost more and save nothing. `choose` finds that number.

Traffic is that of ring collectives (Patarasuk and Yuan 2009, J. Parallel Distrib. Comput. 69): (n - 1)/n of the bytes
for a gather or a reduce-scatter, twice that for an all-reduce, over each GPU's link within a node and over each node's
network between nodes. The number of collectives follows Rajbhandari et al. 2020 (arXiv:1910.02054), section 7, and
DeepSpeed's source, which uses all-reduce in stages 1 and 2.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import NormalDist

from humpback_ray.rates import Machine, PlanConfig
from humpback_ray.train.engine.zero import BUCKET_ELEMENTS
from humpback_ray.train.memory import FP32, MOMENTS, Layout, Memory, memory
from humpback_ray.train.sizes import Shape


@dataclass(frozen=True)
class Batch:
    """The examples of a step, described by their lengths in tokens."""

    examples: int
    mean: float
    deviation: float
    limit: int
    """Longer examples are dropped or cut."""

    @property
    def tokens(self) -> float:
        """Tokens of the batch."""
        return self.examples * min(self.mean, self.limit)

    @property
    def context(self) -> float:
        """Length of the example that contains the average token."""
        return min(self.mean + self.deviation**2 / self.mean, self.limit)

    @property
    def longest(self) -> float:
        """Expected length of the longest example, for normally distributed lengths (Blom 1958)."""
        highest = NormalDist().inv_cdf((self.examples - 0.375) / (self.examples + 0.25))
        return min(self.mean + max(highest, 0) * self.deviation, self.limit)

    def busiest(self, workers: int) -> float:
        """Tokens of the busiest worker: examples are not split, so at least the longest one."""
        return max(self.tokens / workers, self.longest) if workers > 1 else self.tokens


@dataclass(frozen=True)
class Step:
    """Memory and time of one optimizer step with a number of workers."""

    workers: int
    memory: Memory
    lacks: float
    """Bytes that a worker's device and host lack; 0 if it fits."""
    compute_s: float
    traffic_s: float
    update_s: float
    seconds: float
    """Total; time that overlaps counts once."""

    @property
    def fits(self) -> bool:
        """True if a worker has the memory that it needs."""
        return self.lacks == 0

    @property
    def worker_seconds(self) -> float:
        """The cost of a step, in seconds of one GPU."""
        return self.workers * self.seconds


def step(shape: Shape, layout: Layout, batch: Batch, rates: PlanConfig, slower: float = 1.0) -> Step:
    """Return the memory and time of a step.

    Args:
        shape: the model.
        layout: how it is distributed; whether it accumulates is computed here.
        batch: the examples of a step.
        rates: assumptions, and the machine.
        slower: factor on the time, from a pilot: measured divided by planned seconds.
    """
    machine, n = rates.on(layout.gpu)[1], layout.workers
    busiest = batch.busiest(n)
    budget = max(layout.micro_batch_tokens, batch.limit)
    rounds = math.ceil(busiest / budget)
    most = min(budget, math.ceil(batch.examples / n) * batch.limit)  # as if every example had the maximum length
    held = memory(shape, replace(layout, micro_batch_tokens=most, accumulates=most == budget))
    passes = 4 if layout.checkpointing else 3
    compute_s = passes * shape.forward_flops(busiest, batch.context) / (machine.peak_flops * rates.training_mfu)
    sent, messages = traffic(shape, layout, rounds)
    traffic_s = ring_s(sent, n, machine, rates) + messages * rates.message_s * math.log2(max(n, 2)) * (n > 1)
    host_link_s = host_bytes(shape, layout, rounds) / (machine.host_link_bytes_per_s * rates.traffic_share)
    owned = shape.parameters / (n if layout.stage else 1)
    update_s = owned * 2 * (MOMENTS + FP32) / machine.memory_bytes_per_s
    if layout.offload_optimizer:
        update_s = owned / rates.host_updates_per_s
    traffic_s += host_link_s
    hidden = rates.overlap * min(compute_s, traffic_s)
    seconds = slower * (compute_s + traffic_s - hidden + update_s)
    return Step(n, held, _lacks(held, layout.gpu, machine, rates), compute_s, traffic_s, update_s, seconds)


HOST_SHARE = 0.8
"""Share of a host's memory for offloaded state and the copy of a checkpoint: page cache, Ray's object store and the
workers need the rest."""


def _lacks(held: Memory, gpu: bool, machine: Machine, rates: PlanConfig) -> float:
    """Return the bytes that a worker lacks; on a CPU, device and host are the same memory."""
    usable, beside = rates.usable(machine), held.host + held.checkpoint
    if gpu:
        return max(held.peak - usable, 0) + max(beside - machine.host_bytes * HOST_SHARE, 0)
    return max(held.peak + beside - usable, 0)


def traffic(shape: Shape, layout: Layout, rounds: int) -> tuple[float, int]:
    """Return the bytes that each worker receives in a step of `rounds` micro-batches, and the number of messages."""
    n, weights = layout.workers, layout.element * shape.parameters
    gather, all_reduce = weights, 2 * layout.element * shape.parameters
    whole = {
        0: 2 * FP32 * shape.parameters,
        1: 2 * FP32 * shape.parameters + gather,
        2: rounds * all_reduce + gather,
        3: rounds * (2 * gather + weights),
    }[layout.stage]
    passes = {0: 1, 1: 2, 2: rounds + 1, 3: 3 * rounds}[layout.stage]
    messages = math.ceil(shape.parameters / BUCKET_ELEMENTS)
    if layout.stage == 3:  # larger matrices are gathered and reduced whole
        messages = min(messages, len(shape.layer_matrices) * shape.layers + 2)
    return whole * (n - 1) / n, passes * messages


def ring_s(sent: float, workers: int, machine: Machine, rates: PlanConfig) -> float:
    """Return the seconds of collectives in which each worker receives `sent` bytes.

    Between nodes, all rings together bring those bytes into each node once, through the node's network.
    """
    slowest = machine.link_bytes_per_s if workers <= machine.per_node else machine.network_bytes_per_s
    return sent / (min(slowest, machine.link_bytes_per_s) * rates.traffic_share) if workers > 1 else 0.0


def host_bytes(shape: Shape, layout: Layout, rounds: int) -> float:
    """Return the bytes that a worker exchanges with its host's memory in a step."""
    owned = shape.parameters / layout.workers
    moved = 0.0
    if layout.offload_optimizer:  # gradients down, weights up
        moved += (FP32 + layout.element) * owned
    if layout.offload_parameters:
        moved += 2 * rounds * layout.element * owned
    return moved


def counts(machine: Machine, most: int = 128) -> list[int]:
    """Return the numbers of GPUs to consider: powers of two up to a node, then doublings of nodes."""
    found, n = [], 1
    while n < machine.per_node:
        found.append(n)
        n *= 2
    n = machine.per_node
    while n <= most:
        found.append(n)
        n *= 2
    return found


def steps(shape: Shape, layout: Layout, batch: Batch, rates: PlanConfig, slower: float = 1.0) -> list[Step]:
    """Return a step for every number of GPUs to consider, and for the layout's own."""
    machine = rates.on(layout.gpu)[1]
    numbers = sorted({*counts(machine), layout.workers})
    return [step(shape, replace(layout, workers=n), batch, rates, slower) for n in numbers]


def smallest(found: Iterable[Step]) -> Step | None:
    """Return the step with the fewest workers that fits; None if none fits."""
    return next((one for one in found if one.fits), None)


def choose(found: Iterable[Step]) -> Step | None:
    """Return the step with the sensible number of workers: it fits, and cost times time is lowest.

    By this measure, doubling the workers pays off if it saves more than 29 % of the time.
    """
    return min((one for one in found if one.fits), key=lambda one: one.worker_seconds * one.seconds, default=None)
