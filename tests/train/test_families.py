"""Every family is loaded as `from_pretrained` loads it and exported as `save_pretrained` writes it."""

import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from humpback_ray.placement import TrainPlacement
from humpback_ray.train.engine import group, zero
from humpback_ray.train.export.directory import Part, parts, write_configuration, write_weights
from humpback_ray.train.job import TrainingStopped
from humpback_ray.train.recipe import Lora, TrainRecipe
from tests.train import families
from tests.train.conftest import plain_loop
from tests.train.families import save_tiny
from tests.train.workers import RECIPE, Case, job, run

MATRIX = [
    *families.REPRESENTATIVES,
    *(pytest.param(family, marks=pytest.mark.chaos) for family in families.REST),
]


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """Let this process be the only worker."""
    zero.import_deepspeed(gpu=False)
    with group.joined(1, gpu=False):
        yield


class Kept:
    """A shelf that keeps the files where they were written."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        scratch.mkdir()

    def put(self, path: Path) -> None:
        pass


def stored(directory: Path) -> dict[str, Any]:
    """Return the tensors of all files, by name."""
    from safetensors.torch import load_file

    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}


def configuration(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text())


def exported(model: Any, directory: Path, shard_bytes: int = 20_000) -> dict[str, Any]:
    """Export a model's weights; return them as they are in the files."""
    shelf: Any = Kept(directory)
    write_weights(list(parts(model)), shelf, shard_bytes)
    return stored(directory)


def plain(base: Path, dtype: str) -> Any:
    """Load a model with transformers alone."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=dtype, use_safetensors=True)


def loaded(base: Path, dtype: str, stage: int) -> Any:
    """Load a model for training; parameters are in the dtype that DeepSpeed gives them when it starts."""
    import torch

    recipe = TrainRecipe.model_validate({"dtype": dtype, "dropout": 0.0})
    placement = TrainPlacement.model_validate({"zero_stage": stage})
    model, _ = zero.load_model(base, recipe, zero.engine_config(placement, recipe))
    if stage < 3:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(getattr(torch, dtype))
    return model


def whole_parameters(model: Any) -> dict[str, Any]:
    """Return all parameters, partitioned ones gathered."""
    from deepspeed.runtime.zero import GatheredParameters

    found = {}
    for name, parameter in model.named_parameters():
        with GatheredParameters([parameter]):
            found[name] = parameter.detach().clone()
    return found


def rest_of(model: Any) -> dict[str, Any]:
    """Return all buffers, and every number or tensor that a module has as a plain attribute."""
    import torch

    found = dict(model.named_buffers(remove_duplicate=False))
    for owner, module in model.named_modules():
        for name, value in vars(module).items():
            ours = name.startswith(("_", "ds_")) or "drop" in name or name in ("p", "training")
            if isinstance(value, torch.Tensor | int | float) and not ours:
                found[f"{owner}.{name}"] = torch.as_tensor(value)
    return found


def unlike(found: dict[str, Any], expected: dict[str, Any], rounded: Any = None) -> list[str]:
    """Name the tensors that differ in presence, dtype, shape or value; values may be rounded to a dtype before."""
    import torch

    wrong = sorted(found.keys() ^ expected.keys())
    for name in sorted(found.keys() & expected.keys()):
        one, other = found[name], expected[name]
        if rounded is not None and other.is_floating_point():
            one, other = one.to(rounded).to(one.dtype), other.to(rounded).to(other.dtype)
        alike = (one.dtype, one.shape) == (other.dtype, other.shape)
        if not alike or not torch.equal(one.nan_to_num(), other.nan_to_num()):
            wrong.append(f"{name}: {one.dtype} {list(one.shape)}, expected {other.dtype} {list(other.shape)}")
    return wrong


@pytest.mark.parametrize("family", MATRIX)
def test_a_family_is_loaded_and_exported_as_transformers_does(family: str, alone: None, tmp_path: Path) -> None:
    """In bfloat16 and float32, under ZeRO 3 and below: parameters, buffers and files are transformers' own.

    DeepSpeed rounds the parameters that a family keeps in float32.
    """
    import torch

    save_tiny(family, tmp_path / "base")
    for dtype in ("bfloat16", "float32"):
        rounded = getattr(torch, dtype)
        model = plain(tmp_path / "base", dtype)
        parameters = {name: one.detach().to(rounded) for name, one in model.named_parameters()}
        rest = rest_of(model)
        model.save_pretrained(tmp_path / f"plain-{dtype}")
        expected = stored(tmp_path / f"plain-{dtype}")
        for stage in (2, 3):
            model = loaded(tmp_path / "base", dtype, stage)
            where = f"{dtype}, ZeRO {stage}"
            assert not unlike(whole_parameters(model), parameters), where
            assert not unlike(rest_of(model), rest), where
            assert not unlike(exported(model, tmp_path / f"{dtype}-{stage}"), expected, rounded), where
            write_configuration(tmp_path / "base", type(model).__name__, dtype, tmp_path / f"{dtype}-{stage}")
            assert configuration(tmp_path / f"{dtype}-{stage}") == configuration(tmp_path / f"plain-{dtype}") | {
                "dtype": dtype  # transformers writes that of the first parameter
            }, where


def test_every_family_is_in_the_matrix_or_has_a_reason() -> None:
    assert {*families.REPRESENTATIVES, *families.REST, *families.UNABLE} == set(families.FAMILIES)
    assert len(families.UNABLE) < 10


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_engine_leaves_buffers_as_transformers_made_them(stage: int, alone: None, tmp_path: Path) -> None:
    import torch

    save_tiny("gemma3_text", tmp_path)
    expected = dict(plain(tmp_path, "bfloat16").named_buffers(remove_duplicate=False))
    assert expected["model.rotary_emb.full_attention_inv_freq"].dtype == torch.float32
    recipe = TrainRecipe.model_validate({"dtype": "bfloat16", "dropout": 0.0})
    config = zero.engine_config(TrainPlacement.model_validate({"zero_stage": stage}), recipe)
    model, _ = zero.load_model(tmp_path, recipe, config)
    engine: Any = zero.start_engine(model, config, gpu=False)
    assert not unlike(dict(engine.module.named_buffers(remove_duplicate=False)), expected)


def rewritten(base: Path, directory: Path, change: Any) -> Path:
    """Copy a model; its tensors are those that `change` returns, in one file."""
    from safetensors.torch import save_file

    directory.mkdir()
    shutil.copy(base / "config.json", directory)
    save_file(change(stored(base)), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_weights_are_tied_only_if_the_files_agree(alone: None, tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "base")
    embedding = "model.embed_tokens.weight"
    heads = {
        "both": lambda held: held | {"lm_head.weight": held[embedding].clone()},
        "unequal": lambda held: held | {"lm_head.weight": held[embedding] + 1},
        "body alone": lambda held: {name.removeprefix("model."): tensor for name, tensor in held.items()},
        "head alone": lambda held: {"lm_head.weight" if name == embedding else name: held[name] for name in held},
    }
    for name, change in heads.items():
        base = rewritten(tmp_path / "base", tmp_path / name, change)
        expected = plain(base, "float32")
        expected.save_pretrained(tmp_path / f"{name}-plain")
        for stage in (2, 3):
            model = loaded(base, "float32", stage)
            assert not unlike(whole_parameters(model), dict(expected.named_parameters())), (name, stage)
            out = exported(model, tmp_path / f"{name}-{stage}")
            assert not unlike(out, stored(tmp_path / f"{name}-plain")), (name, stage)
            assert ("lm_head.weight" in out) == (name == "unequal")


def test_files_in_the_layout_of_memory_are_exported_in_it(alone: None, tmp_path: Path) -> None:
    model = save_tiny("mixtral", tmp_path / "base")
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    expected = stored(tmp_path / "fused")
    assert "model.layers.0.mlp.experts.gate_up_proj" in expected
    for stage in (2, 3):
        assert not unlike(exported(loaded(tmp_path / "fused", "float32", stage), tmp_path / str(stage)), expected)


def test_incomplete_or_odd_experts_are_named(alone: None, tmp_path: Path) -> None:
    save_tiny("mixtral", tmp_path / "base")
    expert = "model.layers.1.block_sparse_moe.experts.3"
    changes = {
        r"lacks the parameters model.layers.1.mlp.experts.down_proj": lambda held: {
            name: tensor for name, tensor in held.items() if "layers.1" not in name or ".w2." not in name
        },
        r"down_proj has shape \[11, 32, 64\], but the model's configuration calls for \[12, 32, 64\]": lambda held: {
            name: tensor for name, tensor in held.items() if name != f"{expert}.w2.weight"
        },
        r"and 23 others, which transformers cannot convert to model.layers.1.mlp.experts.gate_up_proj": lambda held: (
            held | {f"{expert}.w1.weight": held[f"{expert}.w1.weight"][:5].clone()}
        ),
        r"has the unexpected parameters model.layers.2.*; its language model does not use": lambda held: (
            held | {f"{expert}.w1.weight".replace("layers.1", "layers.2"): held[f"{expert}.w1.weight"].clone()}
        ),
    }
    for number, (said, change) in enumerate(changes.items()):
        base = rewritten(tmp_path / "base", tmp_path / str(number), change)
        with pytest.raises(TrainingStopped, match=said):
            loaded(base, "float32", 3)


def test_the_text_model_of_a_larger_one_is_exported_with_its_own_configuration(alone: None, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    AutoModelForImageTextToText.from_config(families.tiny("qwen3_5")).save_pretrained(tmp_path / "base")
    expected = plain(tmp_path / "base", "float32")
    expected.save_pretrained(tmp_path / "plain")
    for stage in (2, 3):
        model = loaded(tmp_path / "base", "float32", stage)
        out = tmp_path / str(stage)
        assert not unlike(exported(model, out), stored(tmp_path / "plain"))
        write_configuration(tmp_path / "base", type(model).__name__, "float32", out)
        assert configuration(out) == configuration(tmp_path / "plain")
        assert type(AutoModelForCausalLM.from_pretrained(out)) is type(expected)


def test_rank_0_holds_one_file_and_one_conversion(alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny("mixtral", tmp_path / "base")
    model = loaded(tmp_path / "base", "float32", 3)
    made: list[weakref.ref[Any]] = []
    held: list[int] = []
    sizes: list[int] = []
    values = Part.values

    def watched(part: Part) -> dict[str, Any]:
        found = values(part)
        made.extend(weakref.ref(tensor) for tensor in found.values())
        sizes.append(part.bytes)
        assert part.bytes == sum(tensor.nbytes for tensor in found.values())
        held.append(sum(tensor.nbytes for tensor in (one() for one in made) if tensor is not None))
        return found

    monkeypatch.setattr(Part, "values", watched)
    exported(model, tmp_path / "out", shard_bytes=100_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    assert max(held) <= 100_000 + max(sizes) < sum(sizes)


def test_two_workers_train_a_family_with_experts_whose_export_has_the_names_of_its_base(
    pairs: tuple[str, ...], tokenizer: Any, tmp_path: Path
) -> None:
    """Under ZeRO 3, fully and with adapters; each export is loaded again in the same process.

    The workers have not imported the family's classes before.
    """
    save_tiny("mixtral", tmp_path / "base", max_position_embeddings=256)
    tokenizer.save_pretrained(tmp_path / "base")
    adapters = Lora(rank=2, dropout=0.0, targets=("q_proj", "v_proj"))
    placement = TrainPlacement(workers=2, zero_stage=3)
    cases = [
        Case(name, job(tmp_path / "base", pairs, tmp_path / name, steps={"m0": 2}, **changes), placement)
        for name, changes in {"full": {}, "adapters": {"method": adapters}}.items()
    ]
    found = run(cases, 2, tmp_path / "run")
    base = stored(tmp_path / "base")
    assert "model.layers.0.block_sparse_moe.experts.0.w1.weight" in base
    for case in cases:
        assert "stopped" not in found[case.name], found[case.name]
        out = stored(tmp_path / case.name)
        assert {name: (one.dtype, one.shape) for name, one in out.items()} == {
            name: (one.dtype, one.shape) for name, one in base.items()
        }
    expected = plain_loop(tmp_path / "base", pairs, RECIPE.model_copy(update={"steps": {"m0": 2}}))
    assert [row["loss"] for row in found["full"]["metrics"]] == pytest.approx([loss for loss, _ in expected], rel=1e-5)
