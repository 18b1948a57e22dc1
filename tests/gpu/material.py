"""Input of the check: random Llamas and rows of tokens, made on the spot; nothing is downloaded."""

import gc
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from humpback_ray.rates import PlanConfig
from humpback_ray.train.sizes import SIZES, Shape
from tests.gpu.report import Report

CONTEXT_TOKENS = 4096
MADE = ".made"
"""A file in each model's directory, written last: a part that makes a model may be ended before."""
LETTERS = 400
"""Entries of the tokenizer. An engine's model has the same vocabulary, so every token that it writes is text."""
SPECIAL = ("<s>", "</s>", "<pad>")
SUCCESSION = range(len(SPECIAL), 67)
"""Tokens of training examples. They are few and count in constant steps, so a few updates lower the loss."""

SHAPES = {
    "1b": SIZES["llama-3.2-1b"],
    "3b": Shape(3072, 28, 24, 8, 8192, 128_256, head=128, tied=True),
    "7b": SIZES["llama-7b"],
    "100m": Shape(768, 12, 12, 12, 2048, 32_000, head=64),
    "tiny": Shape(64, 2, 4, 2, 128, LETTERS, head=16),
    "small": Shape(128, 3, 4, 4, 256, LETTERS, head=32),
}


@dataclass(frozen=True)
class Check:
    """The arguments of a part."""

    report: Report
    shared: Path
    """A directory that all parts of a call share, for models and ceilings; it is deleted afterwards."""
    room: Path
    """A directory of this part alone, which is deleted after it."""
    gpu: bool

    @property
    def out(self) -> Path:
        """The directory of the lines, which also receives tables of profiles."""
        return self.report.file.parent

    @property
    def device(self) -> str:
        """The device's name for torch."""
        return "cuda" if self.gpu else "cpu"


def make_tokenizer() -> Any:
    """Return a tokenizer with one token per letter, so the tokens can be recovered from a text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    codes = [ord("\n"), *range(ord(" "), ord("~") + 1), *range(ord("一"), ord("一") + LETTERS)]
    names = [*SPECIAL, *map(chr, codes)][:LETTERS]
    inner: Any = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def base(check: Check, name: str) -> Path:
    """Return the directory of a random Llama to train; it is made on the device, since a 7B on a CPU takes minutes."""
    return _model(check, name, SHAPES[name])


def writer(check: Check, name: str) -> Path:
    """Return the directory of a random Llama to generate with: it writes letters and no special tokens."""
    return _model(check, f"{name}-writer", writer_shape(name), silent=len(SPECIAL))


def writer_shape(name: str) -> Shape:
    """Return the shape of a model to generate with."""
    return replace(SHAPES[name], vocabulary=LETTERS, tied=False)


def _model(check: Check, name: str, shape: Shape, silent: int = 0) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    folder = check.shared / name
    if (folder / MADE).exists():
        return folder
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head, max_position_embeddings=CONTEXT_TOKENS, tie_word_embeddings=shape.tied,
        bos_token_id=0, eos_token_id=1, initializer_range=shape.hidden**-0.5,  # else small models hardly attend
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(check.device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        model.get_output_embeddings().weight[:silent] = 0  # the largest of hundreds of random logits is above 0
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (folder / MADE).touch()
    return folder


def examples(folder: Path, count: int, length: int) -> str:
    """Write rows of TOKENS, about 0.6 `length` and at most `length` long, a quarter of each prompt; return the path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from humpback_ray.records import TOKENS

    draw = random.Random(0)
    path = folder / f"{count}-of-{length}.parquet"
    size = partial(draw.gauss, length * 0.6, length * 0.25)
    rows = [_example(number, max(8, min(length, round(size()))), draw) for number in range(count)]
    pq.write_table(pa.Table.from_pylist(rows, schema=TOKENS), path)
    return str(path)


def _example(number: int, length: int, draw: random.Random) -> dict[str, Any]:
    first, step = draw.randrange(len(SUCCESSION)), draw.randint(1, 3)
    ids = [0, *(SUCCESSION[(first + step * place) % len(SUCCESSION)] for place in range(length - 2)), 1]
    return {"id": f"{number:06d}", "source": "seed", "ids": ids, "loss_start": length // 4, "length": length,
            "truncated": False, "drop_reason": None}  # fmt: skip


def rates() -> PlanConfig:
    """Return the plan's rates for this GPU; for an unknown one or without a GPU, its defaults."""
    import torch

    plain = PlanConfig()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    machine = next((row for row in plain.known if row.split("-")[0] in name), plain.machine)
    return plain.model_copy(update={"machine": machine})


SMALL_BYTES = 1 << 12
"""Smaller tensors are left alone."""


def let_go(check: Check) -> float:
    """Free the device memory that earlier runs of this process hold; return the GB that remain.

    In DeepSpeed 0.19, hooks keep an engine alive as long as its process. `destroy` undoes that for ZeRO 0 to 2. An
    engine of ZeRO 3 stays, so its tensors are emptied one by one.
    """
    import torch

    for thing in gc.get_objects():
        if type(thing).__name__ == "DeepSpeedEngine":
            thing.destroy()
    gc.collect()
    for storage in _storages(check.device):
        if storage.nbytes() >= SMALL_BYTES and storage.resizable():
            storage.resize_(0)
    left = torch.cuda.memory_allocated() if check.gpu else sum(one.nbytes() for one in _storages(check.device))
    if check.gpu:
        torch.cuda.empty_cache()
    gc.freeze()  # objects that exist now are not searched again
    return round(left / 1e9, 4)


def _storages(device: str) -> Iterable[Any]:
    """Return the storages of all Python tensors on a device, each once."""
    import torch
    from torch._subclasses import FakeTensor

    kinds = [(thing, type(thing)) for thing in gc.get_objects()]
    tensors = [one for one, kind in kinds if issubclass(kind, torch.Tensor) and not issubclass(kind, FakeTensor)]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == device]
    return {storage.data_ptr(): storage for storage in storages}.values()
