"""Where work runs: replicas, CPUs, GPUs, workers, as settings and as Ray's arguments. Never hashed."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from humpback_ray.config import Config
from humpback_ray.needs import Need
from humpback_ray.packages import FLASH, WANDB, Package


def _keep(name: str, value: str) -> str:
    del name
    return value


@dataclass(frozen=True)
class Resources:
    """What one actor was given; an engine sizes its threads, device and batches by it."""

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
    """Called with a name and a value that an actor has measured: returns the value that all actors of the stage use,
    the first that one of them came with."""

    @property
    def tensor_parallel(self) -> int:
        """Over how many GPUs each layer is split."""
        return max(1, int(self.gpus)) // self.pipeline_parallel

    @property
    def gpu_memory_share(self) -> float:
        """Share of each of its GPUs' memory that an engine may take; of a part of a GPU, that part's share."""
        return self.memory_share * min(1, self.gpus)


GiveUpAfter = Annotated[float, Field(gt=0)]
"""Minutes."""

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
    """The pool grows up to this many actors while shards wait, as far as the cluster has or gets room, and shrinks when
    none wait any more; None: `min_replicas`."""

    cpus_per_replica: float = Field(default=1, gt=0)
    """CPUs that Ray reserves for one actor."""

    gpus_per_replica: float = Field(default=0, ge=0)
    """GPUs of one node that one actor gets: a part of one (0.5: two actors share it), or whole ones, over which an
    engine splits its model."""

    pipeline_parallel: int = Field(default=1, ge=1)
    """Parts of consecutive layers that vLLM cuts the model into, for GPUs without a fast link; it splits each layer of
    a part over gpus_per_replica / pipeline_parallel GPUs (tensor parallelism)."""

    memory_share: float = Field(default=0.9, gt=0, le=1)
    """Share of the memory of its GPUs, or of its part of a GPU, that vLLM takes for weights, keys and values."""

    cache_bytes: int | None = Field(default=None, gt=0)
    """Memory for keys and values of one vLLM replica, per GPU; None: what `memory_share` leaves, on a CPU 2 GiB. Must
    be set where replicas share a GPU: vLLM measures what the whole GPU has left, so that of two that start together
    one finds too little."""

    max_num_seqs: int | None = Field(default=None, ge=1)
    """Requests that vLLM works on in one step; None: 1,024 on GPUs of 70 GiB and more that are no A100, else 256."""

    max_num_batched_tokens: int | None = Field(default=None, ge=1)
    """Tokens that vLLM reads and writes in one step; None: 16,384 and 8,192 likewise."""

    accelerator_type: str | None = None
    """Ray's name of the GPU to ask for, such as "H100"; None: any."""

    labels: Labels = Field(default_factory=dict)
    """Labels of the nodes that actors may run on, to choose spot or on-demand, or a zone; {}: any node."""

    batch_rows: int = Field(default=128, ge=1)
    """Requests that the transformers engine has in work at once."""

    batch_tokens: int = Field(default=1 << 16, ge=1)
    """Tokens, prompts and replies with their padding, that it holds at once; halved where memory runs out."""

    shards_in_flight: int = Field(default=2, ge=1)
    """Shards that one actor works on at once, so that its engine never drains between two."""

    rows_per_shard: int = Field(default=2000, ge=1)
    """Rows of one shard of the previous stage's table; fixed by the first submission's plan."""

    max_attempts: int = Field(default=3, ge=1)
    """Attempts at one shard within a submission, lost nodes not counted; then it runs alone, and is halved until the
    rows are found that no worker survives. They are quarantined."""

    max_quarantined_share: float = Field(default=0.05, ge=0, le=1)
    """A shard that loses a larger share of its rows, and more than three, stops the stage: it is not the rows then."""

    limit_factor: float = Field(default=10, gt=1)
    """A shard may take this many times the median time per row (of files: per byte) of those that have ended; then its
    process is ended and the attempt has failed."""

    limit_floor_s: float = Field(default=600, gt=0)
    """A shard always has this long, a part of one that runs alone a tenth of it."""

    limit_unmeasured_s: float = Field(default=3600, gt=0)
    """How long a shard has while none has ended."""

    straggler_factor: float | None = Field(default=3, gt=1)
    """Once all open shards are with actors, one that takes this many times as long as the median says, and a tenth of
    `limit_floor_s`, is started once more elsewhere; the first commit wins. None: off."""

    give_up_waiting_minutes: GiveUpAfter | None = None
    """The stage fails if no actor of the pool is up for this long: no such node came, all are busy, or a
    constructor does not end. None: wait, and say every 30 s for what."""

    @model_validator(mode="after")
    def _can_be_had(self) -> Self:
        gpus, parts = self.gpus_per_replica, self.pipeline_parallel
        if self.max_replicas is not None and self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}; raise the one or "
                "lower the other"
            )
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(
                f"gpus_per_replica is {gpus:g}, but actors share one GPU (say 0.5) or have whole ones; set it to "
                f"{int(gpus)} or {int(gpus) + 1}"
            )
        if parts > 1 and (gpus < parts or gpus % parts):
            raise ValueError(
                f"gpus_per_replica is {gpus:g} and pipeline_parallel {parts}, so the parts cannot have equally many "
                f"GPUs; set gpus_per_replica to a multiple of {parts} or pipeline_parallel to 1"
            )
        return self

    def needs(self) -> dict[str, float]:
        """Return what must be there at once: the pool at its start."""
        return {"CPU": self.min_replicas * self.cpus_per_replica, "GPU": self.min_replicas * self.gpus_per_replica}

    def most(self) -> dict[str, float]:
        """Return what the pool holds at its largest."""
        return {"CPU": self.most_replicas * self.cpus_per_replica, "GPU": self.most_replicas * self.gpus_per_replica}

    @property
    def most_replicas(self) -> int:
        """Actors that the pool has at most."""
        return max(self.min_replicas, self.max_replicas or 0)

    @property
    def resources(self) -> Resources:
        """What one actor of the pool gets."""
        return Resources(
            self.cpus_per_replica, self.gpus_per_replica, self.batch_rows, self.batch_tokens, self.pipeline_parallel,
            self.memory_share, self.cache_bytes, self.max_num_seqs, self.max_num_batched_tokens,
        )  # fmt: skip

    def need(self) -> Need:
        """Return what the pool waits for before it can work."""
        each = {"CPU": self.cpus_per_replica, "GPU": self.gpus_per_replica}
        return Need.of(self.min_replicas, each, self.labels, self.accelerator_type)

    @property
    def most_shards_held(self) -> int:
        """Shards that the actors of the pool have at most, at work or next."""
        return self.most_replicas * (self.shards_in_flight + 1)

    def for_shards(self, count: int) -> "PoolPlacement":
        """Return the placement of a pool that gets `count` shards: no more actors than shards."""
        least, most = min(self.min_replicas, count), min(self.most_replicas, count)
        return self.model_copy(update={"min_replicas": least, "max_replicas": most})

    def actor_arguments(self, avoid_node: str | None = None) -> dict[str, Any]:
        """Return the options of one such actor outside of a pool, on another node than `avoid_node` if there is one."""
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
    """One Ray task that does a whole global step (duplicates, selection)."""

    cpus: float = Field(default=1, gt=0)
    """CPUs to reserve for the task."""

    memory_bytes: int | None = Field(default=None, gt=0)
    """Memory to reserve for the task; None: none reserved."""
    labels: Labels = Field(default_factory=dict)
    """Labels of the nodes that the task may run on."""

    give_up_waiting_minutes: GiveUpAfter | None = None
    """The stage fails if the task could not start for this long: no such node came, or all are
    busy. None: wait, and say every 30 s for what."""

    def need(self) -> Need:
        """Return what the task waits for before it can start."""
        return Need.of(1, {"CPU": self.cpus, "memory": self.memory_bytes}, self.labels, None)

    def needs(self) -> dict[str, float]:
        """Return what must be there at once."""
        return {"CPU": self.cpus}

    def most(self) -> dict[str, float]:
        """Return what it holds."""
        return self.needs()

    def remote_arguments(self) -> dict[str, Any]:
        """Return the options of the Ray task.

        Ray retries nothing: what its memory monitor kills it would retry forever. `Stage.once` tries again.
        """
        return {
            "num_cpus": self.cpus, "memory": self.memory_bytes, "max_retries": 0, "label_selector": self.labels or None
        }  # fmt: skip


Workers = Annotated[int, Field(ge=1)]


class TrainPlacement(Config):
    """Workers of one fine-tune, and how DeepSpeed spreads the model over them."""

    workers: Workers | tuple[Workers, Workers] = 1
    """How many; or [least, most]: then a lost node leaves the run smaller and a new one lets it grow, each time from
    the newest checkpoint."""

    resize_every_s: float = Field(default=60, gt=0)
    """How often a run with fewer than its most workers looks for room for more; growing costs a restart."""

    cpus_per_worker: float = Field(default=1, gt=0)
    """CPUs that Ray reserves for one worker."""

    gpus_per_worker: float = Field(default=0, ge=0)
    """GPUs that Ray reserves for one worker; 0: it trains on CPUs."""

    accelerator_type: str | None = None
    """Ray's name of the GPU to ask for, such as "H100"; None: any."""

    labels: Labels = Field(default_factory=dict)
    """Labels of the nodes that workers may run on; a fixed number of workers is wanted at once, so that on-demand nodes
    suit a long training."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """DeepSpeed ZeRO: 1 shards optimizer state, 2 also gradients, 3 also parameters."""

    offload_optimizer: bool = False
    """Keep optimizer state in CPU memory, and update there (ZeRO 2 and 3)."""

    offload_parameters: bool = False
    """Keep each worker's part of the weights in CPU memory, too, until a layer needs them (ZeRO 3)."""

    activation_checkpointing: bool = False
    """Keep only the input of each layer for the backward pass and compute the rest again: a third more arithmetic for
    a tenth of the activations."""

    micro_batch_tokens: int = Field(default=2048, ge=1)
    """Tokens per forward pass of one worker, whole examples laid end to end; a longer example goes alone. What is
    missing to the recipe's batch is accumulated."""

    attention: Literal["auto", "flash_attention_2", "sdpa"] = "auto"
    """auto: flash-attention on GPUs in half precision where it is installed, else PyTorch's own kernels (sdpa)."""

    kernels: Literal["auto", "plain"] = "auto"
    """auto: Liger's kernels on GPUs where they are installed and made for the family; plain: the model's own."""

    checkpoint_every_steps: int = Field(default=100, ge=1)
    """Optimizer steps between two checkpoints."""

    checkpoint_every_minutes: float | None = Field(default=15, gt=0)
    """A checkpoint is begun after this time, too, whichever comes first; None: by steps alone."""

    keep_checkpoints: int = Field(default=2, ge=1)
    """Complete checkpoints that an attempt keeps: the last one and, should it be damaged, those before."""

    max_failures: int = Field(default=3, ge=0)
    """Worker failures after which Ray Train gives up; it restarts from the last checkpoint until then."""

    max_preemption_failures: int | None = Field(default=None, ge=0)
    """Failures allowed on nodes that Ray was told to drain, which count apart; None: any number."""

    give_up_waiting_minutes: GiveUpAfter | None = None
    """The stage fails if its workers are not up for this long: no such node came, all are busy, or a
    constructor does not end. None: wait, and say every 30 s for what."""

    track: Literal["online", "offline"] | None = None
    """Tell Weights & Biases (extra `track`) of every step: "online" with the address, key and project of its own
    environment variables; "offline" into `checkpoints/<attempt>/wandb` of the model's stage, for `wandb sync` before
    `jobs.gc`. Where that fails there is a warning, and training goes on."""

    def packages(self) -> Sequence[Package]:
        """Return what the placement asks for by name; what is "auto" does without."""
        flash = [FLASH] if self.attention == "flash_attention_2" else []
        return [*flash, WANDB] if self.track is not None else flash

    @model_validator(mode="after")
    def _attention_has_its_gpu(self) -> Self:
        if self.attention == "flash_attention_2" and not self.gpus_per_worker:
            raise ValueError("attention is flash_attention_2 but gpus_per_worker 0; set it to 1, or attention to sdpa")
        return self

    @model_validator(mode="after")
    def _least_comes_first(self) -> Self:
        least, most = self.least_and_most
        if least > most:
            raise ValueError(f"workers is [{least}, {most}], but the least comes first; set it to [{most}, {least}]")
        return self

    @property
    def least_and_most(self) -> tuple[int, int]:
        """Workers that the run can go on with, and that it has use for."""
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
                f"{str(self.offload_optimizer).lower()}; weights are offloaded with zero_stage 3 and the optimizer, "
                "which is four times as large, before them"
            )
        return self

    def needs(self) -> dict[str, float]:
        """Return what must be there at once: the least workers."""
        least, _ = self.least_and_most
        return {"CPU": least * self.cpus_per_worker, "GPU": least * self.gpus_per_worker}

    def failure_arguments(self) -> dict[str, Any]:
        """Return the arguments of `ray.train.FailureConfig`."""
        preemptions = -1 if self.max_preemption_failures is None else self.max_preemption_failures
        return {"max_failures": self.max_failures, "max_preemption_failures": preemptions}

    def need(self) -> Need:
        """Return what the training waits for before it can work."""
        each = {"CPU": self.cpus_per_worker, "GPU": self.gpus_per_worker}
        return Need.of(self.least_and_most[0], each, self.labels, self.accelerator_type)

    @property
    def most_workers(self) -> int:
        """Workers that the run has at most."""
        return self.least_and_most[1]

    def most(self) -> dict[str, float]:
        """Return what it holds at its largest."""
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
