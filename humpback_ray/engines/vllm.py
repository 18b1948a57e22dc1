"""vLLM as an engine: its asynchronous engine, on an event loop in its own thread.

Requests of all shards in flight go to vLLM as they arrive. It forms a new batch for every token, and computes a prefix
that prompts share once (prefix caching). We tokenize, so text that spells a special token stays plain text; we answer
requests that do not fit the context; and we read token ids back. vLLM itself has no tokenizer here.

Short continuations cost one prefill, however many there are: we ask vLLM for the log-probabilities of the listed next
tokens, and it finds the prompt in its cache when we ask about a second place. Long continuations take a pass over
prompt and continuation, for which vLLM cannot use that cache.

An engine that has died (`processes.Dead`) ends its actor. If an actor is killed, Ray ends its engine with the rest of
its process group. Given up: a replica can use several GPUs of one node, but not several nodes.
"""

import asyncio
import itertools
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field

from humpback_ray import storage
from humpback_ray.config import Config
from humpback_ray.engines.base import Completion, Engine, Request
from humpback_ray.engines.tokens import Reader, Reading
from humpback_ray.needs import Resources
from humpback_ray.packages import TRANSFORMERS, VLLM, Package
from humpback_ray.prompts.tokenizer import Tokenizer
from humpback_ray.stages.processes import Dead

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs  # pyright: ignore[reportMissingImports]
    from vllm.outputs import RequestOutput  # pyright: ignore[reportMissingImports]
    from vllm.v1.engine.async_llm import AsyncLLM  # pyright: ignore[reportMissingImports]

T = TypeVar("T")

_SHORT_TOKENS = 4
"""Continuations of at most this many tokens are scored place by place, each place with a request that the cache
serves."""
_MOST_ASKED = 128
"""Number of tokens whose log-probabilities one request may ask for: vLLM's own limit."""
_CPU_CACHE_BYTES = 2 << 30


class VllmEngine(Config):
    """vLLM; needs the extra `vllm` and a GPU, or vLLM's build for CPUs."""

    kind: Literal["vllm"] = "vllm"

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of weights and arithmetic. "auto": the checkpoint's, or 16 bits if it was saved in 32."""

    quantization: str | None = None
    """vLLM's name of a method that quantizes the weights while they are loaded, such as "fp8". None: the
    checkpoint's."""

    max_context_tokens: int | None = Field(default=None, ge=2)
    """Most tokens of prompt and reply together. None: the limit in the model's configuration. With a smaller limit
    the cache has room for more requests at once."""

    eager: bool = False
    """Run without compilation and CUDA graphs: starts sooner, runs slower. In the recipe and not in the placement,
    since compiled arithmetic rounds differently."""

    def packages(self) -> Sequence[Package]:
        """Return the packages that `build` imports."""
        return (VLLM, TRANSFORMERS)

    def build(self, directory: "str | storage.Directory", resources: Resources) -> Engine:
        """Load the model (safetensors only, no custom code) and start the engine's processes."""
        from transformers import AutoTokenizer, GenerationConfig, PretrainedConfig
        from vllm.engine.arg_utils import AsyncEngineArgs  # pyright: ignore[reportMissingImports]

        path = storage.local_directory(directory)
        seqs, tokens = resources.max_num_seqs, resources.max_num_batched_tokens
        if resources.gpus:
            seqs, tokens = (given or usual for given, usual in zip((seqs, tokens), step_limits(*_gpu()), strict=True))
        parallel = resources.tensor_parallel * resources.pipeline_parallel
        arguments = AsyncEngineArgs(
            model=str(path),
            dtype=self.dtype,
            quantization=self.quantization,
            max_model_len=self.max_context_tokens,
            enforce_eager=self.eager,
            tensor_parallel_size=resources.tensor_parallel,
            pipeline_parallel_size=resources.pipeline_parallel,
            distributed_executor_backend="mp" if parallel > 1 else None,  # in an actor, vLLM would choose Ray
            gpu_memory_utilization=resources.gpu_memory_share or 0.9,
            max_num_seqs=seqs,
            max_num_batched_tokens=tokens,
            kv_cache_memory_bytes=resources.cache_bytes or (None if resources.gpus else _CPU_CACHE_BYTES),
            enable_prefix_caching=True,
            # On a CPU, vLLM 0.32 crashes if it reads a seeded request's prompt in two steps: generators lack offsets.
            enable_chunked_prefill=bool(resources.gpus),
            skip_tokenizer_init=True,
            load_format="safetensors",
            generation_config="vllm",  # requests set all sampling parameters; the checkpoint sets none
            disable_log_stats=True,
        )
        try:
            ends = GenerationConfig.from_pretrained(path).eos_token_id
        except OSError:  # the model has no generation_config.json
            ends = PretrainedConfig.get_config_dict(path)[0].get("eos_token_id")
        return Vllm(arguments, AutoTokenizer.from_pretrained(path), ends)


def step_limits(memory_bytes: int, gpu: str) -> tuple[int, int]:
    """Return the most requests and the most tokens in a step of vLLM on a GPU.

    These are vLLM 0.32's defaults for its offline class (`EngineArgs.get_batch_defaults`). An engine started like ours
    would get 128 and 2,048 whatever the GPU. More tokens made an A100 slower (vLLM's issue 17885).
    """
    large = memory_bytes >= 70 << 30 and "a100" not in gpu.lower()
    return (1024, 16_384) if large else (256, 8192)


def _gpu() -> tuple[int, str]:
    """Return memory (bytes) and name of this process's first GPU, without initializing CUDA."""
    from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

    return current_platform.get_device_total_memory(), current_platform.get_device_name()


class Vllm:
    """The running engine."""

    def __init__(self, arguments: "AsyncEngineArgs", tokenizer: Tokenizer, ends: int | Sequence[int] | None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        try:
            self._llm = self._submit(_start(arguments)).result()
        except BaseException:
            self._stop()
            raise
        self._reader = Reader(tokenizer, ends, self._llm.model_config.max_model_len)
        self._names = map(str, itertools.count())

    async def generate(self, request: Request) -> Completion:
        """Complete or score one request; if the caller cancels it, vLLM ends it too."""
        reading = self._reader.read(request)
        if isinstance(reading, Completion):
            return reading
        if reading.tails:
            sums = await asyncio.wrap_future(self._submit(self._score(reading)))
            return self._reader.scored(reading, sums)
        written = await asyncio.wrap_future(self._submit(self._write(reading.ids, request)))
        return self._reader.reply(len(reading.ids), written)

    def close(self) -> None:
        """Cancel all requests and end the engine's processes."""
        self._submit(_cancel_tasks()).result()
        self._llm.shutdown()
        del self._llm
        self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _write(self, ids: Sequence[int], request: Request) -> list[int]:
        out = await self._ask(
            ids,
            max_tokens=request.max_new_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed if request.temperature else None,
            stop_token_ids=self._reader.end_ids,
        )
        return out.outputs[0].token_ids

    async def _score(self, reading: Reading) -> list[float]:
        """Return the sum of log p over each tail's tokens."""
        if max(map(len, reading.tails)) > _SHORT_TOKENS:
            return await asyncio.gather(*(self._score_long(reading.ids, tail) for tail in reading.tails))
        asked: dict[tuple[int, ...], set[int]] = {}
        for tail in reading.tails:
            for place, token in enumerate(tail):
                asked.setdefault(tuple(tail[:place]), set()).add(token)
        answers = await asyncio.gather(*(self._next([*reading.ids, *some], sorted(asked[some])) for some in asked))
        found = dict(zip(asked, answers, strict=True))
        return [sum(found[tuple(tail[:place])][token] for place, token in enumerate(tail)) for tail in reading.tails]

    async def _score_long(self, ids: Sequence[int], tail: Sequence[int]) -> float:
        out = await self._ask([*ids, *tail[:-1]], max_tokens=1, prompt_logprobs=0, logprob_token_ids=[tail[-1]])
        places = [*(out.prompt_logprobs[place] for place in range(len(ids), len(ids) + len(tail) - 1))]
        places.append(out.outputs[0].logprobs[0])
        return sum(place[token].logprob for place, token in zip(places, tail, strict=True))

    async def _next(self, ids: Sequence[int], tokens: Sequence[int]) -> dict[int, float]:
        """Return log p of each of some tokens as the next one."""
        parts = [tokens[start : start + _MOST_ASKED] for start in range(0, len(tokens), _MOST_ASKED)]
        outs = await asyncio.gather(*(self._ask(ids, max_tokens=1, logprob_token_ids=list(part)) for part in parts))
        return {
            token: out.outputs[0].logprobs[0][token].logprob
            for part, out in zip(parts, outs, strict=True)
            for token in part
        }

    async def _ask(self, ids: Sequence[int], temperature: float = 0.0, **parameters: object) -> "RequestOutput":
        """Run one request of vLLM and return its output.

        Raises:
            Dead: the engine has died.
            RuntimeError: vLLM ended the request without a reply.
        """
        from vllm.inputs import tokens_input  # pyright: ignore[reportMissingImports]
        from vllm.sampling_params import RequestOutputKind, SamplingParams  # pyright: ignore[reportMissingImports]

        out = None
        try:
            sampling = SamplingParams(
                temperature=temperature,
                detokenize=False,
                flat_logprobs=True,
                output_kind=RequestOutputKind.FINAL_ONLY,
                **parameters,
            )
            async for part in self._llm.generate(tokens_input(list(ids)), sampling, next(self._names)):
                out = part
        except Exception as error:
            if self._llm.errored:
                raise Dead(f"vLLM has died: {error}") from error
            raise
        if out is None or out.outputs[0].finish_reason not in ("stop", "length"):
            reason = out and out.outputs[0].finish_reason
            raise RuntimeError(f"vLLM ended a request without a reply: finish reason {reason}")
        return out


async def _start(arguments: "AsyncEngineArgs") -> "AsyncLLM":
    """Start vLLM on the event loop that it will use."""
    from vllm.v1.engine.async_llm import AsyncLLM  # pyright: ignore[reportMissingImports]

    return AsyncLLM.from_engine_args(arguments)


async def _cancel_tasks() -> None:
    """Cancel all tasks of this event loop and wait until they have ended."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
