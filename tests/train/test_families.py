"""Every family is loaded as `from_pretrained` loads it and exported as `save_pretrained` writes it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from humpback_ray.placement import TrainPlacement
from humpback_ray.train.engine import group, zero
from humpback_ray.train.export.directory import write_weights
from humpback_ray.train.recipe import TrainRecipe
from tests.train import families
from tests.train.families import save_tiny

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


def exported(model: Any, directory: Path, shard_bytes: int = 20_000) -> dict[str, Any]:
    """Export a model's weights; return them as they are in the files."""
    shelf: Any = Kept(directory)
    write_weights(model, shelf, shard_bytes)
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


def test_every_family_is_in_the_matrix_or_has_a_reason() -> None:
    assert {*families.REPRESENTATIVES, *families.REST, *families.UNABLE} == set(families.FAMILIES)
    assert len(families.UNABLE) < 10
