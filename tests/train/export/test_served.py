"""A served conversation has the tokens of training, or training does not start."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from humpback_ray.prompts.chat import ChatRecipe, TurnFormat, encode_example, start_ids
from humpback_ray.train.export import directory, reload
from humpback_ray.train.job import TrainingStopped
from humpback_ray.train.loop import Session, train
from tests.prompts import families
from tests.train.test_single import PLACEMENT
from tests.train.tiny import make_family
from tests.train.workers import job


def written(base: Path, tokenizer: Any, at: Path) -> Any:
    """Return a base model's tokenizer as loaded from its directory."""
    from transformers import AutoTokenizer

    at.mkdir()
    shutil.copy(base / "config.json", at)
    tokenizer.save_pretrained(at)
    return AutoTokenizer.from_pretrained(at)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_family_is_served_as_it_is_trained(base: Path, tmp_path: Path, family: str, bos: bool) -> None:
    from transformers import AutoTokenizer

    tokenizer = written(base, families.FAMILIES[family](bos), tmp_path / "base")
    assert bool(start_ids(tokenizer)) == bos
    for direction in ("forward", "backward"):
        this = job(tmp_path / "base", (), tmp_path / direction, direction=direction)
        assert directory.served_unlike(tokenizer, tmp_path / "base", this) is None
        directory.write_tokenizer(tokenizer, this, tmp_path / direction)
        prompt = this.chat.backward_prompt if direction == "backward" else this.chat.forward_prompt
        messages, trained = [], []
        for asked, answered in [("Which river?", "It is so."), ("Yes?", "Yes. No."), ("3 or 14?", "- 3\n- 14")]:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
            ids = encode_example(tokenizer, prompt(asked), answered).ids
            trained += ids[len(start_ids(tokenizer)) :] if trained else ids
        served = AutoTokenizer.from_pretrained(tmp_path / direction)
        assert served.apply_chat_template(messages, return_dict=False) == trained


def test_tokens_that_cannot_agree_are_reported_before_training(base: Path, tmp_path: Path) -> None:
    # Its end token is only recognized after "▁", so in a conversation it would be text.
    tokenizer = written(base, families.prepending(True, normalized=True), tmp_path / "base")
    this = job(tmp_path / "base", ("no/such/tokens",), tmp_path / "model")
    said = directory.served_unlike(tokenizer, tmp_path / "base", this)
    assert said
    assert "m0 would be served other tokens than it is trained on: in message 2 (assistant)" in said
    assert "'▁</s>'" in said
    make_family("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "base")
    with pytest.raises(TrainingStopped, match="m0 would be served other tokens"):
        train(this, PLACEMENT, Session.alone(str(tmp_path / "checkpoints")))


def test_a_layout_whose_parts_a_tokenizer_joins_is_refused(base: Path, tmp_path: Path) -> None:
    tokenizer = written(base, families.byte_level(True), tmp_path / "base")
    fused = ChatRecipe(forward=TurnFormat(opening="", turn=" "), seed_tag=None, web_tag=None)
    this = job(tmp_path / "base", (), tmp_path / "model", chat=fused)
    assert "(assistant), from token" in (directory.served_unlike(tokenizer, tmp_path / "base", this) or "")


def test_a_written_template_is_compared_with_training_again(base: Path, tmp_path: Path) -> None:
    tokenizer = written(base, families.llama(True), tmp_path / "base")
    this = job(tmp_path / "base", (), tmp_path / "model")
    directory.write_tokenizer(tokenizer, this, tmp_path / "model")
    assert reload.unlike_training(tmp_path / "model", tokenizer, this) is None
    template = tmp_path / "model/chat_template.jinja"
    template.write_text(template.read_text().replace("{{- bos_token }}", "{{- bos_token + ' ' }}"))
    assert "in message 1 (user)" in (reload.unlike_training(tmp_path / "model", tokenizer, this) or "")
