import json
from pathlib import Path
from typing import Any

import pytest

from humpback_ray.prompts.chat import ChatRecipe, encode_prompt
from humpback_ray.train import export
from humpback_ray.train.job import TrainingStopped, TrainJob
from humpback_ray.train.tokens import encode_pair
from tests.train.conftest import make_tokenizer, rows
from tests.train.workers import job


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attention_dropout=0.1).eval()


def write(model: Any, base: Path, tokenizer: Any, this: TrainJob, directory: Path, dtype: str = "float32") -> Path:
    export.write_weights(model, directory)
    export.write_configuration(base, type(model).__name__, dtype, directory)
    export.write_tokenizer(tokenizer, this, directory)
    return directory


def logits_of(model: Any, ids: list[int]) -> Any:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].float()


def probe(tokenizer: Any, this: TrainJob) -> list[int]:
    return encode_prompt(tokenizer, export.probe_prompt(this.chat, this.direction))


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("pad", [False, True])
def test_an_exported_model_is_loaded_again_and_is_the_same(
    model: Any, base: Path, tmp_path: Path, direction: str, pad: bool
) -> None:
    tokenizer = make_tokenizer(pad)
    this = job(base, (), tmp_path, direction=direction, dtype="float32")
    write(model, base, tokenizer, this, tmp_path)
    ids = probe(tokenizer, this)
    export.verify(tmp_path, ids, logits_of(model, ids), this)


def test_an_export_that_is_not_the_trained_model_is_refused(
    model: Any, base: Path, tokenizer: Any, tmp_path: Path
) -> None:
    this = job(base, (), tmp_path, dtype="float32")
    write(model, base, tokenizer, this, tmp_path)
    ids = probe(tokenizer, this)
    with pytest.raises(TrainingStopped, match="is not the trained model: logits differ by"):
        export.verify(tmp_path, ids, logits_of(model, ids).flip(-1), this)
    with pytest.raises(TrainingStopped, match="is not the trained model"):
        export.verify(tmp_path, ids, logits_of(model, ids) * float("nan"), this)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_served_template_renders_byte_for_byte_what_training_saw(
    base: Path, tmp_path: Path, tokenizer: Any, direction: Any
) -> None:
    from transformers import AutoTokenizer

    this = job(base, (), tmp_path, direction=direction)
    export.write_tokenizer(tokenizer, this, tmp_path)
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
    export.write_tokenizer(tokenizer, job(base, (), tmp_path), tmp_path)
    forward = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert forward == "<s>" + chat.forward_prompt("Why?", "both")
    export.write_tokenizer(tokenizer, job(base, (), tmp_path, direction="backward"), tmp_path)
    backward = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert backward == "<s>" + chat.backward_prompt("Why?")


def test_the_configuration_is_the_bases_with_the_exported_dtype(
    model: Any, base: Path, tokenizer: Any, tmp_path: Path
) -> None:
    write(model, base, tokenizer, job(base, (), tmp_path), tmp_path, dtype="bfloat16")
    before, after = (json.loads((directory / "config.json").read_text()) for directory in (base, tmp_path))
    assert after == before | {"dtype": "bfloat16"}
    assert after["attention_dropout"] == 0.05
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert (generation["do_sample"], generation["temperature"], generation["top_p"]) == (True, 0.7, 0.9)
    assert (generation["bos_token_id"], generation["eos_token_id"], generation["pad_token_id"]) == (0, 1, 1)


def test_weights_larger_than_a_shard_are_split_and_indexed(
    model: Any, base: Path, tokenizer: Any, tmp_path: Path
) -> None:
    this = job(base, (), tmp_path, dtype="float32")
    export.write_weights(model, tmp_path, shard_bytes=30_000)
    export.write_configuration(base, type(model).__name__, "float32", tmp_path)
    export.write_tokenizer(tokenizer, this, tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert set(index["weight_map"].values()) == set(files)
    assert set(index["weight_map"]) == set(model.state_dict())
    ids = probe(tokenizer, this)
    export.verify(tmp_path, ids, logits_of(model, ids), this)
