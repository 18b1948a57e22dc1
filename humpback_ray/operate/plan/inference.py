"""How fast an engine reads prompts and writes replies: a roofline model, as pure functions of shape and rates.

Prompts are read at a share of the peak of matrix products. Each token of a reply takes a pass over the weights and over
the keys and values of every reply being written, at a share of the memory bandwidth (Pope et al. 2022,
arXiv:2211.05102, section 2). So replies are written together, as many as fit in the memory beside the weights.
"""

from dataclasses import dataclass

from humpback_ray.rates import PlanConfig
from humpback_ray.train.sizes import Shape


@dataclass(frozen=True)
class RowWork:
    """The model's work for each row of a stage."""

    prompt_tokens: float
    reply_tokens: float = 1
    """Tokens of one reply; 1 if a row takes only a forward pass."""
    replies: float = 1
    """Replies per prompt; the prompt is read once."""


def weights_fit(weights: float, gpus: float, rates: PlanConfig) -> bool:
    """Tell whether `gpus` GPUs (or a part of one) hold weights of that many bytes, and some keys and values."""
    return weights < LEAST_ROOM * gpus * rates.usable(rates.on(gpus)[1])


LEAST_ROOM = 0.85
"""Largest share of a replica's memory that weights may take."""


def row_s(shape: Shape, devices: float, gpu: bool, element: int, work: RowWork, rates: PlanConfig) -> float:
    """Return the seconds per row of one replica, on average.

    Args:
        shape: the model.
        devices: number of GPUs or cores of the replica.
        gpu: True for GPUs, False for cores.
        element: bytes per weight.
        work: the work per row.
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
