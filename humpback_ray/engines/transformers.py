"""The engine that runs anywhere: transformers' own `generate`, batched with left padding, on CPU or GPU.

Greedy replies equal those of plain one-by-one `generate`; sampled ones depend on their own seed (`sampling.py`) and
not on who shares the batch; both up to floating-point noise. Continuations are scored exactly, whatever their number
of tokens. Given up: a finished row keeps its place until its batch ends.
"""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from humpback_ray import storage
from humpback_ray.config import Config
from humpback_ray.engines.base import Completion, Engine
from humpback_ray.engines.batching import BatchedEngine, Job
from humpback_ray.engines.sampling import RowLimits, RowSampler
from humpback_ray.engines.tokens import Reader, Reading
from humpback_ray.placement import Resources


class TransformersEngine(Config):
    """transformers' `generate`: no extra to install, no GPU needed."""

    kind: Literal["transformers"] = "transformers"

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of weights and arithmetic; "auto": the one the checkpoint was saved in."""

    max_context_tokens: int | None = Field(default=None, ge=2)
    """Prompt and reply that fit, in tokens; None: what the model's configuration says."""

    def build(self, model_uri: str, resources: Resources) -> Engine:
        """Load the model (safetensors only, no code of its own) and start the engine's thread."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # an actor has no terminal
        torch.set_num_threads(max(1, int(resources.cpus)))
        path = storage.local_directory(model_uri)
        tokenizer = AutoTokenizer.from_pretrained(path)
        dtype = self.dtype if self.dtype == "auto" else getattr(torch, self.dtype)
        # One GPU, or a part of one, holds the model; accelerate spreads its layers over several.
        device = "auto" if resources.gpus > 1 else "cuda" if resources.gpus else None
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True, device_map=device)
        return BatchedEngine(
            Model(model.eval(), tokenizer, self.max_context_tokens, resources.batch_rows), resources.batch_rows
        )


class Model:
    """A causal language model with its tokenizer: tokenises jobs and runs batches of them."""

    def __init__(self, model: Any, tokenizer: Any, max_context_tokens: int | None, batch_rows: int) -> None:
        self.model, self.batch_rows = model, batch_rows
        own = getattr(model.config, "max_position_embeddings", None)
        context_tokens = min(limit for limit in (own, max_context_tokens, 1 << 30) if limit)
        self.reader = Reader(tokenizer, model.generation_config.eos_token_id, context_tokens)
        ends = self.reader.end_ids
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else [*ends, 0][0]
        self._forget_checkpoint_sampling()

    def _forget_checkpoint_sampling(self) -> None:
        """Replace the checkpoint's generation defaults: a request says all that there is to say."""
        from transformers import GenerationConfig

        self.model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=self.reader.end_ids or None, pad_token_id=self.pad_id
        )

    def accept(self, job: Job) -> Completion | None:
        """Tokenise a job; answer it at once where no model is needed for that."""
        reading = self.reader.read(job.request)
        if isinstance(reading, Completion):
            return reading
        job.ids, job.tails = reading
        return None

    def complete(self, batch: Sequence[Job]) -> list[Completion]:
        """Run a batch, all to generate or all to score."""
        return self._score(batch) if batch[0].tails else self._generate(batch)

    def _generate(self, batch: Sequence[Job]) -> list[Completion]:
        import torch

        requests, device = [job.request for job in batch], self.model.device
        ids_BT, mask_BT = self._pad([job.ids for job in batch])
        width = ids_BT.shape[1]
        with torch.inference_mode():
            out_BT = self.model.generate(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                max_new_tokens=max(request.max_new_tokens for request in requests),
                logits_processor=[RowSampler(requests, device)],
                stopping_criteria=[RowLimits(requests, width, device)],
            )
        written = zip(batch, out_BT[:, width:].tolist(), strict=True)
        return [self.reader.reply(len(job.ids), row, job.request.max_new_tokens) for job, row in written]

    def _score(self, batch: Sequence[Job]) -> list[Completion]:
        """Sum log p of every tail's tokens; tails that differ in their last token alone share one forward pass."""
        rows = list(dict.fromkeys((*job.ids, *tail[:-1]) for job in batch for tail in job.tails))
        keep = max(len(tail) for job in batch for tail in job.tails)
        scored: dict[tuple[int, ...], Any] = {}
        for start in range(0, len(rows), self.batch_rows):
            some = rows[start : start + self.batch_rows]
            scored.update(zip(some, self._last_logprobs(some, keep), strict=True))
        completions = []
        for job in batch:
            sums = []
            for tail in job.tails:
                logprobs_TV = scored[(*job.ids, *tail[:-1])][keep - len(tail) :]
                sums.append(sum(logprobs_TV[place, token].item() for place, token in enumerate(tail)))
            completions.append(Reader.scored(Reading(job.ids, job.tails), sums))
        return completions

    def _last_logprobs(self, rows: Sequence[Sequence[int]], keep: int) -> Any:
        """Return log p of the token after each of the last `keep` tokens of each row, float32 [rows, keep, V]."""
        import torch

        ids_BT, mask_BT = self._pad(rows)
        positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
        with torch.inference_mode():
            logits_BKV = self.model(ids_BT, mask_BT, positions_BT, use_cache=False, logits_to_keep=keep).logits
        return torch.log_softmax(logits_BKV[:, -keep:].float(), -1).cpu()

    def _pad(self, rows: Sequence[Sequence[int]]) -> tuple[Any, Any]:
        """Pad rows on the left; returns ids and attention mask, int64 [rows, longest]."""
        import torch

        width = max(map(len, rows))
        ids = [[self.pad_id] * (width - len(row)) + list(row) for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(ids, device=self.model.device), torch.tensor(mask, device=self.model.device)
