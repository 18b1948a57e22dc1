"""Times and sizes of an engine's forward passes, taken while it works, and what they would take at the ceilings."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from humpback_ray.train.sizes import Shape
from tests.gpu.ceilings import Ceilings
from tests.gpu.profiles import Profile

PROFILED = 4
"""Steps that are profiled."""


@dataclass
class Steps:
    """The passes of an engine.

    Args:
        decoder: the engine's decoder; its passes are timed until `forget`.
    """

    decoder: Any
    steps_s: float = 0.0
    """Seconds of the steps that write a token of every reply."""
    reading_s: float = 0.0
    """Seconds of the passes that read prompts."""
    steps: int = 0
    rows: int = 0
    """Replies in progress, summed over the steps."""
    held: int = 0
    """Tokens whose keys and values a step reads, summed over the steps; no padding."""
    profile: Profile | None = None
    """Records some steps of the next run, if set."""
    skipped: int = 3
    """Steps before those that are profiled: the first ones allocate, choose kernels and record graphs."""
    _before: dict[str, Callable[..., Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._before = {name: getattr(self.decoder, name) for name in ("step", "join")}
        self.decoder.step, self.decoder.join = self._step, self._join

    def forget(self) -> None:
        """Leave the decoder as it was."""
        for name in self._before:
            delattr(self.decoder, name)

    def _step(self) -> Any:
        slots = self.decoder.slots
        self.rows += len(slots.starts)
        self.held += sum(slots.end - start for start in slots.starts)
        if self.profile and self.steps == self.skipped:
            self.profile.start()
        began = time.perf_counter()
        found = self._before["step"]()  # reads the new tokens, so the GPU has finished
        self.steps_s += time.perf_counter() - began
        self.steps += 1
        if self.profile and self.steps == self.skipped + PROFILED:
            self.profile.stop(PROFILED)
        return found

    def _join(self, jobs: Any) -> Any:
        began = time.perf_counter()
        found = self._before["join"](jobs)
        self.reading_s += time.perf_counter() - began
        return found

    def floor_s(self, shape: Shape, element: int, limits: Ceilings) -> float:
        """Return the seconds of the steps if each read the weights once, and the keys and values of its replies."""
        weights = element * (shape.parameters - shape.embedding * (not shape.tied))  # the input needs a few rows of it
        return (self.steps * weights + element * shape.kv_elements * self.held) / limits.copy
