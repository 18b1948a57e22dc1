"""A profile of a few steps: kernels launched, time on CPU and GPU, kernels of attention, and a table in a file."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Self

LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch")
"""Beginnings of the names of CUDA's calls that launch a kernel or a graph of kernels."""

ATTENTION = {
    "flash_attn::_flash_attn_varlen_forward": "flash-attention, rows of several lengths",
    "flash_attn::_flash_attn_forward": "flash-attention",
    "torch_attn::_varlen_attn": "PyTorch flash, rows of several lengths",
    "aten::_scaled_dot_product_flash_attention": "PyTorch flash",
    "aten::_scaled_dot_product_flash_attention_for_cpu": "PyTorch flash on CPU",
    "aten::_scaled_dot_product_efficient_attention": "PyTorch memory-efficient",
    "aten::_scaled_dot_product_cudnn_attention": "PyTorch cuDNN",
    "aten::_scaled_dot_product_attention_math": "PyTorch math",
    "aten::_scaled_dot_product_attention_math_for_mps": "PyTorch math",
}
"""Operations of a forward pass that compute attention, and what we call them."""

ROWS = 30
"""Operations in a table."""


class Profile:
    """A profile of the code between `start` and `stop`, both called by the thread that does the work.

    Args:
        gpu: whether to record kernels of a GPU.
    """

    def __init__(self, gpu: bool) -> None:
        from torch.profiler import ProfilerActivity, profile

        self.gpu, self.steps = gpu, 0
        wanted = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
        self._inner = profile(activities=wanted)

    def start(self) -> Self:
        """Begin to record."""
        self._inner.start()
        return self

    def stop(self, steps: int) -> None:
        """End the recording of a number of steps."""
        self._inner.stop()
        self.steps = steps

    @cached_property
    def events(self) -> Any:
        """Operations and kernels, each with its calls and times added up."""
        return self._inner.key_averages()

    def figures(self) -> dict[str, Any]:
        """Return launches, and milliseconds on CPU and GPU, per step; a CPU without a GPU launches nothing."""
        launches = sum(event.count for event in self.events if event.key.startswith(LAUNCHES))
        on_cpu = sum(event.self_cpu_time_total for event in self.events)
        kernels = [event for event in self.events if "CUDA" in str(event.device_type) and not event.is_user_annotation]
        on_gpu = sum(event.self_device_time_total for event in kernels)
        return {
            "launches_per_step": round(launches / self.steps) if self.gpu else None,
            "cpu_ms_per_step": round(on_cpu / self.steps / 1e3, 2),
            "gpu_ms_per_step": round(on_gpu / self.steps / 1e3, 2) if self.gpu else None,
        }

    def attention(self) -> dict[str, int]:
        """Return the kernels of attention that forward passes used, with their calls per step."""
        return attention_in((event.key, round(event.count / self.steps)) for event in self.events)

    def write(self, file: Path, title: str) -> str:
        """Write a table of the most expensive operations; return the file's name."""
        order = "self_device_time_total" if self.gpu else "self_cpu_time_total"
        table = self.events.table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
        file.write_text(f"{title}\n\n{table}\n")
        return file.name


def attention_in(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return the kernels of attention among named operations, by our names; unknown ones keep their own."""
    found: dict[str, int] = {}
    for name, count in counts:
        unknown = ("varlen" in name or "flex_attention" in name) and "backward" not in name and "::" in name
        if name in ATTENTION or unknown:
            said = ATTENTION.get(name, name)
            found[said] = found.get(said, 0) + count
    return found
