"""A trained engine → the directory that people serve, loaded again and checked before it is published (P9).

Rank 0 writes safetensors file by file, with the names, shapes and dtypes of transformers' `save_pretrained`; then the
tokenizer, the training layout as `chat_template.jinja`, a generation config with the paper's sampling, the *base*
model's configuration (no training-only dropout or cache setting) and a model card. transformers keeps some families'
weights in memory under other names and in other layouts than in files (the experts of a layer are one tensor); its own
rules are applied backwards. A worker gathers (ZeRO 3) and merges (LoRA) one parameter at a time, or those that one rule
needs at once; rank 0's host holds the tensors of one file and of one rule. A finished file goes to its destination
while the next one is gathered; for s3:// it also stays in the temporary directory until the check.

The checks:

- each file after it is written: read back, every tensor equals the one in memory, bit for bit;
- before training and at the end: a served message, and a conversation, have the token ids that training gives them;
- the whole directory at the end, before anything is committed: plain transformers loads it in a fresh process, and it
  behaves like the model in memory (reload.py). By then the training's memory is free, on GPUs and on hosts.

DeepSpeed trains all parameters in one dtype. Those that a family keeps in float32 are written in float32, but in a
bfloat16 run with values that bfloat16 has.
"""

import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from humpback_ray import storage
from humpback_ray.prompts.chat import chat_template, encode_prompt, space_between_turns, start_ids
from humpback_ray.stages.manifest import CARD
from humpback_ray.train.base import context_tokens
from humpback_ray.train.data.examples import Example
from humpback_ray.train.disk import explained, free_at, save_tensors, scratch
from humpback_ray.train.engine import group, lora
from humpback_ray.train.engine.deepspeed_internals import is_partitioned, whole_shape
from humpback_ray.train.engine.transformers_internals import blueprint, class_of, conversions_to_save, tied_like
from humpback_ray.train.export.reload import check_directory, probe, probe_prompt, unlike_training
from humpback_ray.train.job import TrainingStopped, TrainJob
from humpback_ray.train.recipe import Lora, TrainRecipe
from humpback_ray.train.state import Training
from humpback_ray.train.types import SavedTokenizer

if TYPE_CHECKING:
    import torch
    from torch import nn

SHARD_BYTES = 5 << 30
"""Largest safetensors file, unless one parameter is larger."""


def export_model(
    training: Training, base: Path, card: str, settle: Callable[[], None]
) -> tuple[list[storage.FileEntry], list[int]]:
    """Write, upload and check the model; every rank calls it, rank 0 gets the files and the probe's greedy tokens.

    Args:
        training: the training after its last step.
        base: directory of the base model.
        card: the model card.
        settle: called on every rank once all weights are written, before the check; the engine is not used after it.

    Raises:
        TrainingStopped: there is no room for the model (on every rank), or the model in the directory differs from the
            trained one (on rank 0).
        OSError: a file could not be written.
        process.CheckFailed: the check could not be made.
    """
    job, tokenizer, rank, engine = training.job, training.tokenizer, training.session.rank, training.engine
    gpu = training.placement.gpus_per_worker > 0
    module: Any = engine.module
    prompt = encode_prompt(tokenizer, probe_prompt(job.chat, job.direction))
    asked = probe(engine, prompt, longest(training.data.examples), limit_tokens(module.config, job.recipe))
    planned = list(parts(module))
    model_bytes = sum(part.bytes for part in planned)
    group.agree(lacking_room(job.export_uri, model_bytes) if rank == 0 else None)
    if rank != 0:
        for part in [*planned, *adapter_parts(module)]:
            with part.gathered():
                pass
        settle()
        return [], asked.greedy
    what = f"writing {job.model} to {job.export_uri}"
    with scratch("export", what, model_bytes) as folder, Shelf(job.export_uri, folder) as shelf:
        with explained(what, model_bytes, *shelf.local):
            write_weights(planned, shelf)
            write_configuration(base, type(module).__name__, job.recipe.dtype, shelf.scratch)
            write_tokenizer(tokenizer, job, shelf.scratch)
            (shelf.scratch / CARD).write_text(card, encoding="utf-8")
            if isinstance(job.recipe.method, Lora):
                write_adapters(module, shelf.scratch / "adapter")
            shelf.put_rest()
        settle()
        if problem := unlike_training(shelf.directory, tokenizer, job):
            raise TrainingStopped(problem)
        check_directory(shelf.directory, asked, job, gpu)
        return shelf.entries, asked.greedy


def longest(examples: Sequence[Example]) -> list[int]:
    """Return the tokens of the longest example, the first of several."""
    return max(examples, key=lambda example: example.length).ids.tolist()


def limit_tokens(config: Any, recipe: TrainRecipe) -> int:
    """Return the length of the longest sequence that a model is trained on or may be, the shorter of the two."""
    return min(recipe.max_length_tokens, context_tokens(config) or recipe.max_length_tokens)


class Source(NamedTuple):
    """A tensor of the model as it was before adapters were put in."""

    shape: tuple[int, ...]
    dtype: "torch.dtype"
    held: list["torch.Tensor"]
    """Parameters or buffers; under ZeRO 3 each worker has a piece of each."""
    make: Callable[[], "torch.Tensor"]
    """Makes the tensor once they are whole."""


@dataclass(frozen=True)
class Part:
    """Tensors of the export that are made together, and what they are made of."""

    tensors: dict[str, "torch.Tensor"]
    """The tensors by name, without values."""
    sources: dict[str, Source]
    convert: Callable[[dict[str, "torch.Tensor"]], dict[str, "torch.Tensor"]]
    """Makes the tensors from the sources, which are given by name."""

    @property
    def bytes(self) -> int:
        """Size of the tensors, in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def gathered(self) -> AbstractContextManager[object]:
        """Make the sources whole in a `with` block that every rank enters."""
        from deepspeed import zero

        held = [tensor for source in self.sources.values() for tensor in source.held]
        return zero.GatheredParameters([tensor for tensor in held if is_partitioned(tensor)])

    def values(self) -> dict[str, "torch.Tensor"]:
        """Gather the sources, which every rank does at once, and return the tensors on the host."""
        import torch

        with torch.no_grad(), self.gathered():
            whole = {
                name: source.make().to("cpu", source.dtype, copy=True).contiguous()
                for name, source in self.sources.items()
            }
        return {name: tensor.contiguous() for name, tensor in self.convert(whole).items()}


def parts(module: "nn.Module") -> Iterator[Part]:
    """Yield what `save_pretrained` would write, tied tensors once, with adapters merged into their weights."""
    import torch

    model: Any = module
    dtype = model.config.dtype  # transformers leaves a name here after `save_pretrained`
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    plan = tied_like(blueprint(type(model), model.config, dtype), model)
    dtypes = {name: tensor.dtype for name, tensor in plan.state_dict().items()}
    found = sources(module)
    for conversion in conversions_to_save(plan):
        made_of = {name: found[name]._replace(dtype=dtypes[name]) for name in conversion.sources}
        empty = {name: torch.empty(source.shape, dtype=source.dtype, device="meta") for name, source in made_of.items()}
        convert = partial(conversion, model=plan)
        yield Part(convert(empty), made_of, convert)


def sources(module: "nn.Module") -> dict[str, Source]:
    """Return every parameter and persistent buffer by the name that it has without adapters."""
    adapted = dict(lora.layers(module))
    found: dict[str, Source] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        owner = next((owner for owner in adapted if name.startswith(f"{owner}.")), None)
        if owner is None:
            found[name] = _source(tensor)
            continue
        layer, inner = adapted[owner], name.removeprefix(f"{owner}.")
        if inner == "base_layer.weight":
            adapters = [layer.lora_A[lora.ADAPTER].weight, layer.lora_B[lora.ADAPTER].weight]
            merge = partial(lora.merged, layer)
            found[f"{owner}.weight"] = Source(whole_shape(tensor), tensor.dtype, [tensor, *adapters], merge)
        elif inner.startswith("base_layer."):
            found[f"{owner}.{inner.removeprefix('base_layer.')}"] = _source(tensor)
    return found


def _source(tensor: "torch.Tensor") -> Source:
    return Source(whole_shape(tensor), tensor.dtype, [tensor], lambda: tensor)


class Shelf:
    """Uploads the finished files of a model, one at a time and in the background; a context manager.

    Args:
        uri: the model's directory.
        scratch: a temporary directory in which files are made.
    """

    def __init__(self, uri: str, scratch: Path) -> None:
        self.uri, self.scratch = uri, scratch
        self.directory = scratch if storage.is_s3(uri) else Path(uri)
        """Where all files can be read, whether put or not."""
        self.local = [partial(str, path) for path in dict.fromkeys([scratch, self.directory])]
        """Functions that return the local directories that are written to."""
        self.entries: list[storage.FileEntry] = []
        self._putter = ThreadPoolExecutor(1)
        self._putting: Future[None] | None = None

    def __enter__(self) -> "Shelf":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._putter.shutdown()

    def put(self, path: Path) -> None:
        """Put a finished file of the scratch directory; waits for the previous one, and raises its error."""
        self.wait()
        self._putting = self._putter.submit(self._put, path)

    def _put(self, path: Path) -> None:
        name = path.relative_to(self.scratch).as_posix()
        storage.upload_file(path, storage.join(self.uri, name))
        self.entries.append(storage.FileEntry(name, path.stat().st_size, storage.sha256_of(str(path))))
        if self.directory != self.scratch:
            path.unlink()

    def wait(self) -> None:
        """Return once everything is put."""
        if self._putting is not None:
            self._putting.result()

    def put_rest(self) -> None:
        """Put every file of the scratch directory that has not been put."""
        self.wait()
        known = {entry.name for entry in self.entries}
        for path in sorted(path for path in self.scratch.rglob("*") if path.is_file()):
            if path.relative_to(self.scratch).as_posix() not in known:
                self.put(path)
        self.wait()


def lacking_room(uri: str, model_bytes: int) -> str | None:
    """Return a problem if the disk that a model is written to lacks room for it; None if it has enough.

    An earlier export that failed is replaced file by file, so its files count as room.
    """
    replaced_bytes = 0 if storage.is_s3(uri) else sum(file.bytes for file in storage.listing(uri))
    path, free = free_at(Path(tempfile.gettempdir() if storage.is_s3(uri) else uri))
    if free + replaced_bytes >= model_bytes:
        return None
    return (
        f"the trained model will take {model_bytes:,} bytes, and {path}, where it is written and checked, has "
        f"{free:,} bytes free; make room, or "
        f"{'set TMPDIR to' if storage.is_s3(uri) else 'give the run a root on'} a larger disk"
    )


def write_weights(planned: Sequence[Part], shelf: Shelf, shard_bytes: int = SHARD_BYTES) -> None:
    """Write safetensors files of at most `shard_bytes`, with an index if there are several; put each when it is done.

    Raises:
        TrainingStopped: a file differs from the tensors in memory.
    """
    sizes = {name: tensor.nbytes for part in planned for name, tensor in part.tensors.items()}
    shards = divide(sizes, shard_bytes)
    values = itertools.chain.from_iterable(part.values().items() for part in planned)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        several = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        path = shelf.scratch / (several if len(shards) > 1 else "model.safetensors")
        tensors = dict(itertools.islice(values, len(names)))
        save_tensors(tensors, path, metadata={"format": "pt"})
        check_file(path, tensors)
        shelf.put(path)
        weight_map |= dict.fromkeys(tensors, path.name)
        del tensors  # before the next file's are made
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (shelf.scratch / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def divide(sizes: Mapping[str, int], shard_bytes: int) -> list[list[str]]:
    """Divide tensors, given by name and bytes, into files, in order; no file is larger unless a single tensor is."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if shards[-1] and held + size > shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards


def check_file(path: Path, tensors: Mapping[str, "torch.Tensor"]) -> None:
    """Read a written file back and compare it with memory, tensor by tensor.

    Raises:
        TrainingStopped: a tensor differs or is missing.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        wrong = [name for name in tensors if name not in names or not _same(file.get_tensor(name), tensors[name])]
    if wrong or len(names) != len(tensors):
        raise TrainingStopped(
            f"{path.name} was written but does not hold the model: {len(wrong)} of {len(tensors)} tensors differ or "
            f"are missing ({', '.join(wrong[:3])}), and the file has {len(names)}; check the disk of {path.parent}"
        )


def _same(found: "torch.Tensor", expected: "torch.Tensor") -> bool:
    """Compare two tensors bit for bit."""
    import torch

    alike = found.dtype == expected.dtype and found.shape == expected.shape
    return alike and torch.equal(found.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8))


def adapter_parts(module: "nn.Module") -> Iterator[Part]:
    """Yield the adapters alone, under the names that peft gives them in a file; none after a full fine-tune."""
    for name, layer in lora.layers(module):
        for letter in ("lora_A", "lora_B"):
            tensor = getattr(layer, letter)[lora.ADAPTER].weight
            yield Part({}, {f"base_model.model.{name}.{letter}.weight": _source(tensor)}, dict)


def write_adapters(module: "nn.Module", directory: Path) -> None:
    """Write the adapters in peft's format: `PeftModel.from_pretrained` can load the directory."""
    lora.attached(module).save_pretrained(str(directory))
    save_tensors(_values(adapter_parts(module)), directory / "adapter_model.safetensors", metadata={"format": "pt"})


def _values(some: Iterable[Part]) -> dict[str, "torch.Tensor"]:
    """Make parts one after another; return their tensors by name."""
    return {name: tensor for part in some for name, tensor in part.values().items()}


def write_configuration(base: Path, architecture: str, dtype: str, directory: Path) -> None:
    """Write the base model's configuration, or that of its text model if only that is trained, with class and dtype."""
    import torch
    from transformers import AutoConfig

    _, config = class_of(AutoConfig.from_pretrained(base))
    config.architectures = [architecture]
    for one in (config, *(getattr(config, name) for name in config.sub_configs)):
        if one is not None:
            one.dtype = getattr(torch, dtype)
    config.save_pretrained(directory)


def served_unlike(tokenizer: SavedTokenizer, base: Path, job: TrainJob) -> str | None:
    """Return a problem if the trained model would be served other tokens than it learns from; call before training."""
    needed = sum(path.stat().st_size for path in base.iterdir() if path.suffix in (".json", ".model"))
    what = f"writing the tokenizer of {job.model}"
    with scratch("tokenizer", what, needed) as folder, explained(what, needed, lambda: str(folder)):
        shutil.copy(base / "config.json", folder)
        write_tokenizer(tokenizer, job, folder)
        return unlike_training(folder, tokenizer, job)


def write_tokenizer(tokenizer: SavedTokenizer, job: TrainJob, directory: Path) -> None:
    """Write the tokenizer with the training layout as its chat template, and the sampling (section 3.1: T 0.7, p 0.9).

    A tokenizer without a pad token gets none: batches of prompts are padded with the end token's id.
    """
    from transformers import GenerationConfig

    chat = job.chat
    layout, tags = (chat.backward, ()) if job.direction == "backward" else (chat.forward, chat.tags("both"))
    bos, later = bool(start_ids(tokenizer)), space_between_turns(tokenizer, layout)
    tokenizer.chat_template = chat_template(layout, tags, chat.tag_position, bos, later)
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
