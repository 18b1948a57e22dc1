"""Where work runs: replicas, CPUs, GPUs, workers, as settings and as Ray's arguments. Never hashed."""

import random
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from humpback_ray.config import Config
from humpback_ray.needs import Need, Resources
from humpback_ray.packages import FLASH, WANDB, Package

GiveUpAfter = Annotated[float, Field(gt=0)]
"""Minutes."""

LEAST_SHARE = 0.0001
"""Smallest part of a CPU or GPU that Ray can reserve."""

Cpus = Annotated[float, Field(ge=LEAST_SHARE)]

Labels = dict[
    Annotated[str, Field(pattern=r"^([A-Za-z0-9.-]+/)?[A-Za-z0-9][A-Za-z0-9_.-]*$")],
    Annotated[str, Field(pattern=r"^!?([A-Za-z0-9_.-]+|in\([A-Za-z0-9_., -]+\))$")],
]
"""Labels that a node must have, as Ray selects by them: `{ray.io/market-type: spot}`, `!spot`, `in(us-1a, us-1b)`."""


class PoolPlacement(Config):
    """A pool of actors that Ray Data feeds with shards."""

    min_replicas: int = Field(default=1, ge=1)
    """Actors at the start, and as long as there is work for them."""

    max_replicas: int | None = Field(default=None, ge=1)
    """While shards wait, the pool grows up to this many actors, as far as the cluster has room or gets more; it shrinks
    once none wait. None: `min_replicas`."""

    cpus_per_replica: Cpus = 1
    """CPUs that Ray reserves for one actor."""

    gpus_per_replica: float = Field(default=0, ge=0)
    """GPUs per actor, all on one node: a fraction (0.5: two actors share a GPU), or whole GPUs over which an engine
    splits its model."""

    pipeline_parallel: int = Field(default=1, ge=1)
    """Pipeline stages that vLLM cuts the model into, for GPUs without a fast link. It splits each layer of a stage over
    gpus_per_replica / pipeline_parallel GPUs (tensor parallelism)."""

    memory_share: float = Field(default=0.9, gt=0, le=1)
    """Share of its GPUs' memory, or of its part of a GPU, that vLLM uses for weights and the KV cache."""

    cache_bytes: int | None = Field(default=None, gt=0)
    """KV cache of one vLLM replica, in bytes per GPU; None: what `memory_share` leaves, or 2 GiB on a CPU. Must be set
    where replicas share a GPU: vLLM measures the free memory of the whole GPU, so when two start together, one finds
    too little."""

    max_num_seqs: int | None = Field(default=None, ge=1)
    """Requests that vLLM works on in one step; None: 1,024 on GPUs of at least 70 GiB except A100s, else 256."""

    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    """Tokens that vLLM reads and writes in one step; None: 16,384 on the GPUs where `max_num_seqs` is 1,024, else
    8,192."""

    accelerator_type: str | None = None
    """Ray's name of the GPU to ask for, such as "H100"; None: any."""

    labels: Labels = Field(default_factory=dict)
    """Labels of the nodes that actors may run on, to choose spot or on-demand, or a zone; {}: any node."""

    batch_rows: int = Field(default=128, ge=1)
    """Requests that the transformers engine works on at once."""

    batch_tokens: int = Field(default=1 << 16, ge=1)
    """Tokens that it holds at once: prompts and replies with their padding. Halved when memory runs out."""

    shards_in_flight: int = Field(default=2, ge=1)
    """Shards that one actor works on at once, so its engine never drains between two."""

    rows_per_shard: int = Field(default=2000, ge=1)
    """Rows of the previous stage's table in one shard; the first submission's plan fixes it."""

    max_attempts: int = Field(default=3, ge=1)
    """Attempts at one shard within a submission, not counting lost nodes. After that, the shard runs alone and is
    halved until the rows that no worker survives are found. Those are quarantined."""

    max_quarantined_share: float = Field(default=0.05, ge=0, le=1)
    """The stage stops if a shard loses a larger share of its rows than this, and more than three: then the rows are not
    to blame."""

    limit_factor: float = Field(default=10, gt=1)
    """Time limit of a shard, as a multiple of the median time per row (for files: per byte) of the shards that ended.
    After that, its process is ended and the attempt fails."""

    limit_floor_s: float = Field(default=600, gt=0)
    """Lower bound of a shard's time limit; for a part of a shard that runs alone, a tenth of it."""

    limit_unmeasured_s: float = Field(default=3600, gt=0)
    """Time limit of a shard while none has ended."""

    straggler_factor: float | None = Field(default=3, gt=1)
    """Once actors have all open shards, a shard that takes this many times its expected time, and at least a tenth of
    `limit_floor_s`, is started again elsewhere; the first commit wins. None: off."""

    give_up_waiting_minutes: GiveUpAfter | None = None
    """The stage fails if no actor of the pool is up for this long: no such node came, all are busy, or a
    constructor does not return. None: wait, and log what for every 30 s."""

    @model_validator(mode="after")
    def _can_be_had(self) -> Self:
        gpus, parts = self.gpus_per_replica, self.pipeline_parallel
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}; raise the first or "
                "lower the second"
            )
        if 0 < gpus < LEAST_SHARE:
            raise ValueError(
                f"gpus_per_replica is {gpus:g}, but Ray reserves at least {LEAST_SHARE:g} of a GPU; set it to 0 or more"
            )
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(
                f"gpus_per_replica is {gpus:g}, but actors share one GPU (say 0.5) or have whole GPUs; set it to "
                f"{int(gpus)} or {int(gpus) + 1}"
            )
        if parts > 1 and (gpus < parts or gpus % parts):
            raise ValueError(
                f"gpus_per_replica is {gpus:g} and pipeline_parallel is {parts}, so the GPUs cannot be divided evenly; "
                f"set gpus_per_replica to a multiple of {parts} or pipeline_parallel to 1"
            )
        return self

    def needs(self) -> dict[str, float]:
        """Return the resources that must be free at once: those of the pool at its start."""
        return {"CPU": self.min_replicas * self.cpus_per_replica, "GPU": self.min_replicas * self.gpus_per_replica}

    def most(self) -> dict[str, float]:
        """Return the resources of the pool at its largest."""
        return {"CPU": self.most_replicas * self.cpus_per_replica, "GPU": self.most_replicas * self.gpus_per_replica}

    @property
    def most_replicas(self) -> int:
        """Maximum number of actors in the pool."""
        return max(self.min_replicas, self.max_replicas or 0)

    @property
    def resources(self) -> Resources:
        """Resources of one actor of the pool."""
        return Resources(
            self.cpus_per_replica, self.gpus_per_replica, self.batch_rows, self.batch_tokens, self.pipeline_parallel,
            self.memory_share, self.cache_bytes, self.max_num_seqs, self.max_num_batched_tokens,
        )  # fmt: skip

    def need(self) -> Need:
        """Return the resources that the pool waits for before it can work."""
        each = {"CPU": self.cpus_per_replica, "GPU": self.gpus_per_replica}
        return Need.of(self.min_replicas, each, self.labels, self.accelerator_type)

    @property
    def most_shards_held(self) -> int:
        """Maximum number of shards that the pool's actors have, running or queued."""
        return self.most_replicas * (self.shards_in_flight + 1)

    def for_shards(self, count: int) -> "PoolPlacement":
        """Return the placement of a pool for `count` shards: no more actors than shards."""
        least, most = min(self.min_replicas, count), min(self.most_replicas, count)
        return self.model_copy(update={"min_replicas": least, "max_replicas": most})

    def actor_arguments(self, avoid_node: str | None = None) -> dict[str, Any]:
        """Return the options of one such actor outside a pool, if possible not on `avoid_node`."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options = {
            "num_cpus": self.cpus_per_replica, "num_gpus": self.gpus_per_replica or None, "max_restarts": 0,
            "accelerator_type": self.accelerator_type, "label_selector": self.labels or None,
        }  # fmt: skip
        wanted = "GPU" if self.gpus_per_replica else "CPU"
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(wanted)]
        others = [node["NodeID"] for node in nodes if node["NodeID"] != avoid_node]
        if avoid_node and others:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(random.choice(others), soft=True)
        return options

    def map_arguments(self) -> dict[str, Any]:
        """Return the arguments of `Dataset.map_batches` for this pool."""
        from ray.data import ActorPoolStrategy

        return {
            "compute": ActorPoolStrategy(
                min_size=self.min_replicas,
                max_size=self.most_replicas,
                max_tasks_in_flight_per_actor=self.shards_in_flight + 1,
                max_concurrent_calls_per_actor=self.shards_in_flight,
            ),
            "num_cpus": self.cpus_per_replica,
            "num_gpus": self.gpus_per_replica or None,
            "accelerator_type": self.accelerator_type,
            "label_selector": self.labels or None,
            "batch_size": 1,
        }


class TaskPlacement(Config):
    """Placement of the one Ray task that does a whole global step (duplicates, selection)."""

    cpus: Cpus = 1
    """CPUs to reserve for the task."""

    memory_bytes: int | None = Field(default=None, gt=0)
    """Memory to reserve for the task; None: none reserved."""
    labels: Labels = Field(default_factory=dict)
    """Labels of the nodes that the task may run on."""

    give_up_waiting_minutes: GiveUpAfter | None = None
    """The stage fails if the task could not start for this long: no such node came, or all are
    busy. None: wait, and log what for every 30 s."""

    def need(self) -> Need:
        """Return the resources that the task waits for before it can start."""
        return Need.of(1, {"CPU": self.cpus, "memory": self.memory_bytes}, self.labels, None)

    def needs(self) -> dict[str, float]:
        """Return the resources that must be free at once."""
        return {"CPU": self.cpus}

    def most(self) -> dict[str, float]:
        """Return the resources that it holds."""
        return self.needs()

    def remote_arguments(self) -> dict[str, Any]:
        """Return the options of the Ray task.

        Ray retries nothing, since it would retry a task that its memory monitor kills forever. `Stage.once` retries.
        """
        return {
            "num_cpus": self.cpus, "memory": self.memory_bytes, "max_retries": 0, "label_selector": self.labels or None
        }  # fmt: skip


Workers = Annotated[int, Field(ge=1)]


class TrainPlacement(Config):
    """Workers of one fine-tune, and how DeepSpeed spreads the model over them."""

    workers: Workers | tuple[Workers, Workers] = 1
    """Number of workers, or [least, most]: then the run shrinks when a node is lost and grows when one is added, each
    time from the newest checkpoint."""

    resize_every_s: float = Field(default=60, gt=0)
    """Seconds between checks for room to grow while a run has fewer than its most workers; growing costs a restart."""

    cpus_per_worker: Cpus = 1
    """CPUs that Ray reserves for one worker."""

    gpus_per_worker: float = Field(default=0, ge=0)
    """GPUs that Ray reserves for one worker: 1, or 0 to train on CPUs. To use more GPUs, raise `workers`."""

    accelerator_type: str | None = None
    """Ray's name of the GPU to ask for, such as "H100"; None: any."""

    labels: Labels = Field(default_factory=dict)
    """Labels of the nodes that workers may run on. A fixed number of workers must be up at once, so on-demand nodes
    suit a long training run."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO: 1 shards optimizer state, 2 also gradients, 3 also parameters."""

    offload_optimizer: bool = False
    """Keep optimizer state in CPU memory and update it there (ZeRO 2 and 3)."""

    offload_parameters: bool = False
    """Also keep each worker's part of the weights in CPU memory until a layer needs them (ZeRO 3)."""

    activation_checkpointing: bool = False
    """Keep only the input of each layer for the backward pass and recompute the rest: a third more arithmetic for a
    tenth of the activations."""

    micro_batch_tokens: int = Field(default=2048, ge=1)
    """Tokens per forward pass of one worker, whole examples laid end to end; a longer example goes alone. Gradients
    accumulate until the recipe's batch is complete."""

    attention: Literal["auto", "flash_attention_2", "sdpa"] = "auto"
    """auto: flash-attention on GPUs in half precision if it is installed, else PyTorch's own kernels (sdpa)."""

    kernels: Literal["auto", "plain"] = "auto"
    """auto: Liger's kernels on GPUs if they are installed and support the model family; plain: the model's own."""

    checkpoint_every_steps: int = Field(default=100, ge=1)
    """Optimizer steps between two checkpoints."""

    checkpoint_every_minutes: float | None = Field(default=15, gt=0)
    """A checkpoint also begins after this time, whichever comes first; None: by steps alone."""

    keep_checkpoints: int = Field(default=2, ge=1)
    """Complete checkpoints that an attempt keeps: the last one, and earlier ones in case it is damaged."""

    max_failures: int = Field(default=3, ge=0)
    """Worker failures after which Ray Train gives up; until then it restarts from the last checkpoint."""

    max_preemption_failures: int | None = Field(default=None, ge=0)
    """Failures allowed on nodes that Ray was told to drain, which count separately; None: any number."""

    give_up_waiting_minutes: GiveUpAfter | None = None
    """The stage fails if its workers are not up for this long: no such node came, all are busy, or a
    constructor does not return. None: wait, and log what for every 30 s."""

    track: Literal["online", "offline"] | None = None
    """Report every step to Weights & Biases (extra `track`). "online" takes the address, key and project from its usual
    environment variables; "offline" writes to `checkpoints/<attempt>/wandb` of the model's stage, for `wandb sync`
    before `jobs.gc`. If reporting fails, there is a warning and training continues."""

    def packages(self) -> Sequence[Package]:
        """Return the packages that the placement names; "auto" works without them."""
        flash = [FLASH] if self.attention == "flash_attention_2" else []
        return [*flash, WANDB] if self.track is not None else flash

    @model_validator(mode="after")
    def _a_worker_has_one_gpu_or_none(self) -> Self:
        gpus = self.gpus_per_worker
        if gpus not in (0, 1):
            least, most = (round(workers * max(gpus, 1)) for workers in self.least_and_most)
            raise ValueError(
                f"gpus_per_worker is {gpus:g} and workers is {self.workers}, but a worker trains on a whole GPU or on "
                f"CPUs; set gpus_per_worker to 1 and workers to {[least, most] if most > least else most}, or "
                "gpus_per_worker to 0"
            )
        return self

    @model_validator(mode="after")
    def _attention_has_its_gpu(self) -> Self:
        if self.attention == "flash_attention_2" and not self.gpus_per_worker:
            raise ValueError(
                "attention is flash_attention_2 but gpus_per_worker is 0; set it to 1, or attention to sdpa"
            )
        return self

    @model_validator(mode="after")
    def _least_comes_first(self) -> Self:
        least, most = self.least_and_most
        if least > most:
            raise ValueError(f"workers is [{least}, {most}], but the minimum comes first; set it to [{most}, {least}]")
        return self

    @property
    def least_and_most(self) -> tuple[int, int]:
        """Minimum and maximum number of workers."""
        return self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)

    @model_validator(mode="after")
    def _offload_is_possible(self) -> Self:
        if self.offload_optimizer and self.zero_stage < 2:
            raise ValueError(
                f"offload_optimizer is set and zero_stage is {self.zero_stage}, but DeepSpeed offloads from stage 2 "
                "on; set zero_stage to 2 or 3, or offload_optimizer to false"
            )
        if self.offload_parameters and not (self.zero_stage == 3 and self.offload_optimizer):
            raise ValueError(
                f"offload_parameters is set, zero_stage is {self.zero_stage} and offload_optimizer "
                f"{str(self.offload_optimizer).lower()}; set zero_stage to 3 and offload_optimizer to true, since the "
                "optimizer is four times as large as the weights"
            )
        return self

    def needs(self) -> dict[str, float]:
        """Return the resources that must be free at once: those of the fewest workers."""
        least, _ = self.least_and_most
        return {"CPU": least * self.cpus_per_worker, "GPU": least * self.gpus_per_worker}

    def failure_arguments(self) -> dict[str, Any]:
        """Return the arguments of `ray.train.FailureConfig`."""
        preemptions = -1 if self.max_preemption_failures is None else self.max_preemption_failures
        return {"max_failures": self.max_failures, "max_preemption_failures": preemptions}

    def need(self) -> Need:
        """Return the resources that the training waits for before it can work."""
        each = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}
        return Need.of(self.least_and_most[0], each, self.labels, self.accelerator_type)

    @property
    def most_workers(self) -> int:
        """Maximum number of workers."""
        return self.least_and_most[1]

    def most(self) -> dict[str, float]:
        """Return the resources of the run at its largest."""
        return {"CPU": self.most_workers * self.cpus_per_worker, "GPU": self.most_workers * self.gpus_per_worker}

    def scaling_arguments(self) -> dict[str, Any]:
        """Return the arguments of `ray.train.ScalingConfig` for these workers."""
        resources = {"CPU": self.cpus_per_worker} | ({"GPU": self.gpus_per_worker} if self.gpus_per_worker else {})
        return {
            "num_workers": self.workers,
            "elastic_resize_monitor_interval_s": self.resize_every_s,
            "use_gpu": self.gpus_per_worker > 0,
            "resources_per_worker": resources,
            "accelerator_type": self.accelerator_type,
            "label_selector": self.labels or None,
        }
