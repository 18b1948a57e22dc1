"""The resources that work needs on a node, in Ray's names and in words, and those that an actor is told it has."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self


@dataclass(frozen=True)
class Need:
    """Resources and labels that each worker needs on its node."""

    workers: int
    """Number of workers that must be up before the work can begin."""
    resources: dict[str, float]
    """Resources of each worker, by Ray's names: CPU, GPU, memory in bytes, accelerator_type:H100."""
    labels: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, workers: int, asked: Mapping[str, float | None], labels: dict[str, str], accelerator_type: str | None
    ) -> Self:
        """Return the need of workers that each ask for resources (0 or None: do not ask) and a GPU type."""
        resources = {name: amount for name, amount in asked.items() if amount}
        if accelerator_type:
            resources[f"accelerator_type:{accelerator_type}"] = 0.001  # every node with such GPUs has 1 of it
        return cls(workers, resources, labels)

    def words(self) -> str:
        """Name what one worker needs: "1 CPU and 2 GPUs (H100), market-type=spot"."""
        kinds = [name.partition(":")[2] for name in self.resources if ":" in name]
        found = amounts(self.resources) + (f" ({', '.join(kinds)})" if kinds else "")
        return ", ".join([found, *(f"{name}={value}" for name, value in self.labels.items())])

    def fits(self, resources: Mapping[str, float], labels: Mapping[str, str]) -> bool:
        """Tell whether a node with these resources and labels has room for one worker."""
        enough = all(resources.get(name, 0.0) >= amount - 1e-9 for name, amount in self.resources.items())
        return enough and all(_selects(wanted, labels.get(name)) for name, wanted in self.labels.items())


def amounts(resources: Mapping[str, float]) -> str:
    """Write CPUs, GPUs and memory as people say them: "1 CPU and 0.5 GPUs"."""
    said = []
    for name in ("CPU", "GPU"):
        if amount := resources.get(name, 0.0):
            said.append(f"{amount:g} {name}{'' if amount == 1 else 's'}")
    if memory := resources.get("memory", 0.0):
        said.append(f"{memory / 1e9:.1f} GB of memory")
    return " and ".join(said) or "no CPU"


def _selects(wanted: str, found: str | None) -> bool:
    """Tell whether a label's value matches a selector: `spot`, `!spot`, `in(a, b)`, `!in(a, b)`."""
    plain = wanted.removeprefix("!")
    inside = re.fullmatch(r"in\((.*)\)", plain)
    values = [value.strip() for value in inside[1].split(",")] if inside else [plain]
    return (found in values) != wanted.startswith("!")


def _keep(name: str, value: str) -> str:
    del name
    return value


@dataclass(frozen=True)
class Resources:
    """Resources of one actor; an engine sizes its threads, device and batches by them."""

    cpus: float = 1
    gpus: float = 0
    batch_rows: int = 128
    batch_tokens: int = 1 << 16
    pipeline_parallel: int = 1
    memory_share: float = 0.9
    cache_bytes: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    agree: Callable[[str, str], str] = _keep
    """Takes a name and a value that an actor measured; returns the value that all actors of the stage use: the first
    one reported."""

    @property
    def tensor_parallel(self) -> int:
        """Number of GPUs over which each layer is split."""
        return max(1, int(self.gpus)) // self.pipeline_parallel

    @property
    def gpu_memory_share(self) -> float:
        """Share of each GPU's memory that an engine may take; scaled down if the actor has only part of a GPU."""
        return self.memory_share * min(1, self.gpus)
