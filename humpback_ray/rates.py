"""Assumptions of a plan: speed and price of machines, how well they are used, and what a run will find.

Every figure is a field of the configuration's `plan` section and names its source. Nothing here is hashed, and no stage
reads it. A pilot's measurements replace the assumptions that it can measure.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from humpback_ray.config import Config

GIB = 1 << 30
GB = 10**9
TERA = 10**12

Share = Annotated[float, Field(ge=0, le=1)]
Chars = Annotated[float, Field(ge=0)]


class Machine(Config):
    """One GPU and its share of the node around it; for `cpu`, one core."""

    memory_bytes: int = Field(gt=0)
    """Memory that torch can allocate on an empty device."""
    peak_flops: float = Field(gt=0)
    """Peak FLOP/s of dense bfloat16 matrix products, as the vendor states it."""
    memory_bytes_per_s: float = Field(gt=0)
    """Bandwidth of the device's own memory."""
    link_bytes_per_s: float = Field(gt=0)
    """Bandwidth from one GPU to the others of its node, one direction."""
    network_bytes_per_s: float = Field(gt=0)
    """Bandwidth of a whole node to other nodes, one direction."""
    host_link_bytes_per_s: float = Field(gt=0)
    """Bandwidth from a GPU to its host's memory, one direction."""
    host_bytes: int = Field(gt=0)
    """Host memory per GPU."""
    per_node: int = Field(ge=1)
    """GPUs per node."""
    dollars_per_hour: float = Field(ge=0)
    """Price of one GPU with its share of the node."""


MACHINES: Mapping[str, Machine] = {
    "A100-80G": Machine(
        memory_bytes=79 * GIB, peak_flops=312 * TERA, memory_bytes_per_s=2.0 * TERA, link_bytes_per_s=300 * GB,
        network_bytes_per_s=50 * GB, host_link_bytes_per_s=25 * GB, host_bytes=144 * GIB, per_node=8,
        dollars_per_hour=3.4,
    ),
    "H100-80G": Machine(
        memory_bytes=79 * GIB, peak_flops=989 * TERA, memory_bytes_per_s=3.35 * TERA, link_bytes_per_s=450 * GB,
        network_bytes_per_s=400 * GB, host_link_bytes_per_s=50 * GB, host_bytes=256 * GIB, per_node=8,
        dollars_per_hour=6.9,
    ),
    "H200": Machine(
        memory_bytes=140 * GIB, peak_flops=989 * TERA, memory_bytes_per_s=4.8 * TERA, link_bytes_per_s=450 * GB,
        network_bytes_per_s=400 * GB, host_link_bytes_per_s=50 * GB, host_bytes=256 * GIB, per_node=8,
        dollars_per_hour=7.9,
    ),
    "L40S": Machine(
        memory_bytes=44 * GIB, peak_flops=362 * TERA, memory_bytes_per_s=0.86 * TERA, link_bytes_per_s=25 * GB,
        network_bytes_per_s=12.5 * GB, host_link_bytes_per_s=25 * GB, host_bytes=96 * GIB, per_node=4,
        dollars_per_hour=2.6,
    ),
    "cpu": Machine(
        memory_bytes=4 * GIB, peak_flops=0.1 * TERA, memory_bytes_per_s=10 * GB, link_bytes_per_s=5 * GB,
        network_bytes_per_s=1 * GB, host_link_bytes_per_s=10 * GB, host_bytes=4 * GIB, per_node=16,
        dollars_per_hour=0.05,
    ),
}  # fmt: skip
"""Vendors' data sheets (SXM modules); nodes as on AWS: p4de (400 Gb/s), p5 and p5en (3,200 Gb/s), g6e.12xlarge
(100 Gb/s, PCIe), and a core of a general-purpose instance. Prices are assumed, about as high as on-demand prices."""


class PlanConfig(Config):
    """Assumptions of `jobs.plan`, and the prices for `max_dollars`."""

    size: str | None = None
    """The base model's row in `train/sizes.py`; None: read its config.json."""

    machine: str = "H100-80G"
    """Row of `machines` for placements with GPUs; those without GPUs use `cpu`."""

    machines: dict[str, Machine] = Field(default_factory=dict)
    """Your own machines, or other figures for known ones: `{H200: {dollars_per_hour: 3.5}}`."""

    usable_share: float = Field(default=0.92, gt=0, le=1)
    """Usable share of a GPU's memory: CUDA, NCCL and fragmentation take the rest. On an H100, PyTorch reserved 3 % more
    than the peak with expandable segments, which training workers use, and 12 % more without."""

    training_mfu: float = Field(default=0.45, gt=0, le=1)
    """Share of peak FLOP/s that matrix products reach in a long enough micro-batch. Published: 0.40 to 0.57 on H100s
    (LLM Foundry's table), 0.39 to 0.46 on A800s with DeepSpeed and transformers, 0.48 on A100s (Touvron et al. 2023,
    arXiv:2302.13971, section 2.4)."""

    traffic_share: float = Field(default=0.7, gt=0, le=1)
    """Share of link and network bandwidth that collectives reach, besides `message_s`. Together they meet published
    times of nccl-tests for 128 MB on 2, 4 and 8 p5 nodes within a factor of 1.4."""

    overlap: float = Field(default=0.5, ge=0, le=1)
    """Share of the shorter of arithmetic and traffic that the longer one hides. 0.5 to 0.6 by LLM Foundry's 70B on 32
    and 64 H100s."""

    message_s: float = Field(default=50e-6, ge=0)
    """Latency of a collective, however short, in seconds per doubling of the workers. See `traffic_share`."""

    host_updates_per_s: float = Field(default=0.5e9, gt=0)
    """Parameters that a GPU's share of the host updates per second if the optimizer is offloaded; needs several
    `cpus_per_worker`. An eighth of the 3.9e9 of a host with 48 cores (Ren et al. 2021, arXiv:2101.06840, table 4)."""

    start_s: float = Field(default=120.0, ge=0)
    """Seconds until a stage's machines are up, their containers run and their libraries are imported. Assumed."""

    engine_start_s: float = Field(default=90.0, ge=0)
    """Seconds that vLLM compiles, measures its memory and captures CUDA graphs after reading the weights. Assumed."""

    storage_bytes_per_s: float = Field(default=0.3e9, gt=0)
    """Bytes per second between one process and object storage. A process makes four requests at once, and S3 gives each
    about 85 MB/s (AWS's performance guidelines)."""

    node_storage_bytes_per_s: float = Field(default=2.5e9, gt=0)
    """Bytes per second between a node and object storage, all its processes together. Assumed."""

    disk_bytes_per_s: float = Field(default=2e9, gt=0)
    """Bytes per second that a node reads from or writes to its disk or a shared file system. Assumed."""

    host_copy_bytes_per_s: float = Field(default=4e9, gt=0)
    """Bytes per second that a worker copies from its GPU to ordinary host memory: a checkpoint's copy stops training
    for that long. Assumed."""

    prefill_mfu: float = Field(default=0.4, gt=0, le=1)
    """Share of peak FLOP/s that prefill (reading prompts) reaches. Assumed."""

    decode_share: float = Field(default=0.5, gt=0, le=1)
    """Share of memory bandwidth that decoding (writing replies) reaches. Assumed; see docs/performance.md for published
    speeds of vLLM."""

    launch_s: float = Field(default=1e-3, ge=0)
    """Seconds per layer and step that the transformers engine takes to start its kernels from Python, however few the
    rows. Measured on an H100: 16 ms for 16 layers."""

    pages: int = Field(default=2_000_000, ge=0)
    """Documents in the corpus. Assumed; the paper names only the segments."""

    pages_per_s: float = Field(default=40.0, gt=0)
    """Documents that one core cuts into segments per second. Assumed."""

    segments: int = Field(default=502_133, ge=0)
    """Kept segments: an instruction is predicted and rated for each. The paper's (Li et al. 2023, table 1)."""

    usable_candidates: float = Field(default=0.95, ge=0, le=1)
    """Share of the predicted instructions that pass the filters and are rated. Assumed."""

    kept_shares: tuple[Share, ...] = (0.083, 0.083)
    """Share of the rated candidates that are trained on, by round; the last value applies to further rounds. The
    paper's for a score of 4.5 in round 2 (table 1)."""

    seed_pairs: int = Field(default=3200, ge=0)
    """Number of seed pairs; the paper's."""

    seed_chars: tuple[Chars, Chars] = (1220.0, 880.0)
    """Characters of a seed pair, instruction and response together, mean and deviation; the paper's (table 1)."""

    kept_chars: tuple[Chars, Chars] = (1778.0, 640.0)
    """Characters of a kept pair, likewise; the paper's for a score of 4.5."""

    instruction_chars: float = Field(default=352.0, gt=0)
    """Characters of a predicted instruction; the paper's, over all candidates."""

    response_chars: float = Field(default=1722.0, gt=0)
    """Characters of a segment; the paper's, over all candidates."""

    prompts: int = Field(default=805, ge=0)
    """Test prompts that every model answers; AlpacaEval's."""

    chars_per_token: float = Field(default=4.0, gt=0)
    """Characters per token of English, with a vocabulary of 32,000 or more. Assumed; makes the paper's 32 examples
    14,000 tokens."""

    rating_prompt_tokens: int = Field(default=400, ge=0)
    """Tokens of a rating prompt besides the pair. Measured with the default prompt."""

    rating_reply_tokens: int = Field(default=150, ge=1)
    """Tokens of a judge's reply. Assumed."""

    answer_tokens: int = Field(default=400, ge=1)
    """Tokens of a model's answer to a test prompt. Assumed."""

    @field_validator("machines", mode="before")
    @classmethod
    def _known_ones_are_completed(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = {name: row.model_dump() for name, row in MACHINES.items()}
        return {name: {**known.get(name, {}), **row} if isinstance(row, dict) else row for name, row in value.items()}

    @model_validator(mode="after")
    def _the_machine_is_known(self) -> Self:
        if self.machine not in self.known:
            raise ValueError(
                f"machine is {self.machine}, which is not among {', '.join(self.known)}; add it to plan.machines"
            )
        if not self.kept_shares:
            raise ValueError("kept_shares is empty; name at least the share that the first round keeps")
        return self

    @property
    def known(self) -> dict[str, Machine]:
        """All machines by name."""
        return {**MACHINES, **self.machines}

    def on(self, gpus: float) -> tuple[str, Machine]:
        """Return name and row of the machine for a placement with this many GPUs."""
        name = self.machine if gpus else "cpu"
        return name, self.known[name]

    def usable(self, machine: Machine) -> float:
        """Return the bytes of a GPU that tensors may take."""
        return machine.memory_bytes * self.usable_share

    def kept_share(self, round_number: int) -> float:
        """Return the share that a round, counted from 1, keeps."""
        return self.kept_shares[min(round_number, len(self.kept_shares)) - 1]

    def dollars_per_s(self, needs: Mapping[str, float]) -> float:
        """Return the cost of resources per second: GPUs with their hosts, or CPUs if there is no GPU."""
        gpus = needs.get("GPU", 0)
        _, machine = self.on(gpus)
        return (gpus or needs.get("CPU", 0)) * machine.dollars_per_hour / 3600
