"""Faults of a base model are named before it is loaded; good models of many families pass."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from humpback_ray import storage
from humpback_ray.config import ConfigError, load
from humpback_ray.placement import TrainPlacement
from humpback_ray.run import Run
from humpback_ray.runconfig import RunConfig
from humpback_ray.train import safetensor_files
from humpback_ray.train.base import Base, looked_at
from humpback_ray.train.job import TrainingStopped
from humpback_ray.train.loop import Session, train
from humpback_ray.train.recipe import Lora, TrainRecipe
from tests.train.conftest import make_tokenizer, rows, tokens_of
from tests.train.families import save_tiny
from tests.train.tiny import FAMILIES, make_family
from tests.train.workers import job

DEMO = Path(__file__).parents[2] / "configs/demo.yaml"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4976698672\n"


def fault(directory: Path | str, recipe: TrainRecipe | None = None) -> str:
    found = looked_at(storage.Directory(str(directory)), recipe or TrainRecipe(), "base_model")
    return "" if isinstance(found, Base) else str(found)


@pytest.fixture(scope="session")
def sharded(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model in two files."""
    from safetensors.torch import load_file, save_file

    directory = tmp_path_factory.mktemp("sharded") / "base"
    shutil.copytree(base, directory)
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    halves = {ONE: sorted(tensors)[::2], TWO: sorted(tensors)[1::2]}
    for file, names in halves.items():
        save_file({name: tensors[name] for name in names}, directory / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, names in halves.items() for name in names}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


@pytest.fixture
def at(sharded: Path, tmp_path: Path) -> Path:
    """A copy of the base model in two files."""
    return Path(shutil.copytree(sharded, tmp_path / "base"))


def edit(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None deletes one."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def retensor(at: Path, file: str, change: Callable[[dict[str, Any]], object]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(at / file)
    change(tensors)
    save_file(tensors, at / file, metadata={"format": "pt"})


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def mark(path: Path) -> None:
    """Put a byte order mark before a text, as some editors do."""
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def file_of(header: dict[str, Any]) -> bytes:
    """Return a safetensors file with this header, whatever it says, and four bytes of data."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(4)


def as_one_file(at: Path, name: str) -> None:
    for path in [*at.glob("*.safetensors"), *at.glob("*.index.json")]:
        path.unlink()
    (at / name).write_bytes(b"PK\x03\x04 weights")


def test_a_model_in_several_files_passes_and_its_embedding_and_context_are_known(sharded: Path, base: Path) -> None:
    for directory in (sharded, base):
        found = looked_at(storage.Directory(str(directory)), TrainRecipe(method=Lora()), "base_model")
        assert found == Base(rows=300, context_tokens=256)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (shutil.rmtree, "base is not a model directory: it does not exist or is empty"),
    "lost shard": (
        lambda at: (at / TWO).unlink(),
        f"base lacks {TWO} of the 2 files that model.safetensors.index.json names",
    ),
    "lost index": (
        lambda at: (at / "model.safetensors.index.json").unlink(),
        "has 2 files of weights such as .* but no",
    ),
    "index not JSON": (lambda at: cut(at / "model.safetensors.index.json", 30), "index.json is not JSON"),
    "index without a map": (
        lambda at: edit(at / "model.safetensors.index.json", weight_map=None),
        "index.json has no weight_map",
    ),
    "index of another file": (
        lambda at: retensor(at, TWO, lambda tensors: tensors.pop("model.norm.weight", None) or tensors.popitem()),
        f"index.json says that model.* is in {TWO}, which lacks it",
    ),
    "two sets of weights": (
        lambda at: shutil.copy(at / ONE, at / "model.safetensors"),
        "not clear which are the weights",
    ),
    "empty file": (lambda at: cut(at / ONE, 0), f"{ONE} is empty"),
    "cut in the header": (lambda at: cut(at / ONE, 100), rf"{ONE} is cut off: it has 100 bytes"),
    "cut in the data": (lambda at: cut(at / ONE, 5000), rf"{ONE} is cut off: it has 5,000 bytes, .* tells of [\d,]+;"),
    "cut by a byte": (lambda at: cut(at / ONE, (at / ONE).stat().st_size - 1), f"{ONE} is cut off"),
    "longer": (lambda at: (at / ONE).write_bytes((at / ONE).read_bytes() + b"x"), f"{ONE} is damaged: it has"),
    "zeros": (lambda at: (at / ONE).write_bytes(bytes(5000)), f"{ONE} .* is no safetensors file"),
    "LFS pointer": (
        lambda at: (at / ONE).write_bytes(LFS),
        "a Git LFS pointer to a file of 4,976,698,672 bytes; run `git",
    ),
    "pickle": (lambda at: (at / ONE).write_bytes(b"PK\x03\x04" + bytes(500)), "is no safetensors file but a pickled"),
    "web page": (lambda at: (at / ONE).write_bytes(b"<!DOCTYPE html><html>"), "is no safetensors file but a web page"),
    "pickled only": (
        lambda at: as_one_file(at, "pytorch_model.bin"),
        r"/base has no .safetensors weights; pickled weights are not supported \(it has pytorch_model.bin\); load",
    ),
    "variant only": (lambda at: as_one_file(at, "model.fp16.safetensors"), "has model.fp16.safetensors but no model"),
    "no configuration": (lambda at: (at / "config.json").unlink(), r"it has no config.json"),
    "configuration not JSON": (lambda at: cut(at / "config.json", 40), r"config.json is not JSON \("),
    "configuration is a list": (
        lambda at: (at / "config.json").write_text("[]"),
        "holds a JSON list and not an object",
    ),
    "configuration is a pointer": (
        lambda at: (at / "config.json").write_bytes(LFS),
        "config.json is a Git LFS pointer to a file of",
    ),
    "no family": (lambda at: edit(at / "config.json", model_type=None), "config.json has no model_type"),
    "unknown family": (
        lambda at: edit(at / "config.json", model_type="lama"),
        r"has model_type lama, a family that transformers [\d.]+ does not have",
    ),
    "code of its own": (
        lambda at: edit(at / "config.json", model_type="mine", auto_map={"AutoConfig": "configuration.Mine"}),
        r"family mine, which needs code of its own \(trust_remote_code\)",
    ),
    "no language model": (
        lambda at: edit(at / "config.json", model_type="vit"),
        "vit, which has no causal language model",
    ),
    "heads do not divide": (lambda at: edit(at / "config.json", num_attention_heads=5), "config.json"),
    "padding beyond": (
        lambda at: edit(at / "config.json", pad_token_id=300),
        r"config.json \(pad_token_id = 300, vocab_size = 300\) describes no",
    ),
    "generation beyond": (
        lambda at: edit(at / "generation_config.json", pad_token_id=999),
        "generation_config.json has pad_token_id = 999, but the embedding has 300 rows",
    ),
    "quantized": (
        lambda at: edit(at / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        r"config.json has a quantization_config \(gptq\): quantized weights cannot be trained",
    ),
    "adapters": (
        lambda at: (at / "adapter_config.json").write_text("{}"),
        "has an adapter_config.json, so transformers would load the model that it names",
    ),
    "no tokenizer": (
        lambda at: [path.unlink() for path in at.glob("tokenizer*")],
        r"has no tokenizer \(no tokenizer.json or tokenizer.model\)",
    ),
    "tokenizer is a pointer": (
        lambda at: (at / "tokenizer.json").write_bytes(LFS),
        "tokenizer.json is a Git LFS pointer",
    ),
    "sentencepiece is a pointer": (
        lambda at: (at / "tokenizer.model").write_bytes(LFS),
        "tokenizer.model is a Git LFS pointer",
    ),
    "tokenizer cut": (lambda at: cut(at / "tokenizer.json", 500), "tokenizer.json is not JSON"),
    "tokenizer of nothing": (lambda at: (at / "tokenizer.json").write_text("{}"), "its tokenizer cannot be used: "),
    "settings not JSON": (
        lambda at: (at / "generation_config.json").write_text("{"),
        "generation_config.json is not JSON",
    ),
    "byte order mark": (
        lambda at: mark(at / "generation_config.json"),
        r"generation_config.json is not JSON \(Unexpected UTF-8 BOM",
    ),
    "negative size": (
        lambda at: (at / ONE).write_bytes(file_of({"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}})),
        rf"{ONE} has a damaged header \(ValueError: -1 is no size\)",
    ),
    "infinite size": (
        lambda at: (at / ONE).write_bytes(
            file_of({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, float("inf")]}})
        ),
        rf"{ONE} has a damaged header \(ValueError: inf is no size\)",
    ),
    "no dtype": (
        lambda at: (at / ONE).write_bytes(
            file_of({"lm_head.weight": {"dtype": None, "shape": [1], "data_offsets": [0, 4]}})
        ),
        rf"{ONE} has a damaged header \(ValueError: None is no dtype\)",
    ),
    "no end token": (lambda at: edit(at / "tokenizer_config.json", eos_token=None), "has no end token"),
    "fewer rows": (
        lambda at: edit(at / "config.json", vocab_size=200),
        r"lm_head.weight has shape \[300, 32\], but the model's configuration calls for \[200, 32\] \(1 more differ\)",
    ),
    "other width": (
        lambda at: edit(at / "config.json", intermediate_size=96),
        r"mlp.\w+.weight has shape .* calls for .*96.* \(5 more differ\); is its config.json from another",
    ),
    "more layers": (
        lambda at: edit(at / "config.json", num_hidden_layers=3),
        r"the base model in .*/base lacks the parameters model.layers.2.* and 6 more",
    ),
    "fewer layers": (
        lambda at: edit(at / "config.json", num_hidden_layers=1),
        "has the unexpected parameters model.layers.1",
    ),
    "classifier": (
        lambda at: (
            retensor(at, ONE, lambda tensors: tensors.update({"score.weight": tensors["lm_head.weight"][:2].clone()}))
            or edit_index(at, {"score.weight": ONE})
        ),
        "has the unexpected parameters score.weight",
    ),
}
"""Damage to a good model, and what is said of it."""


def edit_index(at: Path, more: dict[str, str]) -> None:
    path = at / "model.safetensors.index.json"
    edit(path, weight_map=json.loads(path.read_text())["weight_map"] | more)


@pytest.mark.parametrize("name", FILES)
def test_a_fault_of_the_files_is_named(name: str, at: Path) -> None:
    damage, said = FILES[name]
    damage(at)
    found = fault(at)
    assert found.startswith("base_model: ")
    assert "\n" not in found
    assert re.search(said, found), found


@pytest.mark.parametrize(("stored", "name"), [("F8_E4M3", "model.norm.weight"), ("I8", "model.norm.weight")])
def test_weights_that_are_not_float_are_refused(stored: str, name: str, base: Path, tmp_path: Path) -> None:
    import torch

    at = Path(shutil.copytree(base, tmp_path / "base"))
    kind = {"F8_E4M3": torch.float8_e4m3fn, "I8": torch.int8}[stored]
    retensor(at, "model.safetensors", lambda tensors: tensors.update({name: tensors[name].to(kind)}))
    assert f"{name} is stored as {stored}: these are quantized weights" in fault(at)


LEFTOVERS = ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.inv_freq")


def test_known_leftovers_and_a_tied_output_layer_that_is_stored_are_no_faults(
    base: Path, tied: Path, tmp_path: Path
) -> None:
    import torch

    old = Path(shutil.copytree(base, tmp_path / "old"))
    retensor(old, "model.safetensors", lambda tensors: tensors.update({name: torch.ones(4) for name in LEFTOVERS}))
    assert fault(old) == ""
    stored = Path(shutil.copytree(tied, tmp_path / "stored"))
    assert fault(stored) == ""
    retensor(
        stored,
        "model.safetensors",
        lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}),
    )
    assert fault(stored) == ""


@pytest.fixture(scope="session")
def tied(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model with tied embeddings; the output layer is not stored."""
    directory = Path(shutil.copytree(base, tmp_path_factory.mktemp("tied") / "base"))
    edit(directory / "config.json", tie_word_embeddings=True)
    retensor(directory, "model.safetensors", lambda tensors: tensors.pop("lm_head.weight"))
    return directory


@pytest.mark.parametrize("family", FAMILIES)
def test_good_models_of_every_family_pass(family: str, tmp_path: Path) -> None:
    """As `save_pretrained` writes them, in several files; experts are stored one by one there."""
    make_family(family).save_pretrained(tmp_path, max_shard_size="40KB")
    make_tokenizer().save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert fault(tmp_path) == ""


def test_an_end_token_of_the_configuration_that_no_text_has_is_no_fault(at: Path) -> None:
    """The tokenizer's end token counts; a tiny GPT-2 keeps the configuration's default of 50256."""
    edit(at / "config.json", eos_token_id=50256)
    edit(at / "generation_config.json", eos_token_id=[1, 50256])
    assert fault(at) == ""


def test_a_gpt_2_under_its_old_names_passes(tmp_path: Path) -> None:
    """The files on the Hub have no prefix, and the attention's mask among the weights."""
    import torch

    make_family("gpt2").transformer.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    edit(tmp_path / "config.json", architectures=["GPT2LMHeadModel"])
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8) for layer in range(2)}
    retensor(tmp_path, "model.safetensors", lambda tensors: tensors.update(masks))
    assert "h.0.ln_1.weight" in json.dumps(sorted(safetensor_files.stored_tensors(
        str(tmp_path), {file.name: file for file in storage.find(str(tmp_path))}
    )))  # fmt: skip
    assert fault(tmp_path) == ""


@pytest.mark.parametrize(
    ("family", "masks"),
    [
        ("gpt_neo", ["attn.attention.bias", "attn.attention.masked_bias"]), ("codegen", ["attn.causal_mask"]),
        ("gptj", ["attn.bias", "attn.masked_bias"]),
    ],
)  # fmt: skip
def test_masks_among_the_weights_are_no_fault(family: str, masks: list[str], tmp_path: Path) -> None:
    """The files on the Hub are from versions of transformers that saved them."""
    import torch

    save_tiny(family, tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    retensor(
        tmp_path,
        min(path.name for path in tmp_path.glob("*.safetensors")),
        lambda tensors: tensors.update({f"transformer.h.0.{mask}": torch.ones(1, dtype=torch.bool) for mask in masks}),
    )
    assert fault(tmp_path) == ""


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_a_missing_or_odd_expert_is_named(family: str, tmp_path: Path) -> None:
    import torch

    make_family(family).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    found: list[str] = []

    def remove(tensors: dict[str, Any]) -> None:
        found.append(next(name for name in tensors if ".experts.2." in name))
        del tensors[found[0]]

    retensor(tmp_path, "model.safetensors", remove)
    assert f"{tmp_path} lacks {found[0]}, though there are 4 experts" in fault(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    retensor(tmp_path, "model.safetensors", lambda tensors: tensors.update({found[0]: torch.ones(5, 5)}))
    assert f"{found[0]} has shape [5, 5], but those of the other experts have" in fault(tmp_path)


def with_tokens(at: Path, tokenizer: Any) -> str:
    tokenizer.save_pretrained(at)
    return fault(at)


def test_tokens_without_a_row_in_the_embedding_are_named_unless_no_text_gives_them(at: Path) -> None:
    """Gemma 3's text models have a token for images beyond their embedding."""
    from tokenizers import AddedToken

    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(f"<unused{number}>", special=True) for number in range(20)])
    tokenizer.add_tokens([AddedToken("<image>", special=True)])
    assert len(tokenizer) > 300
    assert with_tokens(at, tokenizer) == ""
    tokenizer.add_tokens(["Arle"])
    assert "its tokenizer gives ids up to 306 ('Arle'), but the embedding has 300 rows, so 1 tokens" in with_tokens(
        at, tokenizer
    )
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(f"<unused{number}>", special=True) for number in range(20)])
    tokenizer.add_tokens([AddedToken("<image>", special=True)])
    tokenizer.pad_token = "<image>"
    beyond = tokenizer.pad_token_id
    expected = f"its tokenizer's padding token '<image>' has id {beyond}, but the embedding has 300 rows"
    assert expected in with_tokens(at, tokenizer)
    tokenizer.pad_token = None
    tokenizer.eos_token = "<image>"
    assert f"its tokenizer's end token '<image>' has id {beyond}" in with_tokens(at, tokenizer)


def test_a_tokenizer_of_another_model_is_named(at: Path) -> None:
    edit(at / "config.json", vocab_size=280)

    def narrow(tensors: dict[str, Any]) -> None:
        for name in tensors.keys() & {"model.embed_tokens.weight", "lm_head.weight"}:
            tensors[name] = tensors[name][:280].clone()

    for file in (ONE, TWO):
        retensor(at, file, narrow)
    found = fault(at)
    highest = max(make_tokenizer().get_vocab().values())
    assert f"its tokenizer gives ids up to {highest}" in found
    assert "the embedding has 280 rows" in found


def stopped(base: Path, tokens: pa.Table, tmp_path: Path, **changes: Any) -> str:
    """Return the verdict on a training that must stop before its first step."""
    uri = str(tmp_path / "tokens.parquet")
    pq.write_table(tokens, uri)
    told: list[Any] = []
    with pytest.raises(TrainingStopped) as verdict:
        train(
            job(base, (uri,), tmp_path / "model", **changes),
            TrainPlacement(zero_stage=2, micro_batch_tokens=600),
            Session.alone(str(tmp_path / "checkpoints"), told.append),
        )
    assert not told
    return str(verdict.value)


def changed(tokens: pa.Table, **columns: Callable[[Any], Any]) -> pa.Table:
    """Return a table of tokens with a function applied to some columns."""
    made = [{name: columns[name](value) if name in columns else value for name, value in row.items()}
            for row in tokens.to_pylist()]  # fmt: skip
    return pa.Table.from_pylist(made, schema=tokens.schema)


def test_examples_that_the_model_cannot_learn_from_stop_the_training_before_its_first_step(
    base: Path, tokenizer: Any, tmp_path: Path
) -> None:
    tokens = tokens_of(rows(30), tokenizer)
    high = changed(tokens, ids=lambda ids: [*ids[:-2], 300, ids[-1]])
    first = min(tokens["id"].to_pylist())
    assert f"example {first} has the token id 300, but the embedding of {base} has 300 rows" in stopped(
        base, high, tmp_path
    )
    assert "has the token id -1," in stopped(base, changed(tokens, ids=lambda ids: [-1, *ids[1:]]), tmp_path)
    empty = changed(tokens, loss_start=lambda start: 1000)
    assert "and its target begins at token 1000, so it has no prompt or no target" in stopped(base, empty, tmp_path)
    other = changed(tokens, ids=lambda ids: [*ids[:-1], 5])
    assert "27 of 27 examples do not begin with the start token and end with the end token" in stopped(
        base, other, tmp_path
    )
    long = changed(tokens, ids=lambda ids: [*ids[:-1], *ids[1:-1] * 9, ids[-1]])
    assert f"tokens, but the context of {base} has 256; its token files were made for another model" in stopped(
        base, long, tmp_path
    )


def test_a_share_that_holds_out_every_pair_is_blamed_and_not_the_length(
    base: Path, tokenizer: Any, tmp_path: Path
) -> None:
    seeds = [row | {"source": "seed"} for row in rows(30)]
    said = stopped(base, tokens_of(seeds, tokenizer), tmp_path, validation_share=0.9999999)
    assert "validation_share = 0.9999999 holds out all 27 seed pairs, and there are no others; lower it" in said
    assert "longer" not in said


def test_pairs_that_are_all_too_long_are_told_with_both_limits(base: Path, tokenizer: Any, tmp_path: Path) -> None:
    long = tokens_of(rows(30), tokenizer, limit=9)
    said = stopped(base, long, tmp_path)
    assert "27 of 27 pairs are longer than 2048 tokens or the base model's context of 256; use a model" in said
    assert "longer than 100 tokens; raise train.recipe.max_length_tokens" in stopped(
        base, long, tmp_path, max_length_tokens=100
    )


def test_a_training_under_zero_2_names_a_shape_that_differs(at: Path, tokenizer: Any, tmp_path: Path) -> None:
    edit(at / "config.json", vocab_size=200)
    said = stopped(at, tokens_of(rows(3), tokenizer), tmp_path)
    assert said.startswith(f"m0: its base model: {at}: ")
    assert "has shape [300, 32], but the model's configuration calls for [200, 32]" in said


def opened(root: Path, base: str, trains: bool = True, *overrides: str) -> Run:
    return Run(load(RunConfig, DEMO, [f"root={root}", f"base_model={base}", *overrides]), trains=trains)


def test_a_run_that_trains_refuses_its_base_model_before_it_is_hashed_or_anything_is_written(
    at: Path, tmp_path: Path
) -> None:
    cut(at / TWO, 500)
    root = tmp_path / "run"
    for overrides in ((), ("check_packages=false",)):
        with pytest.raises(ConfigError, match=rf"^base_model: {at}/{TWO} is cut off"):
            opened(root, str(at), True, *overrides)
    assert not (root / "hashes.json").exists()
    assert not (root / "run.json").exists()
    opened(root, str(at), trains=False)  # another stage may need only its tokenizer


def test_a_run_refuses_adapters_that_do_not_fit_the_base_model(at: Path, tmp_path: Path) -> None:
    method = "train.recipe.method={kind: lora, targets: [query]}"
    with pytest.raises(ConfigError, match=r"^train.recipe.method.targets: query matches no layer of LlamaForCausalLM"):
        opened(tmp_path / "run", str(at), True, method)


def test_a_model_in_a_bucket_is_checked_without_reading_its_weights(
    s3_bucket: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{s3_bucket}/base-checked"
    at = Path(shutil.copytree(base, tmp_path / "base"))
    storage.upload_directory(at, uri)
    read: list[int] = []
    original = storage.read_part
    monkeypatch.setattr(storage, "read_part", lambda *span: read.append(len(data := original(*span))) or data)
    monkeypatch.setattr(safetensor_files, "FIRST_BYTES", 64)  # the header is longer, so two requests fetch it
    assert fault(uri) == ""
    assert sum(read) < (at / "model.safetensors").stat().st_size / 10
    cut(at / "model.safetensors", 20_000)
    storage.upload_file(at / "model.safetensors", f"{uri}/model.safetensors")
    assert f"base_model: {uri}/model.safetensors is cut off: it has 20,000 bytes" in fault(uri)
    assert "base_model: s3://" in fault(f"{s3_bucket}/nothing-there")


def test_a_directory_given_with_its_versions_is_checked_by_the_files_it_names(base: Path) -> None:
    files = tuple(replace(file, version="") for file in storage.find(str(base)) if file.name != "config.json")
    found = looked_at(storage.Directory(str(base), files), TrainRecipe(), "m0")
    assert found == f"m0: {base} is not a model directory (it has no config.json)"
