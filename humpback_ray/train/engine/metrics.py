"""The resources that a step used: arithmetic compared with the devices' peak, and memory.

Model FLOPs utilization (Chowdhery et al. 2022, arXiv:2204.02311, appendix B) counts what the model needs, not what was
computed: nothing for padding, and nothing extra for layers that were computed twice to save memory. A token takes 6
FLOPs for each parameter: two forward, two for the gradients of activations, two for the gradients of weights, which
frozen weights (LoRA) do not have. Attention adds 6 x layers x width x length² per example: a token sees only earlier
tokens of its own example.

The peak is the maker's dense figure for the training format if the device is known, else that of a matrix product
measured at the start; `Meter.peak` says which.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from humpback_ray.train.engine import group

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

PEAK_TFLOPS = {
    "A100": 312, "A10G": 70, "B200": 2250, "GH200": 989, "H100 NVL": 835, "H100 PCIe": 756, "H100": 989, "H200": 989,
    "L4": 121, "L40": 181, "L40S": 362, "A6000": 155,
}  # fmt: skip
"""Dense bfloat16 TFLOP/s from NVIDIA's data sheets, by a part of CUDA's name for the device."""

PROBE_WIDTH = {"cpu": 768, "cuda": 8192}
"""Rows and columns of the matrices that are multiplied to measure an unknown peak."""
PROBES = 4


@dataclass(frozen=True)
class Meter:
    """Computes the share of the peak from a step's lengths and seconds."""

    flops_per_token: float
    attention_flops: float
    """FLOPs of an example's attention per square of its length."""
    peak_flops: float
    """FLOP/s of all workers together."""
    peak: str
    """The peak in words, with its source."""

    def mfu(self, lengths: Sequence[int], seconds: float) -> float:
        """Return the share of the peak that a step on examples of these lengths used."""
        return self.flops(lengths) / (seconds * self.peak_flops)

    def flops(self, lengths: Sequence[int]) -> float:
        """Return the FLOPs that a step on examples of these lengths needs."""
        return self.flops_per_token * sum(lengths) + self.attention_flops * sum(length * length for length in lengths)


def make_meter(
    config: "PreTrainedConfig", parameters: int, trainable: int, device: "torch.device", dtype: str
) -> Meter:
    """Return a model's meter for all workers; every worker calls it at once.

    Args:
        config: configuration of the model.
        parameters: number of all parameters.
        trainable: number of parameters with gradients.
        device: device of this worker.
        dtype: number format of its arithmetic.
    """
    flops, source = peak_of(device, dtype)
    (all_flops,) = group.every([flops], device)
    total, workers = sum(all_flops), len(all_flops)
    text: Any = config.get_text_config()
    heads = text.num_attention_heads
    width = heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)
    words = f"{total / 1e12:.3g} TFLOP/s of {workers} worker{'s' if workers > 1 else ''} in {dtype}, {source}"
    return Meter(4 * parameters + 2 * trainable, 6 * text.num_hidden_layers * width, total, words)


def peak_of(device: "torch.device", dtype: str) -> tuple[float, str]:
    """Return a device's FLOP/s in a number format, and whether they come from the table or were measured."""
    import torch

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = max((part for part in PEAK_TFLOPS if part in name), key=len, default=None)
        if known and dtype == "bfloat16":
            return PEAK_TFLOPS[known] * 1e12, f"from the table for {name}"
    return measured_peak(device, getattr(torch, dtype)), "measured on a matrix product"


def measured_peak(device: "torch.device", dtype: "torch.dtype") -> float:
    """Return the FLOP/s of the fastest of a few matrix products."""
    import torch

    width = PROBE_WIDTH["cuda" if device.type == "cuda" else "cpu"]
    left, right = (torch.ones(width, width, dtype=dtype, device=device) for _ in range(2))
    seconds = []
    for _ in range(PROBES):
        started = time.perf_counter()
        float((left @ right)[0, 0])  # reading a number waits for the device
        seconds.append(time.perf_counter() - started)
    return 2 * width**3 / min(seconds)


def memory_bytes(device: "torch.device") -> int:
    """Return the peak of a device's allocated memory so far; on a CPU, the process's current resident memory."""
    import psutil
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
