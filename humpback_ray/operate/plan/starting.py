"""The seconds that a stage with a model takes before its first row or step and after its last, by the model's size.

Before: machines and imports, the model's files onto each node, and from there to the GPUs. After a training: the
export, which rank 0 writes, reads back and stores in files of 5 GB while it gathers the next one, and then the check,
for which the files are loaded again.
"""

from typing import Literal

from humpback_ray import storage
from humpback_ray.rates import PlanConfig


def start_s(
    weights: float, uri: str, rates: PlanConfig, kind: Literal["vllm", "transformers", "echo"] | None = None
) -> float:
    """Return the seconds until a model of that size can work.

    Args:
        weights: bytes of its files.
        uri: where they are: one process of each node fetches them from object storage; a disk is read directly.
        rates: assumptions.
        kind: the engine that loads them, or None for a training.
    """
    if kind == "echo":
        return rates.start_s
    fetched = weights / rates.storage_bytes_per_s if storage.is_s3(uri) else 0.0
    return rates.start_s + fetched + weights / rates.disk_bytes_per_s + (rates.engine_start_s if kind == "vllm" else 0)


def export_s(weights: float, uri: str, rates: PlanConfig) -> float:
    """Return the seconds of the export of a model of that size, and of the check that loads it again."""
    made = weights / rates.host_copy_bytes_per_s + 2 * weights / rates.disk_bytes_per_s  # gathered, written, read back
    stored = weights / rates.storage_bytes_per_s if storage.is_s3(uri) else 0.0
    return max(made, stored) + weights / rates.disk_bytes_per_s
