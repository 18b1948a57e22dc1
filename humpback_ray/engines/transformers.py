"""The engine that runs anywhere: a transformers model on CPU or GPU, fed by a scheduler of our own (decoding.py).

Greedy replies equal those of plain one-by-one `generate`; sampled ones depend on their own seed (sampling.py) and not
on who shares the batch; both up to floating-point noise. Continuations are scored exactly, whatever their number of
tokens.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from pydantic import Field

from humpback_ray import storage
from humpback_ray.config import Config
from humpback_ray.engines.attention import avoid_cudnn, share_heads
from humpback_ray.engines.base import Completion, Engine
from humpback_ray.engines.batching import BatchedEngine, Ended, Job, OutOfMemory
from humpback_ray.engines.decoding import Decoder, Row
from humpback_ray.engines.tokens import Reader, Reading
from humpback_ray.packages import TORCH, TRANSFORMERS, Package
from humpback_ray.placement import Resources

logger = logging.getLogger(__name__)


class TransformersEngine(Config):
    """A transformers model: no extra to install, no GPU needed."""

    kind: Literal["transformers"] = "transformers"

    dtype: Literal["auto", "checkpoint", "float32", "bfloat16"] = "auto"
    """Number format of weights and arithmetic; "auto": bfloat16 on GPUs that have it, elsewhere float32 or bfloat16,
    whichever multiplies faster (tried when the engine starts); "checkpoint": the one the model was saved in."""

    max_context_tokens: int | None = Field(default=None, ge=2)
    """Prompt and reply that fit, in tokens; None: what the model's configuration says."""

    def packages(self) -> Sequence[Package]:
        """Return what its `build` imports."""
        return (TORCH, TRANSFORMERS)

    def build(self, directory: "str | storage.Directory", resources: Resources) -> Engine:
        """Load the model (safetensors only, no code of its own) and start the engine's thread."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # an actor has no terminal
        avoid_cudnn()
        torch.set_num_threads(max(1, int(resources.cpus)))
        path = storage.local_directory(directory)
        tokenizer = AutoTokenizer.from_pretrained(path)
        # One GPU, or a part of one, holds the model; accelerate spreads its layers over several.
        device = "auto" if resources.gpus > 1 else "cuda" if resources.gpus else None
        dtype: Any = {"auto": lambda: fastest_dtype(device or "cpu"), "checkpoint": lambda: "auto"}.get(
            self.dtype, lambda: getattr(torch, self.dtype)
        )()
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True, device_map=device)
        share_heads(model)
        return BatchedEngine(Model(model.eval(), tokenizer, self.max_context_tokens, resources))


def fastest_dtype(device: str) -> Any:
    """Return torch.bfloat16 where it multiplies matrices faster than torch.float32 on a device, else the latter.

    A GPU is not tried: it multiplies small matrices in less time than the launch takes.
    """
    import torch

    where = "cuda" if device == "auto" else device
    if where == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    seconds: dict[Any, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        activations, weights = (
            torch.ones(64, 1024, dtype=dtype, device=where),
            torch.ones(1024, 4096, dtype=dtype, device=where),
        )
        tries = []
        for _ in range(6):
            started = time.perf_counter()
            float((activations @ weights)[0, 0])  # reading a number waits for the device
            tries.append(time.perf_counter() - started)
        seconds[dtype] = min(tries)
    best = min(seconds, key=lambda dtype: seconds[dtype])
    logger.info("%s: %s", best, ", ".join(f"{dtype} {1e3 * taken:.2f} ms" for dtype, taken in seconds.items()))
    return best


class Model:
    """A model with its tokenizer, as the queue's thread uses it: texts to tokens, tokens to completions."""

    def __init__(self, model: Any, tokenizer: Any, max_context_tokens: int | None, resources: Resources) -> None:
        self.most_rows = resources.batch_rows
        own = getattr(model.config, "max_position_embeddings", None)
        context_tokens = min(limit for limit in (own, max_context_tokens, 1 << 30) if limit)
        self.reader = Reader(tokenizer, model.generation_config.eos_token_id, context_tokens)
        ends = self.reader.end_ids
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else [*ends, 0][0]
        self.decoder = Decoder(model, ends, pad_id, resources.batch_rows, resources.batch_tokens)

    def accept(self, job: Job) -> Completion | None:
        """Tokenise a job; answer it at once where no model is needed for that."""
        reading = self.reader.read(job.request)
        if isinstance(reading, Completion):
            return reading
        job.ids, job.tails = reading
        return None

    def busy(self) -> bool:
        """Tell whether replies are being written."""
        return bool(self.decoder.rows)

    def fitting(self, jobs: Sequence[Job]) -> int:
        """Return how many of these there is room for; jobs that are only scored leave at once and always fit."""
        return len(jobs) if jobs[0].tails else self.decoder.fitting(jobs)

    def start(self, jobs: Sequence[Job]) -> Ended:
        """Score jobs, or read their prompts and write their first tokens."""
        with _inference():
            return self._score(jobs) if jobs[0].tails else self._replies(self.decoder.join(jobs))

    def step(self) -> Ended:
        """Write one token of every reply."""
        with _inference():
            return self._replies(self.decoder.step())

    def give_up(self, out_of_memory: bool) -> list[Job]:
        """Drop what is being written and return it; where memory ran out, hold less from now on."""
        return self.decoder.shrink() if out_of_memory else self.decoder.give_up()

    def _replies(self, rows: Sequence[Row]) -> Ended:
        return [(row.job, self.reader.reply(len(row.job.ids), row.written)) for row in rows]

    def _score(self, jobs: Sequence[Job]) -> Ended:
        """Sum log p of every tail's tokens; tails that differ in their last token alone share one sequence."""
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
    """Run a block without gradients; what torch says of memory that ran out is said in the queue's words."""
    import torch

    with torch.inference_mode():
        try:
            yield
        except RuntimeError as error:  # the CPU's allocator raises no class of its own
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise OutOfMemory(str(error)) from None
            raise
