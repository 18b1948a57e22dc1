"""Warm processes for a Ray that runs only on this machine: an actor finds its libraries already imported.

A fresh worker process spends 1 s on Ray and up to 5 s on torch, transformers and DeepSpeed before an actor does
anything: longer than many stages of a small run take. So `keep` asks the raylet for idle processes in the runtime
environments of the next pool and the next training run, where Ray's setup hook imports the libraries of those actors.
Code that starts such actors gives them that environment and calls `took`. The raylet is then asked for replacements,
which start while the stage works.

Nothing depends on a warm process: without one, an actor starts as usual. No processes are kept on a cluster, since a
stage there works for hours, nor on a machine with GPUs, since libraries may look for them before Ray has said which
ones an actor gets. An idle process takes up to 350 MB, one for training twice that: it has started the process that
checks exports. Fewer are kept where memory is short, and the raylet ends those that no actor took for `IDLE_S`.
"""

import contextlib
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from humpback_ray.stages.nodes import alive
from humpback_ray.stages.ray_internals import HOOK, Raylet, training_variables

IDLE_S = 600
"""Seconds to keep an idle process."""

PROCESS_BYTES = 1 << 30
"""Memory that must be available for each further process."""

HELPERS = 3
"""Actors that Ray Train's controller starts besides its workers: for barriers, for data, and to clean up after it."""

VARIABLES = {
    "RAY_idle_worker_killing_time_threshold_ms": str(1000 * IDLE_S),  # else one second
    "RAY_worker_maximum_startup_concurrency": "8",  # else as many as CPUs, and Ray forgets further requests
}
"""Environment variables with which Ray must be started."""


def import_models() -> None:
    """Import the libraries of a pool's actor."""
    _import(["ray.data", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto"])


def import_training() -> None:
    """Import the libraries of a training worker, and start the process that would check its export."""
    with contextlib.suppress(ImportError):
        importlib.import_module("humpback_ray.train.export.process").started(gpu=False)
    import_models()
    _import(["humpback_ray.train.fit", "ray.train.torch", *DEEPSPEED])


DEEPSPEED = (
    "deepspeed.runtime.engine", "deepspeed.runtime.zero.stage_1_and_2",
    "torch._inductor.compile_fx", "pandas", "networkx",
)  # fmt: skip
"""DeepSpeed, and other modules that `deepspeed.initialize` imports."""


def _import(modules: Sequence[str]) -> None:
    for module in modules:
        with contextlib.suppress(ImportError):  # the code that needs the module raises, with a better message
            importlib.import_module(module)


@dataclass
class Reserve:
    """Idle processes of this driver's job."""

    raylet: Raylet
    job_id: bytes

    def add(self, processes: int, environment: str) -> None:
        """Ask for idle processes, as far as there is memory for them.

        Args:
            processes: number of processes.
            environment: their runtime environment as JSON, byte for byte as Ray will write the actor's.
        """
        import grpc
        import psutil

        for _ in range(min(processes, psutil.virtual_memory().available // PROCESS_BYTES)):
            with contextlib.suppress(grpc.RpcError):  # the code that needs the raylet notices if it is gone
                self.raylet.prestart(self.job_id, environment, IDLE_S)

    def replace(self, actors: int, training_workers: int) -> None:
        """Ask for the processes of a pool, and for those of a training run including Ray Train's own actors."""
        if actors:
            self.add(actors, _written({"env_vars": MODELS}))
        if training_workers:
            controller = training_variables()
            self.add(1, _written({"env_vars": controller}))
            self.add(HELPERS, _written({"env_vars": controller}, inherited=True))
            self.add(training_workers, _written({"env_vars": controller | ALLOCATOR | TRAINING}, inherited=True))


MODELS, TRAINING = ({HOOK: f"{__name__}.{hook.__name__}"} for hook in (import_models, import_training))
"""Environment variables of processes that import ahead, for a pool and for a training run."""

ROUNDED_BYTES = 64 << 20
"""Largest buffer of pinned memory that PyTorch rounds up to a power of two in training workers. By itself it rounds up
all of them, so that 27 GB of an offloaded optimizer take 34 GB."""

ALLOCATOR = {"PYTORCH_CUDA_ALLOC_CONF": f"expandable_segments:True,pinned_max_round_threshold_mb:{ROUNDED_BYTES >> 20}"}
"""Settings of PyTorch's allocators in training workers, as an environment variable, since they must be known before
CUDA starts. Micro-batches have many lengths, and segments that grow leave fewer holes: on an H100, PyTorch reserved
42 GB for a peak of 41 instead of 46. Engines do without: vLLM refuses such segments where it sends keys and values to
other nodes. Your own settings win if you set PYTORCH_ALLOC_CONF on the nodes: PyTorch prefers that name."""

_reserve: Reserve | None = None


def keep(actors: int, training_workers: int) -> None:
    """Keep idle processes from now on for a pool and for a training run, if any; Ray must run only on this machine."""
    import ray

    global _reserve
    (node,) = alive()
    if node["Resources"].get("GPU"):
        return
    raylet = Raylet(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")
    job_id = bytes.fromhex(ray.get_runtime_context().get_job_id())
    _reserve = Reserve(raylet, job_id)
    _reserve.replace(actors, training_workers)


def drop() -> None:
    """Stop keeping idle processes."""
    global _reserve
    _reserve = None


def took(actors: int = 0, training_workers: int = 0) -> None:
    """Replace the idle processes that a pool's actors or a training run's workers are about to take."""
    if _reserve is not None:
        _reserve.replace(actors, training_workers)


def pool_environment() -> dict[str, Any] | None:
    """Return the runtime environment in which a pool's actors find a warm process; None if none are kept."""
    return {"env_vars": dict(MODELS)} if _reserve is not None else None


def training_environment() -> dict[str, Any]:
    """Return the runtime environment of training workers: the allocator's settings, and likewise."""
    return {"env_vars": ALLOCATOR | (TRAINING if _reserve is not None else {})}


def _written(environment: Mapping[str, Any], inherited: bool = False) -> str:
    """Write a runtime environment as Ray does: without spaces if an actor inherits part of it."""
    return json.dumps(environment, sort_keys=True, separators=(",", ":") if inherited else None)
