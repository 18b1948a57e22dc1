"""Weights under ZeRO 3: each worker reads only its own part; layouts with offloading and checkpointing agree."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from humpback_ray.placement import TrainPlacement
from humpback_ray.train.engine.weights import pieces, refuse_names, stored_names
from humpback_ray.train.engine.zero import engine_config, load_model
from humpback_ray.train.job import TrainingStopped
from humpback_ray.train.recipe import TrainRecipe
from tests.train.conftest import plain_loop
from tests.train.workers import RECIPE, Case, job, run, spawned

STEPS = {"m0": 3}
ZERO3 = TrainPlacement(workers=2, zero_stage=3)


def make_model(directory: Path, kind: str, **shape: Any) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=301, num_attention_heads=8, num_key_value_heads=4, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory, max_shard_size="30MB")
    return directory


def anonymous_bytes() -> int:
    """Return this process's memory that is not backed by a file."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


class Highest:
    """The peak of anonymous memory in a `with` block, above that at its start."""

    def __enter__(self) -> "Highest":
        self.start = self.most = anonymous_bytes()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def look(self) -> None:
        while not self.over.is_set():
            self.most = max(self.most, anonymous_bytes())
            time.sleep(0.002)

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()

    @property
    def bytes(self) -> int:
        return self.most - self.start


def load_parts(rank: int, workers: int, directory: Path, base: Path, small: Path) -> None:
    """Load a model in parts, measure the memory that takes, and compare every parameter with the file's."""
    import torch
    from transformers import AutoModelForCausalLM

    from humpback_ray.train.engine import weights
    from humpback_ray.train.engine.zero import import_deepspeed

    filling: list[int] = []
    fill = weights.fill

    def measured(*arguments: Any) -> set[str]:
        with Highest() as highest:
            missing = fill(*arguments)
        filling.append(highest.bytes)
        return missing

    weights.fill = measured
    zero = import_deepspeed(gpu=False).zero
    recipe = TrainRecipe(dtype="float32", dropout=0.0)
    engine = engine_config(ZERO3, recipe)
    load_model(small, recipe, engine)  # memory that libraries take at their first use does not count
    with Highest() as highest:
        model, _ = load_model(base, recipe, engine)
    whole: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    size = sum(parameter.numel() * 4 for parameter in whole.parameters())
    differ = []
    for name, parameter in model.named_parameters():
        with zero.GatheredParameters([parameter]):
            if not torch.equal(parameter.data, whole.get_parameter(name)):
                differ.append(name)
    found = {"size": size, "highest": highest.bytes, "filling": filling[-1], "differ": differ}
    (directory / f"{rank}.json").write_text(json.dumps(found))


def test_no_worker_holds_the_whole_model_and_every_parameter_equals_the_file(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "llama", hidden_size=512, intermediate_size=1409, num_hidden_layers=12)
    small = make_model(tmp_path / "small", "llama", hidden_size=64, intermediate_size=65, num_hidden_layers=1)
    assert (base / "model.safetensors.index.json").exists(), "several files"
    spawned(load_parts, 2, tmp_path, base, small)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert not found["differ"]
        assert found["size"] / 2 < found["highest"] < 0.8 * found["size"]


@pytest.mark.chaos
def test_a_worker_converts_one_parameter_at_a_time(tmp_path: Path) -> None:
    """The largest is a fiftieth of the model; while it is converted, its input and output are held."""
    base = make_model(tmp_path / "base", "mixtral", hidden_size=128, intermediate_size=700, num_hidden_layers=32)
    small = make_model(tmp_path / "small", "mixtral", hidden_size=64, intermediate_size=65, num_hidden_layers=1)
    spawned(load_parts, 2, tmp_path, base, small)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert not found["differ"]
        assert found["filling"] < 0.2 * found["size"]


@pytest.mark.parametrize("shape", [(7, 5), (35,), (7, 5, 1), (2, 3, 4)])
def test_a_part_is_read_row_by_row_wherever_it_begins_and_ends(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from humpback_ray.train.engine import weights

    monkeypatch.setattr(weights, "PIECE_ELEMENTS", 11)
    tensor = torch.arange(torch.Size(shape).numel()).view(shape)
    for first in range(tensor.numel()):
        for last in range(first, tensor.numel() + 1):
            found = list(pieces(tensor, shape, first, last))
            assert [number for start, piece in found for number in range(start, start + len(piece))] == [
                number for _, piece in found for number in piece.tolist()
            ]
            assert torch.cat([torch.tensor([], dtype=torch.long), *(piece for _, piece in found)]).tolist() == [
                *range(first, last)
            ]


def test_the_error_names_missing_and_unexpected_parameters() -> None:
    refuse_names(Path("base"), [], ["transformer.h.0.attn.masked_bias"])
    with pytest.raises(TrainingStopped, match=r"base lacks the parameters lm_head.weight; is its config.json from"):
        refuse_names(Path("base"), ["lm_head.weight"], [])
    with pytest.raises(TrainingStopped, match=r"has the unexpected parameters a, b, c and 1 more;"):
        refuse_names(Path("base"), [], ["d", "c", "b", "a"])


def rewrite(base: Path, directory: Path, change: str) -> Path:
    """Copy a model with a missing tensor, an extra one, or one of another shape."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, directory)
    tensors = load_file(directory / "model.safetensors")
    if change == "missing":
        del tensors["model.layers.1.mlp.up_proj.weight"]
    elif change == "unexpected":
        tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(2)
    elif change == "known leftover":
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(2)
    elif change == "shape":
        tensors["model.norm.weight"] = torch.zeros(3)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_layouts_agree_and_weights_that_do_not_match_the_configuration_are_refused(
    base: Path, pairs: tuple[str, ...], tmp_path: Path
) -> None:
    """Two workers under ZeRO 3: with activation checkpointing, with everything offloaded, and with wrong files."""
    layouts = {
        "plain": {"zero_stage": 3},
        "checkpointing": {"zero_stage": 3, "activation_checkpointing": True},
        "checkpointing-2": {"zero_stage": 2, "activation_checkpointing": True},
        "offloaded": {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True},
        "offloaded-2": {"zero_stage": 2, "offload_optimizer": True},
    }
    lies = ("missing", "unexpected", "shape", "known leftover")
    cases = [
        Case(
            name, job(base, pairs, tmp_path / name, steps=STEPS), TrainPlacement.model_validate({"workers": 2} | layout)
        )
        for name, layout in layouts.items()
    ]
    for change in lies:
        other = rewrite(base, tmp_path / f"base-{change}", change)
        for stage in (3,) if change in ("shape", "known leftover") else (2, 3):
            name = f"{change}-{stage}"
            placement = TrainPlacement.model_validate({"workers": 2, "zero_stage": stage})
            cases.append(Case(name, job(other, pairs, tmp_path / name, steps=STEPS), placement))
    found = run(cases, 2, tmp_path / "run")
    expected = [loss for loss, _ in plain_loop(base, pairs, RECIPE.model_copy(update={"steps": STEPS}))]
    for name in [*layouts, "known leftover-3"]:
        losses = [row["loss"] for row in found[name]["metrics"]]
        assert losses == pytest.approx(expected, rel=1e-5), name
    for stage in (2, 3):
        assert "lacks the parameters model.layers.1.mlp.up_proj.weight" in found[f"missing-{stage}"]["stopped"]
        assert "model.layers.2.mlp.up_proj.weight" in found[f"unexpected-{stage}"]["stopped"]
    assert "model.norm.weight has shape [3]" in found["shape-3"]["stopped"]
    assert "[32]" in found["shape-3"]["stopped"]


def test_a_tensor_that_only_the_index_lacks_is_found(tmp_path: Path) -> None:
    """transformers, too, takes from the index only the names of the files."""
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "one.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    assert stored_names(tmp_path) == {"one.safetensors": ["a", "b"]}
