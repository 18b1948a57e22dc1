"""How fast an engine reads prompts and writes replies: a roofline, pure functions of shape and rates.

Prompts are read at a share of the peak of matrix products. A reply's token takes a pass over the weights and over the
keys and values of every reply being written, at a share of the memory's bandwidth (Pope et al. 2022, arXiv:2211.05102,
section 2), so replies are written together, as many as the memory left beside the weights holds.
"""

from dataclasses import dataclass

from humpback_ray.rates import PlanConfig
from humpback_ray.train.sizes import Shape


@dataclass(frozen=True)
class RowWork:
    """What each row of a stage asks of a model."""

    prompt_tokens: float
    reply_tokens: float = 1
    """Of one reply; 1 where a forward pass is all."""
    replies: float = 1
    """Per prompt; the prompt is read once."""


def weights_fit(weights: float, gpus: float, rates: PlanConfig) -> bool:
    """Tell whether an engine on so many GPUs (or a part of one) holds that many bytes, and some keys and values."""
    return weights < LEAST_ROOM * gpus * rates.usable(rates.on(gpus)[1])


LEAST_ROOM = 0.85
"""Of a replica's memory, the most that weights may take."""


def row_s(shape: Shape, devices: float, gpu: bool, element: int, work: RowWork, rates: PlanConfig) -> float:
    """Return the seconds of one replica per row, in the long run.

    Args:
        shape: the model.
        devices: GPUs of the replica, or cores.
        gpu: which of them.
        element: bytes of a weight.
        work: what a row asks.
        rates: assumptions, and the machine.
    """
    machine = rates.on(gpu)[1]
    read_s = shape.forward_flops(work.prompt_tokens, work.prompt_tokens / 2, logits=1)
    read_s /= machine.peak_flops * devices * rates.prefill_mfu
    if work.reply_tokens <= 1:
        return read_s
    weights = element * shape.parameters
    context = work.prompt_tokens + work.reply_tokens / 2
    sequence = element * shape.kv_elements * context
    free = max(devices * rates.usable(machine) - weights, sequence)
    together = max(min(free / sequence, rates.most_sequences), 1.0)
    pass_s = (weights + together * sequence) / (machine.memory_bytes_per_s * devices * rates.decode_share)
    compute_s = together * shape.forward_flops(1, context) / (machine.peak_flops * devices * rates.prefill_mfu)
    return read_s + work.replies * work.reply_tokens * max(pass_s, compute_s) / together
