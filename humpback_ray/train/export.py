"""A trained engine → the directory that people serve, loaded again before it counts (P9).

Rank 0 writes safetensors in the training format's dtype, parameter by parameter (ZeRO 3 gathers one at a time), the
tokenizer, `chat_template.jinja` that is the training layout, a generation config with the paper's sampling, and the
*base* model's configuration: no training-only dropout or cache setting. Plain transformers then loads the directory
into a fresh model, whose logits on a probe prompt must be those of the model in memory and which must generate. Only
then is it uploaded.

Given up: architectures whose checkpoint names differ from their parameter names (none among Llama, Qwen, Mistral);
the check loads the whole model on rank 0's host.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from humpback_ray import storage
from humpback_ray.prompts.chat import ChatRecipe, chat_template, encode_prompt, start_ids
from humpback_ray.train.examples import Direction
from humpback_ray.train.job import TrainingStopped, TrainJob

logger = logging.getLogger(__name__)

SHARD_BYTES = 5 << 30
"""Largest safetensors file, unless one parameter is larger."""

PROBE = "Which rivers meet below the old mill, and why did the miller leave?"

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest difference of a logit, as a share of the largest logit: GPUs and hosts sum in another order."""

PROBE_NEW_TOKENS = 8


def export(engine: Any, tokenizer: Any, base: Path, job: TrainJob, rank: int) -> list[storage.FileEntry]:
    """Write, check and upload the model; every rank calls it, rank 0 gets the list of files.

    Raises:
        TrainingStopped: on rank 0, where the directory does not give the trained model back.
    """
    ids = encode_prompt(tokenizer, probe_prompt(job.chat, job.direction))
    expected = probe_logits(engine, ids)
    with TemporaryDirectory(prefix="humpback-export-") as name:
        directory = Path(name)
        if rank != 0:
            for _ in weights(engine.module, rank):
                pass
            return []
        write_weights(engine.module, directory)
        write_configuration(base, type(engine.module).__name__, job.recipe.dtype, directory)
        write_tokenizer(tokenizer, job, directory)
        verify(directory, ids, expected, job)
        return storage.upload_directory(directory, job.export_uri)


def probe_prompt(chat: ChatRecipe, direction: Direction) -> str:
    """Render the prompt on which memory and export are compared."""
    return chat.backward_prompt(PROBE) if direction == "backward" else chat.forward_prompt(PROBE)


def probe_logits(engine: Any, ids: list[int]) -> Any:
    """Return the trained model's logits on the probe, float32 [T, V] on the host; collective under ZeRO 3."""
    import torch

    engine.eval()
    with torch.no_grad():
        logits = engine(input_ids=torch.tensor([ids], device=engine.device), use_cache=False).logits
    return logits[0].float().cpu()


def weights(module: Any, rank: int) -> Iterator[tuple[str, Any]]:
    """Yield name and value, on the host, of every parameter and persistent buffer; tied ones once.

    Only rank 0 is given values; the others take part in the gathering.
    """
    from deepspeed import zero

    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        with zero.GatheredParameters([tensor] if hasattr(tensor, "ds_id") else []):
            value = tensor.detach().to("cpu", copy=True).contiguous() if rank == 0 else None
        if value is not None:
            yield name, value


def write_weights(module: Any, directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write safetensors files of at most `shard_bytes`, with an index where there are several."""
    from safetensors.torch import save_file

    shard: dict[str, Any] = {}
    names: list[list[str]] = []
    held = total = 0

    def flush() -> None:
        save_file(shard, directory / f"part-{len(names)}", metadata={"format": "pt"})
        names.append(list(shard))
        shard.clear()

    for name, value in weights(module, rank=0):
        size = value.numel() * value.element_size()
        if shard and held + size > shard_bytes:
            flush()
            held = 0
        shard[name] = value
        held, total = held + size, total + size
    flush()
    _name_shards(directory, names, total)


def _name_shards(directory: Path, names: list[list[str]], total_bytes: int) -> None:
    """Give the parts the names that transformers and vLLM look for."""
    if len(names) == 1:
        (directory / "part-0").rename(directory / "model.safetensors")
        return
    files = [f"model-{number + 1:05d}-of-{len(names):05d}.safetensors" for number in range(len(names))]
    for number, file in enumerate(files):
        (directory / f"part-{number}").rename(directory / file)
    weight_map = {name: file for file, held in zip(files, names, strict=True) for name in held}
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def write_configuration(base: Path, architecture: str, dtype: str, directory: Path) -> None:
    """Write the base model's own configuration with the exported class and dtype."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base)
    config.architectures = [architecture]
    config.dtype = getattr(torch, dtype)
    config.save_pretrained(directory)


def write_tokenizer(tokenizer: Any, job: TrainJob, directory: Path) -> None:
    """Write the tokenizer with the training layout as its chat template, and how to sample (section 3.1: T 0.7, p 0.9).

    A tokenizer without a pad token stays without: batches of prompts are padded with the end token's id.
    """
    from transformers import GenerationConfig

    chat = job.chat
    layout, tags = (chat.backward, ()) if job.direction == "backward" else (chat.forward, chat.tags("both"))
    tokenizer.chat_template = chat_template(layout, tags, chat.tag_position, bos=bool(start_ids(tokenizer)))
    tokenizer.save_pretrained(directory)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad,
    ).save_pretrained(directory)


def verify(directory: Path, ids: list[int], expected: Any, job: TrainJob) -> None:
    """Load a written directory with plain transformers; compare its logits with memory's and let it generate.

    Raises:
        TrainingStopped: tokens or logits differ, or a logit is no number.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    if encode_prompt(tokenizer, probe_prompt(job.chat, job.direction)) != ids:
        raise TrainingStopped(
            f"the exported tokenizer of {job.model} encodes the probe prompt unlike the one trained with"
        )
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", use_safetensors=True).eval()
    prompt = torch.tensor([ids])
    with torch.no_grad():
        logits = model(input_ids=prompt).logits[0].float()
    apart = ((logits - expected).abs().max() / expected.abs().max().clamp_min(1e-6)).item()
    if not apart <= TOLERANCE[job.recipe.dtype]:
        raise TrainingStopped(
            f"the exported {job.model} is not the trained model: logits differ by {apart:.2g} of the largest, "
            f"at most {TOLERANCE[job.recipe.dtype]:g} was expected; nothing was uploaded"
        )
    greedy = {"do_sample": False, "temperature": None, "top_p": None}
    reply = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=PROBE_NEW_TOKENS, **greedy)
    generated = reply.shape[1] - len(ids)
    if generated < 1:
        raise TrainingStopped(f"the exported {job.model} generated nothing on the probe prompt")
    logger.info("%s: loaded again, logits differ by %.2g, generated %d tokens", job.model, apart, generated)
