"""Faults of a base model that would end its training, found before it is loaded, by what is cheap to read.

The configuration, the index, the headers of the safetensors files, the tokenizer, and the names and shapes of all
parameters, which transformers' own loader compares on the meta device: it knows the families whose files name or
arrange parameters differently than their classes. No weights are read, so a model in a bucket is checked at the start
of a run too, before the corpus is cut or a GPU is taken; the workers check their copy again.

`checked` is the one list of faults. What it cannot know: whether the weights are good.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from humpback_ray import storage
from humpback_ray.prompts.chat import end_id, start_ids
from humpback_ray.train.engine.shapes import blaming, check_shapes, quiet
from humpback_ray.train.job import TrainingStopped
from humpback_ray.train.recipe import Lora, TrainRecipe
from humpback_ray.train.safetensor_files import Stored, Unusable, read_object, refuse_pointer, stored_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FLOATS = {"F64", "F32", "F16", "BF16"}
"""Dtypes, as in headers, of weights that can be trained."""

READ_JSON = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "tekken.json",
)  # fmt: skip
"""Files of JSON objects, besides the configuration, that transformers reads if they are there."""

TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt",
    "tekken.json",
)  # fmt: skip
"""Files that hold a vocabulary."""


@dataclass(frozen=True)
class Base:
    """What training must know of a base model before it is loaded."""

    rows: int
    """Rows of its embedding: token ids are below it."""
    context_tokens: int | None
    """Longest example; None: its configuration names no limit."""


def checked(directory: storage.Directory, recipe: TrainRecipe) -> Base:
    """Check a base model, local or in a bucket, for the training that a recipe describes.

    Raises:
        Unusable: a fault of its files; the message begins with a URI.
        TrainingStopped: the recipe's adapters do not fit the model.
        OSError: storage failed.
    """
    files = files_of(directory)
    stored = check_files(directory.uri, files)
    local = _without_weights(directory, files)
    config = load_configuration(local, directory.uri)
    model: Any = check_shapes(config, stored, directory.uri)
    rows = int(model.get_input_embeddings().weight.shape[0])
    check_padding(local, rows, directory.uri)
    check_tokenizer(local, rows, directory.uri)
    if isinstance(recipe.method, Lora):
        from humpback_ray.train.engine import lora

        lora.choose(model, recipe.method)
    return Base(rows, context_tokens(config))


def looked_at(
    directory: storage.Directory, recipe: TrainRecipe, blamed: str, libraries: bool = True
) -> "Base | str | None":
    """Check a base model as `checked` does; return what it is, or its fault as one line that begins with `blamed`.

    Without `libraries`, on a machine that may lack transformers, only its files are checked: None if they are sound.
    """
    try:
        if libraries:
            return checked(directory, recipe)
        check_files(directory.uri, files_of(directory))
    except Unusable as error:
        return f"{blamed}: {error}"
    except TrainingStopped as error:
        return str(error)
    except OSError as error:
        return f"{blamed}: {storage.words(error)}"
    return None


def files_of(directory: storage.Directory) -> dict[str, storage.InputFile]:
    """Return a directory's files by name."""
    return {file.name: file for file in directory.files or storage.find(directory.uri)}


def check_files(uri: str, files: Mapping[str, storage.InputFile]) -> dict[str, Stored]:
    """Check the files of a model directory as far as that takes no library; return its tensors by name.

    Raises:
        Unusable: the first fault.
    """
    if not files:
        raise Unusable(f"{uri} is not a model directory: it does not exist or is empty")
    if "adapter_config.json" in files:
        raise Unusable(
            f"{uri} has an adapter_config.json, so transformers would load the model that it names; merge the adapters "
            "into that model (merge_and_unload) and save it, or delete the file if the weights are whole"
        )
    stored = stored_tensors(uri, files)
    if "config.json" not in files:
        raise Unusable(f"{uri} is not a model directory (it has no config.json)")
    config = read_object(files["config.json"])
    check_configuration(config, f"{uri}/config.json")
    for name in {*READ_JSON, *TOKENIZERS} & files.keys():
        if name.endswith(".json"):
            read_object(files[name])
        else:
            refuse_pointer(files[name], storage.read_part(files[name].uri, 0, 200))
    if not any(name in files for name in TOKENIZERS):
        raise Unusable(f"{uri} has no tokenizer (no {TOKENIZERS[0]} or {TOKENIZERS[1]}); copy it from the same model")
    for name, tensor in stored.items():
        is_weight = tensor.dtype.startswith("F") or name.endswith("weight")
        if is_weight and tensor.dtype not in FLOATS:
            raise Unusable(
                f"{uri}/{tensor.file}: {name} is stored as {tensor.dtype}: these are quantized weights, which cannot "
                "be trained; use the model's bfloat16, float16 or float32 weights"
            )
    return stored


def check_configuration(config: Mapping[str, Any], uri: str) -> None:
    """Check what a model's configuration says in JSON.

    Raises:
        Unusable: no family, or quantized weights.
    """
    if not isinstance(config.get("model_type"), str):
        raise Unusable(f"{uri} has no model_type, the name of the model's family; copy it again from the model")
    for section in (config, config.get("text_config")):
        for key in ("quantization_config", "compression_config"):
            if isinstance(section, dict) and (method := section.get(key)):
                name = method.get("quant_method") if isinstance(method, dict) else None
                raise Unusable(
                    f"{uri} has a {key}{f' ({name})' if name else ''}: quantized weights cannot be trained; use the "
                    "model's bfloat16, float16 or float32 weights"
                )


def _without_weights(directory: storage.Directory, files: Mapping[str, storage.InputFile]) -> Path:
    """Return a local directory with a model's files except weights of any kind."""
    wanted = tuple(file for name, file in files.items() if name.endswith((".json", ".model", ".txt", ".jinja")))
    return storage.local_directory(storage.Directory(directory.uri, wanted))


def load_configuration(directory: Path, uri: str) -> "PreTrainedConfig":
    """Load a configuration.

    Raises:
        Unusable: transformers does not know the family, or refuses the values, or has no language model for it.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    values = read_object(storage.InputFile(str(directory / "config.json"), "config.json", 0))
    kind = values["model_type"]
    if kind not in CONFIG_MAPPING:
        raise Unusable(
            f"{uri} is of the family {kind}, which needs code of its own (trust_remote_code); such code is never run, "
            "so use a model of a family that transformers has"
            if "auto_map" in values
            else f"{uri}/config.json has model_type {kind}, a family that transformers {version('transformers')} does "
            "not have; install a newer transformers, or correct it"
        )
    with blaming(f"{uri}/config.json is refused by transformers"):
        config = AutoConfig.from_pretrained(directory)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise Unusable(f"{uri} is of the family {kind}, which has no causal language model to train")
    return config


def context_tokens(config: Any) -> int | None:
    """Return the longest text that a model's configuration allows, in tokens; None if it names no limit."""
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else None


def check_padding(directory: Path, rows: int, uri: str) -> None:
    """Check that the embedding has a row for the padding that the configurations name.

    Their other ids are never looked up: what the tokenizer gives counts.

    Raises:
        Unusable: it has none.
    """
    for file in ("config.json", "generation_config.json"):
        path = directory / file
        values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        padding = values.get("pad_token_id")
        if isinstance(padding, int) and padding >= rows:
            raise Unusable(
                f"{uri}/{file} has pad_token_id = {padding:,}, but the embedding has {rows:,} rows; correct it, or "
                "enlarge the embedding (resize_token_embeddings) and save the model"
            )


def check_tokenizer(directory: Path, rows: int, uri: str) -> None:
    """Check that the tokenizer can be used for training, and that the embedding has a row for every id it may give.

    Special tokens that are never used may lie beyond the embedding: Gemma 3's text models have one for images.

    Raises:
        Unusable: it cannot, or it has not.
    """
    from transformers import AutoTokenizer

    with blaming(f"{uri}: its tokenizer cannot be used"), quiet():
        tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        used = {"start": start_ids(tokenizer), "end": [end_id(tokenizer)]}
        used |= {"padding": [tokenizer.pad_token_id], "unknown": [tokenizer.unk_token_id]}
    for role, ids in used.items():
        for one in ids:
            if one is not None and one >= rows:
                raise Unusable(
                    f"{uri}: its tokenizer's {role} token {tokenizer.convert_ids_to_tokens(one)!r} has id {one:,}, but "
                    f"the embedding has {rows:,} rows; take another token in tokenizer_config.json, or enlarge the "
                    "embedding (resize_token_embeddings) and save the model"
                )
    special = {one for one, token in tokenizer.added_tokens_decoder.items() if token.special}
    ordinary = {one: piece for piece, one in tokenizer.get_vocab().items() if one not in special}
    if ordinary and (highest := max(ordinary)) >= rows:
        beyond = sum(one >= rows for one in ordinary)
        raise Unusable(
            f"{uri}: its tokenizer gives ids up to {highest:,} ({ordinary[highest]!r}), but the embedding has {rows:,} "
            f"rows, so {beyond:,} tokens have none; is the tokenizer from another model?"
        )
