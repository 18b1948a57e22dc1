"""How fast an engine reads prompts and writes replies: a roofline model, as pure functions of shape and rates.

Prompts are read at a share of the peak of matrix products. Each token of a reply takes a pass over the weights and over
the keys and values of every reply being written, at a share of the memory bandwidth (Pope et al. 2022,
arXiv:2211.05102, section 2). So replies are written together, as many as the engine and the memory beside the weights
allow. The engines differ in what they read again and in what a step costs besides memory traffic (`Writer`).
"""

from dataclasses import dataclass
from typing import Literal

from humpback_ray.engines import EngineConfig
from humpback_ray.engines.decoding import READ_TOKENS
from humpback_ray.engines.vllm import step_limits
from humpback_ray.placement import PoolPlacement
from humpback_ray.rates import Machine, PlanConfig
from humpback_ray.train.sizes import Shape


@dataclass(frozen=True)
class RowWork:
    """The model's work for each row of a stage."""

    prompt_tokens: float
    reply_tokens: float = 1
    """Tokens of one reply; 1 if a row takes only a forward pass."""
    replies: float = 1
    """Replies to the same prompt."""
    shared_tokens: float = 0
    """Tokens at the beginning of the prompt that all rows share."""
    most_reply_tokens: float = 0
    """Limit of a reply, for which the transformers engine keeps room; never less than `reply_tokens`."""
    read_again: bool = False
    """True if the prompt with each reply is read once more, to score what might follow."""


@dataclass(frozen=True)
class Writer:
    """An engine as the plan sees it: what it holds at once and what it reads again."""

    kind: Literal["vllm", "transformers", "echo"] = "transformers"
    """vLLM keeps prefixes of earlier prompts, splits a model over GPUs and replays captured graphs. Our transformers
    engine keeps one prefix, uses several GPUs one after the other, and starts each kernel from Python."""
    rows: int = 128
    """Most replies written at once."""
    tokens: float = 1 << 16
    """Most tokens of the transformers engine's buffers."""
    cache_bytes: int | None = None
    """Memory for keys and values, per GPU; None: what the weights leave."""

    @staticmethod
    def of(engine: EngineConfig, placement: PoolPlacement, name: str, machine: Machine) -> "Writer":
        """Return the engine of a stage on a machine with this name."""
        if engine.kind != "vllm":
            return Writer(engine.kind, placement.batch_rows, placement.batch_tokens)
        usual = step_limits(machine.memory_bytes, name)[0] if placement.gpus_per_replica else VLLM_CPU_ROWS
        return Writer("vllm", placement.max_num_seqs or usual, cache_bytes=placement.cache_bytes)


VLLM_CPU_ROWS = 128
"""Most requests in a step of vLLM 0.32 on a CPU: we leave its default (`SchedulerConfig.DEFAULT_MAX_NUM_SEQS`)."""


def weights_fit(weights: float, gpus: float, rates: PlanConfig) -> bool:
    """Tell whether `gpus` GPUs (or a part of one) hold weights of that many bytes, and some keys and values."""
    return weights < LEAST_ROOM * gpus * rates.usable(rates.on(gpus)[1])


LEAST_ROOM = 0.85
"""Largest share of a replica's memory that weights may take."""

USED_ROWS = 7 / 8
"""Mean share of the transformers engine's rows in use: new ones join once a quarter is free (`Decoder.fitting`)."""


def row_s(
    shape: Shape, devices: float, gpu: bool, element: int, work: RowWork, rates: PlanConfig, writer: Writer = Writer()
) -> float:
    """Return the seconds per row of one replica, on average.

    Args:
        shape: the model.
        devices: number of GPUs or cores of the replica.
        gpu: True for GPUs, False for cores.
        element: bytes per weight.
        work: the work per row.
        rates: assumptions, and the machine.
        writer: the engine.
    """
    machine, vllm = rates.on(gpu)[1], writer.kind == "vllm"
    at_once = devices if vllm or not gpu else min(devices, 1)
    flops, bandwidth = machine.peak_flops * at_once * rates.prefill_mfu, machine.memory_bytes_per_s * at_once
    launch_s = rates.launch_s * shape.layers if gpu and not vllm else 0.0

    own = max(work.prompt_tokens - work.shared_tokens, 0)
    passes = 1 if vllm else work.replies
    read = own * passes
    if work.read_again and not vllm:
        read, passes = read + work.replies * (own + work.reply_tokens), 2 * passes
    read_s = shape.forward_flops(read, work.prompt_tokens - own / 2, logits=passes) / flops
    read_s = max(read_s, launch_s * read / READ_TOKENS)
    if work.reply_tokens <= 1:
        return read_s
    weights = element * shape.parameters
    context = work.prompt_tokens + work.reply_tokens / 2
    together = _together(shape, devices, element, work, rates, machine, writer)
    pass_s = (weights + together * element * shape.kv_elements * context) / (bandwidth * rates.decode_share)
    compute_s = together * shape.forward_flops(1, context) / flops
    return read_s + work.replies * work.reply_tokens * max(pass_s, compute_s, launch_s) / together


def _together(
    shape: Shape, devices: float, element: int, work: RowWork, rates: PlanConfig, machine: Machine, writer: Writer
) -> float:
    """Return how many replies are written at once, on average; at least one.

    vLLM holds the tokens of a prompt once for all its replies, and the tokens that all prompts share once altogether.
    In the transformers engine each row holds all of them and room for the longest reply; rows join once a quarter is
    free.
    """
    if writer.kind == "vllm":
        kept = (work.prompt_tokens - work.shared_tokens) / work.replies + work.reply_tokens / 2
        rows = float(writer.rows)
    else:
        kept = work.prompt_tokens + max(work.most_reply_tokens, work.reply_tokens)
        rows = min(writer.rows, writer.tokens / kept) * USED_ROWS
    room = devices * rates.usable(machine) - element * shape.parameters
    if writer.cache_bytes is not None:
        room = devices * writer.cache_bytes
    return max(min(rows, room / (element * shape.kv_elements * kept)), 1.0)
