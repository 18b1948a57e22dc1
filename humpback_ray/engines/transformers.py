"""The engine that runs anywhere: a transformers model on CPU or GPU, fed by a scheduler of our own (decoding.py).

Greedy replies equal those of plain one-by-one `generate`. Sampled replies depend on their own seed (sampling.py), not
on the rest of the batch. Both hold up to floating-point noise. Continuations are scored exactly, however many tokens
they have.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, cast

from pydantic import Field

from humpback_ray import storage
from humpback_ray.config import Config
from humpback_ray.engines.attention import avoid_cudnn, cap_scores, share_heads
from humpback_ray.engines.base import Completion, Engine
from humpback_ray.engines.batching import BatchedEngine, Ended, Job, OutOfMemory
from humpback_ray.engines.decoding import BatchRow, Decoder
from humpback_ray.engines.graphs import Graphs, cuda_graphs
from humpback_ray.engines.tokens import Reader, Reading
from humpback_ray.engines.types import CausalModel
from humpback_ray.needs import Resources
from humpback_ray.packages import TORCH, TRANSFORMERS, Package
from humpback_ray.prompts.tokenizer import Tokenizer
from humpback_ray.stages.processes import Dead

logger = logging.getLogger(__name__)


class TransformersEngine(Config):
    """A transformers model; needs no extra and no GPU."""

    kind: Literal["transformers"] = "transformers"

    dtype: Literal["auto", "checkpoint", "float32", "bfloat16"] = "auto"
    """Number format of weights and arithmetic. "auto": bfloat16 on GPUs of compute capability 8.0 and above, float32 on
    older ones; on CPUs the faster of the two, which the first actor of a stage measures for all. "checkpoint": the
    format the model was saved in."""

    max_context_tokens: int | None = Field(default=None, ge=2)
    """Most tokens of prompt and reply together. None: the limit in the model's configuration."""

    eager: bool = False
    """Decode without CUDA graphs, which are used on one GPU if their results agree: for finding faults. In the recipe
    as for vLLM, since other kernels round differently."""

    def packages(self) -> Sequence[Package]:
        """Return the packages that `build` imports."""
        return (TORCH, TRANSFORMERS)

    def build(self, directory: "str | storage.Directory", resources: Resources) -> Engine:
        """Load the model (safetensors only, no custom code) and start the engine's thread."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # an actor has no terminal
        avoid_cudnn()
        torch.set_num_threads(max(1, int(resources.cpus)))
        path = storage.local_directory(directory)
        tokenizer = AutoTokenizer.from_pretrained(path)
        # One GPU, or a part of one, holds the whole model; over several, accelerate spreads its layers.
        device = "auto" if resources.gpus > 1 else "cuda" if resources.gpus else None
        name = self.dtype
        if name == "auto":
            name = resources.agree("dtype", fastest_dtype(device or "cpu"))
        dtype: str | torch.dtype = "auto" if name == "checkpoint" else getattr(torch, name)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True, device_map=device)
        causal = cast(CausalModel, model.eval())
        cap_scores(causal)
        share_heads(causal)
        graphs = cuda_graphs(causal, resources.batch_rows, self.eager)
        return BatchedEngine(LoadedModel(causal, tokenizer, self.max_context_tokens, resources, graphs))


def fastest_dtype(device: str) -> str:
    """Return "bfloat16" if a device multiplies matrices faster in it than in "float32", else the latter.

    A CPU is measured. A GPU is not, since it multiplies small matrices in less time than a kernel launch takes: from
    compute capability 8.0 (Ampere) on, it is faster in bfloat16.

    Args:
        device: "cpu", or anything else for this process's first GPU.
    """
    import torch

    if device != "cpu":
        return "bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float32"
    best_s: dict[str, float] = {}
    for name in ("float32", "bfloat16"):
        dtype: torch.dtype = getattr(torch, name)
        activations, weights = torch.ones(64, 1024, dtype=dtype), torch.ones(1024, 4096, dtype=dtype)
        tries = []
        for _ in range(6):
            started = time.perf_counter()
            torch.mm(activations, weights)
            tries.append(time.perf_counter() - started)
        best_s[name] = min(tries)
    best = min(best_s, key=lambda name: best_s[name])
    times = ", ".join(f"{name} {1e3 * taken:.2f} ms" for name, taken in best_s.items())
    logger.info("the engine computes in %s, which multiplies fastest here: %s", best, times)
    return best


class LoadedModel:
    """A model with its tokenizer, as the queue's thread uses it: text to tokens, tokens to completions."""

    def __init__(
        self,
        model: CausalModel,
        tokenizer: Tokenizer,
        max_context_tokens: int | None,
        resources: Resources,
        graphs: Graphs | None,
    ) -> None:
        self.most_rows = resources.batch_rows
        own = getattr(model.config, "max_position_embeddings", None)
        context_tokens = min(limit for limit in (own, max_context_tokens, 1 << 30) if limit)
        self.reader = Reader(tokenizer, model.generation_config.eos_token_id, context_tokens)
        ends = self.reader.end_ids
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else [*ends, 0][0]
        self.decoder = Decoder(model, ends, pad_id, resources.batch_rows, resources.batch_tokens, graphs)

    def accept(self, job: Job) -> Completion | None:
        """Tokenize a job; return its completion if that needs no model."""
        reading = self.reader.read(job.request)
        if isinstance(reading, Completion):
            return reading
        job.ids, job.tails = reading
        return None

    def busy(self) -> bool:
        """Tell whether the model is writing replies."""
        return bool(self.decoder.rows)

    def fitting(self, jobs: Sequence[Job]) -> int:
        """Return how many of the jobs there is room for; jobs that are only scored end at once and always fit."""
        return len(jobs) if jobs[0].tails else self.decoder.fitting(jobs)

    def start(self, jobs: Sequence[Job]) -> Ended:
        """Score jobs, or read their prompts and write the first token of each reply."""
        with _inference():
            return self._score(jobs) if jobs[0].tails else self._replies(self.decoder.join(jobs))

    def step(self) -> Ended:
        """Write one token of every reply."""
        with _inference():
            return self._replies(self.decoder.step())

    def give_up(self, out_of_memory: bool) -> None:
        """Drop the replies in progress; if memory ran out, hold fewer tokens from now on."""
        if out_of_memory:
            self.decoder.shrink()
        self.decoder.clear()

    def _replies(self, rows: Sequence[BatchRow]) -> Ended:
        return [(row.job, self.reader.reply(len(row.job.ids), row.written)) for row in rows]

    def _score(self, jobs: Sequence[Job]) -> Ended:
        """Sum log p of each tail's tokens; tails that differ only in their last token share one sequence."""
        wanted: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for job in jobs:
            for tail in job.tails:
                places = wanted.setdefault((*job.ids, *tail[:-1]), [])
                places += [(place - len(tail), token) for place, token in enumerate(tail)]
        found = {sequence: iter(values) for sequence, values in self.decoder.logprobs(wanted).items()}
        ended = []
        for job in jobs:
            sums = [sum(next(found[(*job.ids, *tail[:-1])]) for _ in tail) for tail in job.tails]
            ended.append((job, Reader.scored(Reading(job.ids, job.tails), sums)))
        return ended


@contextmanager
def _inference() -> Iterator[None]:
    """Run a block without gradients, and translate torch's errors into the queue's.

    Raises:
        OutOfMemory: memory ran out; fewer tokens may fit.
        Dead: the GPU failed in another way, and this process cannot use it any more.
    """
    import torch

    with torch.inference_mode():
        try:
            yield
        except torch.AcceleratorError as error:
            raise Dead(f"the GPU has failed: {error}") from error
        except RuntimeError as error:  # the CPU's allocator has no error class of its own
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise OutOfMemory(str(error)) from None
            raise
