"""The engine that runs anywhere: transformers' own `generate`, batched with left padding, on CPU or GPU.

Greedy replies equal those of plain one-by-one `generate`; sampled ones depend on their own seed (`sampling.py`) and
not on who shares the batch; both up to floating-point noise. Continuations are scored exactly, whatever their number
of tokens. Given up: a finished row keeps its place until its batch ends.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Literal

from pydantic import Field

from humpback_ray import storage
from humpback_ray.config import Config
from humpback_ray.engines.base import Completion, Engine, Request
from humpback_ray.engines.batching import BatchedEngine, Job
from humpback_ray.engines.sampling import RowLimits, RowSampler
from humpback_ray.placement import Resources
from humpback_ray.prompts.chat import encode, encode_prompt


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
        self.model, self.tokenizer, self.batch_rows = model, tokenizer, batch_rows
        own = getattr(model.config, "max_position_embeddings", None)
        self.context_tokens = min(limit for limit in (own, max_context_tokens, 1 << 30) if limit)
        self.end_ids = _end_ids(model, tokenizer)
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else [*self.end_ids, 0][0]
        self._forget_checkpoint_sampling()

    def _forget_checkpoint_sampling(self) -> None:
        """Replace the checkpoint's generation defaults: a request says all that there is to say."""
        from transformers import GenerationConfig

        self.model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=self.end_ids or None, pad_token_id=self.pad_id
        )

    def accept(self, job: Job) -> Completion | None:
        """Tokenise a job; answer it at once where it does not fit the context or asks for no token."""
        request = job.request
        head = encode_prompt(self.tokenizer, request.prompt)
        job.ids = [*head, *encode(self.tokenizer, request.reply_prefix)] or self._first_ids()
        prompt_tokens = len(job.ids)
        if request.continuations:
            job.ids, job.tails = self._split_continuations(head or self._first_ids(), request)
        longest = max(map(len, job.tails)) if job.tails else request.max_new_tokens
        if len(job.ids) + longest > self.context_tokens:
            return Completion("", prompt_tokens, 0, "context")
        if longest == 0:
            return Completion("", prompt_tokens, 0, "length")
        return None

    def complete(self, batch: Sequence[Job]) -> list[Completion]:
        """Run a batch, all to generate or all to score."""
        return self._score(batch) if batch[0].tails else self._generate(batch)

    def _first_ids(self) -> list[int]:
        """Return what an empty prompt is read as: a model needs one token to start from."""
        return [next(i for i in (self.tokenizer.bos_token_id, *self.end_ids, 0) if i is not None)]

    def _split_continuations(self, head: list[int], request: Request) -> tuple[list[int], list[list[int]]]:
        """Tokenise the reply's prefix joined with each continuation, since a tokenizer's splits depend on neighbours.

        Returns:
            What all of them, and the prefix alone, begin with; and what is left of each, to be scored after it.
        """
        prefix = encode(self.tokenizer, request.reply_prefix)
        replies = [encode(self.tokenizer, request.reply_prefix + text) for text in request.continuations]
        shared = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(prefix, *replies, strict=False)))
        tails = [reply[shared:] for reply in replies]
        if not all(tails):
            raise ValueError(f"a continuation adds no token to its prefix: {request.continuations}")
        return [*head, *prefix[:shared]], tails

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
        return [self._read(job, row) for job, row in zip(batch, out_BT[:, width:].tolist(), strict=True)]

    def _read(self, job: Job, written: list[int]) -> Completion:
        """Cut a row of the batch where it ended: before its end token, or at its own limit."""
        written = written[: job.request.max_new_tokens]
        said = list(takewhile(lambda token: token not in self.end_ids, written))
        finished = len(said) < len(written)
        text = self.tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Completion(text, len(job.ids), len(said) + finished, "stop" if finished else "length")

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
            lengths = tuple(map(len, job.tails))
            completions.append(Completion("", len(job.ids), 0, "scored", tuple(sums), lengths))
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


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that end a reply: the tokenizer's, and those that the checkpoint names besides."""
    named = model.generation_config.eos_token_id
    every = [*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id]
    return sorted({token for token in every if token is not None})
