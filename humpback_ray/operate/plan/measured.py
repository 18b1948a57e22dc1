"""The measurements of a pilot, read from its manifests.

A pool's rate is that of one replica: the seconds of its shards, several of which it works on at a time, divided by
their rows. A training's rate is the median time of a step, without the first steps. Rates are used only for the pilot's
machine and GPUs per replica.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from statistics import median
from typing import Any

from humpback_ray import storage
from humpback_ray.graph import Graph
from humpback_ray.placement import PoolPlacement
from humpback_ray.run import latest_submission
from humpback_ray.runconfig import RunConfig
from humpback_ray.stages.manifest import Manifest, read_manifest

WARM_UP_STEPS = 2


@dataclass(frozen=True)
class MeasuredStep:
    """An optimizer step."""

    workers: int
    examples: int
    tokens: float
    seconds: float


@dataclass(frozen=True)
class Measured:
    """The figures of a pilot."""

    root: str
    share: float
    """Share of the corpus."""
    segments: float | None = None
    """Segments of the whole corpus, extrapolated from the share."""
    cutting_s: float | None = None
    """CPU seconds to cut the whole corpus, extrapolated from the share."""
    row_s: dict[str, float] = field(default_factory=dict)
    """Seconds per row of one replica, by stage."""
    step: MeasuredStep | None = None

    def said(self) -> list[tuple[str, Any, str]]:
        """List the measurements, for people."""
        source = f"measured in {self.root} ({self.share:.2%} of the corpus)"
        found: list[tuple[str, Any]] = [("segments", self.segments), ("segments: CPU seconds", self.cutting_s)]
        found += [(f"{name}: rows/s of a replica", 1 / seconds) for name, seconds in self.row_s.items()]
        if self.step:
            found.append(
                (f"seconds per step of {self.step.tokens:.0f} tokens, {self.step.workers} workers", self.step.seconds)
            )
        return [(name, value, source) for name, value in found if value is not None]


def measured(config: RunConfig, root: str) -> Measured | None:
    """Read the measurements of the pilot at a root that apply to this configuration; None without a pilot."""
    _, record = latest_submission(root)
    if not record.get("config", {}).get("pilot"):
        return None
    before = RunConfig.model_validate(record["config"])
    same_machine = before.plan.machine == config.plan.machine
    graph, there = Graph(config), {node.name: storage.join(root, node.name) for node in Graph(config)}
    manifests = {name: manifest for name, uri in there.items() if (manifest := read_manifest(uri))}
    share, cutting, corpus = before.pilot or 1.0, manifests.get("segments"), manifests.get("corpus")
    return Measured(
        root=root, share=share, segments=corpus.kept / share if corpus else None,
        cutting_s=cutting.work_s / share if cutting else None,
        row_s=rates_of(manifests, Graph(before), graph) if same_machine else {},
        step=step_of(manifests, before) if same_machine else None,
    )  # fmt: skip


def rates_of(manifests: Mapping[str, Manifest], before: Graph, after: Graph) -> dict[str, float]:
    """Return the seconds per row of one replica, for stages whose replicas have the pilot's size."""
    found = {}
    for name, manifest in manifests.items():
        was, now = before.placement(name), after.placement(name)
        if not (isinstance(was, PoolPlacement) and isinstance(now, PoolPlacement) and manifest.tokens):
            continue
        if (was.gpus_per_replica, was.cpus_per_replica) == (now.gpus_per_replica, now.cpus_per_replica):
            together = min(was.shards_in_flight, ceil(len(manifest.commits) / was.most_replicas))
            found[name] = manifest.work_s / together / manifest.rows
    return found


def step_of(manifests: Mapping[str, Manifest], before: RunConfig) -> MeasuredStep | None:
    """Return the median step of the last training that has steps after the warm-up."""
    for manifest in reversed([*manifests.values()]):
        if steps := manifest.metrics().slice(WARM_UP_STEPS):
            tokens, seconds = (median(steps[field].to_pylist()) for field in ("tokens", "seconds"))
            return MeasuredStep(before.train.placement.most_workers, manifest.extra["batch_examples"], tokens, seconds)
    return None
