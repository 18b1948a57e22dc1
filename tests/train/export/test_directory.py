import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from humpback_ray import storage
from humpback_ray.prompts.chat import ChatRecipe, encode_prompt
from humpback_ray.train.data.tokens import encode_pair
from humpback_ray.train.export import directory, reload
from humpback_ray.train.export.directory import Shelf
from humpback_ray.train.job import TrainingStopped, TrainJob
from tests.conftest import Said
from tests.train.conftest import make_tokenizer, rows
from tests.train.workers import job


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attention_dropout=0.1).eval()


class InMemory:
    """A model with the members of an engine that the export uses."""

    def __init__(self, module: Any) -> None:
        import torch

        self.module, self.device = module, torch.device("cpu")

    def eval(self) -> None:
        self.module.eval()

    def __call__(self, **arguments: Any) -> Any:
        return self.module(**arguments)


def write(model: Any, base: Path, tokenizer: Any, this: TrainJob, scratch: Path, shard_bytes: int = 1 << 30) -> Shelf:
    """Write a model to `this.export_uri`."""
    scratch.mkdir(exist_ok=True)
    with Shelf(this.export_uri, scratch) as shelf:
        directory.write_weights(list(directory.parts(model)), shelf, shard_bytes)
        directory.write_configuration(base, type(model).__name__, this.recipe.dtype, scratch)
        directory.write_tokenizer(tokenizer, this, scratch)
        shelf.put_rest()
    return shelf


LONG = [number % 250 + 3 for number in range(0, 7 * 240, 7)]
"""Tokens of an example that nearly fills the context of 256."""


def asked(
    model: Any, tokenizer: Any, this: TrainJob, limit_tokens: int = 256, longest: Sequence[int] = LONG
) -> reload.Probe:
    prompt = encode_prompt(tokenizer, reload.probe_prompt(this.chat, this.direction))
    engine: Any = InMemory(model)
    return reload.probe(engine, prompt, longest, limit_tokens)


@pytest.fixture
def this(base: Path, tmp_path: Path) -> TrainJob:
    return job(base, (), tmp_path / "model", dtype="float32")


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("pad", [False, True])
def test_an_exported_model_is_loaded_again_and_is_the_same(
    model: Any, base: Path, tmp_path: Path, direction: str, pad: bool
) -> None:
    tokenizer = make_tokenizer(pad)
    this = job(base, (), tmp_path / "model", direction=direction, dtype="float32")
    write(model, base, tokenizer, this, tmp_path / "scratch")
    probe = asked(model, tokenizer, this)
    assert len(probe.greedy) == 16
    reload.check_directory(tmp_path / "model", probe, this)


@pytest.mark.parametrize("tied", [False, True])
def test_larger_weights_are_split_indexed_and_read_from_disk_where_memory_is_short(
    base: Path, tokenizer: Any, this: TrainJob, tmp_path: Path, tied: bool, said: Said
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base, tie_word_embeddings=tied)
    config.save_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    shelf = write(model, tmp_path / "base", tokenizer, this, tmp_path / "scratch", shard_bytes=30_000)
    target = tmp_path / "model"
    index = json.loads((target / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in target.glob("*.safetensors"))
    assert files == [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    assert len(files) > 2
    assert set(index["weight_map"].values()) == set(files)
    parameters = {name for name, _ in model.named_parameters()}
    assert set(index["weight_map"]) == parameters == set(model.state_dict()) - ({"lm_head.weight"} if tied else set())
    assert index["metadata"]["total_size"] == 4 * model.num_parameters()
    assert {(e.name, e.bytes, e.sha256) for e in shelf.entries} == {
        (path.name, path.stat().st_size, storage.sha256_of(str(path))) for path in target.iterdir()
    }
    assert not list((tmp_path / "scratch").rglob("*")), "nothing is on the disk twice"
    reload.check_directory(target, asked(model, tokenizer, this), this, host_bytes=60_000)
    reload.check_directory(target, asked(model, tokenizer, this), this)
    once, whole = (message for _, message in said.records)
    assert "loaded again from disk" in once
    assert "16 of 16 greedy tokens agree, 1 generated" in once
    assert "16 of 16 greedy tokens agree, 16 generated" in whole


@pytest.mark.s3
def test_with_object_storage_the_local_files_stay_until_the_check(
    model: Any, base: Path, tokenizer: Any, tmp_path: Path, s3_bucket: str
) -> None:
    this = job(base, (), Path("nowhere"), dtype="float32")
    this = dataclasses.replace(this, export_uri=f"{s3_bucket}/{tmp_path.name}/model")
    shelf = write(model, base, tokenizer, this, tmp_path / "scratch", shard_bytes=30_000)
    reload.check_directory(shelf.directory, asked(model, tokenizer, this), this)
    assert shelf.directory == tmp_path / "scratch"
    for entry in shelf.entries:
        assert storage.sha256_of(f"{this.export_uri}/{entry.name}") == entry.sha256
    assert {entry.name for entry in shelf.entries} == {path.name for path in shelf.directory.iterdir()}


def test_an_export_that_is_not_the_trained_model_is_refused(
    model: Any, base: Path, tokenizer: Any, this: TrainJob, tmp_path: Path
) -> None:
    write(model, base, tokenizer, this, tmp_path / "scratch")
    probe, target = asked(model, tokenizer, this), tmp_path / "model"
    late = probe.long.logits.clone()
    late[-1] = late[-1].flip(-1)
    nan = probe.short.logits * float("nan")
    wrong = {
        r"m0 is not the trained model: logits differ by [\d.]+ of the largest at token 240 of 240, but 0.0005 is the": (
            dataclasses.replace(probe, long=dataclasses.replace(probe.long, logits=late))
        ),
        r"logits differ by nan of the largest at token 1 of \d+": (
            dataclasses.replace(probe, short=dataclasses.replace(probe.short, logits=nan))
        ),
        "greedy token 16 of 16 is 7 in memory and": dataclasses.replace(probe, greedy=[*probe.greedy[:-1], 7]),
        "encodes the probe prompt differently": dataclasses.replace(probe, prompt=[5, *probe.prompt[1:]]),
    }
    for said, other in wrong.items():
        with pytest.raises(TrainingStopped, match=said):
            reload.check_directory(target, other, this)


def test_the_error_names_a_missing_weight_that_transformers_would_initialize(
    model: Any, base: Path, tokenizer: Any, this: TrainJob, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    write(model, base, tokenizer, this, tmp_path / "scratch")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.scale"] = weights.pop("model.norm.weight")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(TrainingStopped, match=r"2 weights are missing or unexpected, the first is model\.norm\.scale"):
        reload.check_directory(tmp_path / "model", asked(model, tokenizer, this), this)


def test_a_written_file_is_compared_bit_for_bit(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {"a": torch.zeros(3), "b": torch.tensor(2.0), "c": torch.ones(2, 2, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "x.safetensors")
    directory.check_file(tmp_path / "x.safetensors", tensors)
    minus = tensors | {"a": -torch.zeros(3)}
    for changed, said in ((minus, "1 of 3 tensors differ or are missing (a)"), (tensors | {"d": minus["a"]}, "(d)")):
        with pytest.raises(TrainingStopped, match=re.escape(said)):
            directory.check_file(tmp_path / "x.safetensors", changed)


def test_a_disk_that_is_too_small_is_reported_before_training(tmp_path: Path) -> None:
    assert directory.lacking_room(str(tmp_path / "not" / "yet"), 1) is None
    said = directory.lacking_room(str(tmp_path / "not" / "yet"), 1 << 60)
    assert said
    assert f"1,152,921,504,606,846,976 bytes, and {tmp_path}, where" in said
    assert "TMPDIR" in str(directory.lacking_room("s3://bucket/model", 1 << 60))


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_served_template_renders_byte_for_byte_what_training_saw(
    base: Path, tmp_path: Path, tokenizer: Any, direction: Any
) -> None:
    from transformers import AutoTokenizer

    this = job(base, (), tmp_path, direction=direction)
    directory.write_tokenizer(tokenizer, this, tmp_path)
    served = AutoTokenizer.from_pretrained(tmp_path)
    for row in rows(6):
        asked, answered = row["instruction"], row["response"]
        if direction == "backward":
            asked, answered = answered, asked
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        tags = this.chat.tags(row["source"])
        text = served.apply_chat_template(
            messages, tokenize=False, source_tags=list(tags) if direction == "forward" else []
        )
        example = encode_pair(row, tokenizer, this.chat, direction)
        assert text == tokenizer.decode(example.ids)
        assert served.encode(text, add_special_tokens=False) == example.ids


def test_served_instructions_carry_both_tags_unless_the_model_is_backward(
    base: Path, tmp_path: Path, tokenizer: Any
) -> None:
    chat = ChatRecipe()
    messages = [{"role": "user", "content": "Why?"}]
    directory.write_tokenizer(tokenizer, job(base, (), tmp_path), tmp_path)
    forward = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert forward == "<s>" + chat.forward_prompt("Why?", "both")
    directory.write_tokenizer(tokenizer, job(base, (), tmp_path, direction="backward"), tmp_path)
    backward = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert backward == "<s>" + chat.backward_prompt("Why?")


def test_the_configuration_is_the_base_models_with_the_exported_dtype(
    model: Any, base: Path, tokenizer: Any, tmp_path: Path
) -> None:
    this = job(base, (), tmp_path / "model", dtype="bfloat16")
    write(model, base, tokenizer, this, tmp_path / "scratch")
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (base, tmp_path / "model"))
    assert after == before | {"dtype": "bfloat16"}
    assert after["attention_dropout"] == 0.05
    generation = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert (generation["do_sample"], generation["temperature"], generation["top_p"]) == (True, 0.7, 0.9)
    assert (generation["bos_token_id"], generation["eos_token_id"], generation["pad_token_id"]) == (0, 1, 1)
