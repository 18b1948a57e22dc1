"""The private parts of DeepSpeed that we use exist in the installed version and do what we use them for."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from humpback_ray.placement import TrainPlacement
from humpback_ray.train.engine import deepspeed_internals, group
from humpback_ray.train.engine.zero import engine_config, finish_step, import_deepspeed, load_model, start_engine
from tests.train.internals import moved, privates
from tests.train.workers import RECIPE

ENGINE = {
    "module": None, "device": None, "optimizer": None, "micro_steps": None, "zero_grad": (), "backward": None,
    "step": (), "set_gradient_accumulation_boundary": ("is_boundary",), "zero_optimization_stage": (),
    "get_global_grad_norm": (), "destroy": (),
}  # fmt: skip
LAID_END_TO_END = {"_lazy_init_hp_params_optimizer_state": (), "update_lp_params": (), "optimizer": None}
OPTIMIZER: dict[str, dict[str, Any]] = {
    "1 in bfloat16": LAID_END_TO_END,
    "1": LAID_END_TO_END | {"averaged_gradients": None},
    "2": LAID_END_TO_END | {"averaged_gradients": None},
    "3": {
        "optimizer": None, "averaged_gradients": None, "fp16_groups": None, "fp32_partitioned_groups_flat": None,
        "grad_position": None, "get_param_id": ("param",), "_get_param_partition_rank": ("param",),
        "_optimizer_step": ("sub_group_id",), "_partition_all_parameters": (),
        "_reassign_or_swap_out_partitioned_parameters": (), "_post_step": (),
    },
}  # fmt: skip
PARAMETER: dict[str, dict[str, Any]] = {
    "1 in bfloat16": {"_hp_mapping": None},
    "1": {"_hp_mapping": None},
    "2": {"_hp_mapping": None},
    "3": dict.fromkeys(("ds_id", "ds_tensor", "ds_shape", "ds_numel", "ds_process_group")),
}
STAGES = ["0", *OPTIMIZER]


@pytest.fixture(scope="module")
def engines(base: Path) -> Iterator[dict[str, Any]]:
    """Return an engine of a single worker for each kind of ZeRO optimizer."""
    with group.joined(1, gpu=False):
        import_deepspeed(gpu=False)
        yield {name: made(base, name) for name in STAGES}


def made(base: Path, name: str) -> Any:
    recipe = RECIPE.model_copy(update={"dtype": "bfloat16" if name.endswith("bfloat16") else "float32"})
    config = engine_config(TrainPlacement.model_validate({"zero_stage": int(name[0])}), recipe)
    model, _ = load_model(base, recipe, config)
    return start_engine(model, config, gpu=False)


def lacking(owner: Any, wanted: dict[str, Any]) -> list[str]:
    return list(moved("deepspeed", deepspeed_internals.WRITTEN_AGAINST, owner, wanted))


@pytest.mark.parametrize("name", STAGES)
def test_engine_optimizer_and_parameters_have_what_we_use(engines: dict[str, Any], name: str) -> None:
    engine = engines[name]
    parameter = next(engine.module.parameters())
    assert lacking(engine, ENGINE) == []
    assert lacking(engine.optimizer, OPTIMIZER.get(name, {"param_groups": None, "state": None, "step": ()})) == []
    assert lacking(parameter, PARAMETER.get(name, {})) == []
    if name in ("1", "1 in bfloat16", "2"):
        mapping = parameter._hp_mapping
        assert lacking(mapping, dict.fromkeys(("lp_fragment_address", "hp_fragment", "optim_fragment"))) == []
        assert lacking(mapping.lp_fragment_address, {"start": None}) == []
    if name == "3":
        places = engine.optimizer.grad_position.values()
        assert all([type(number) for number in place] == [int, int, int] for place in places)


def test_the_extension_that_cpu_workers_leave_out_still_has_its_name() -> None:
    deepspeed = import_deepspeed(gpu=False)
    assert lacking(deepspeed.ops, {"__compatible_ops__": None}) == []
    assert deepspeed.ops.__compatible_ops__[deepspeed_internals._COMPILED_COLLECTIVES] is False


def test_every_private_attribute_that_is_used_is_checked() -> None:
    looked_for = {name for names in (*OPTIMIZER.values(), *PARAMETER.values()) for name in names}
    assert privates(Path(deepspeed_internals.__file__)) <= looked_for | {"__compatible_ops__", "__module__", "__dict__"}


@pytest.mark.parametrize("name", STAGES)
def test_held_covers_every_element_and_the_model_computes_with_the_values_written_there(
    engines: dict[str, Any], name: str
) -> None:
    import torch
    from deepspeed import zero

    engine = engines[name]
    deepspeed_internals.start_optimizer(engine, 3)
    held = deepspeed_internals.held(engine)
    sizes = {key: deepspeed_internals.whole_elements(one) for key, one in engine.module.named_parameters()}
    assert {one.name: one.weight.numel() for one in held} == sizes
    for one in held:
        assert (one.start, one.weight.dtype, set(one.moments)) == (0, torch.float32, {"exp_avg", "exp_avg_sq"})
        assert {tensor.shape for tensor in one.moments.values()} == {one.weight.shape}
        one.weight.fill_(0.5)
    deepspeed_internals.publish(engine)
    for parameter in engine.module.parameters():
        with zero.GatheredParameters([parameter] if deepspeed_internals.is_partitioned(parameter) else []):
            assert (parameter == 0.5).all()


def held_bytes() -> int:
    """Return the bytes of all tensors that Python knows."""
    import torch

    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_an_ended_engine_holds_no_memory_although_it_lives(base: Path) -> None:
    import torch

    with group.joined(1, gpu=False):
        import_deepspeed(gpu=False)
        before = held_bytes()
        ours = {name: made(base, name) for name in STAGES}
        for name, engine in ours.items():
            loss = engine(input_ids=torch.tensor([[1, 2, 3]])).logits.float().logsumexp(-1).sum()
            finish_step(engine, loss)
            assert deepspeed_internals.held(engine)[0].moments, name
        model_bytes = 4 * 37_792
        assert held_bytes() > before + 3 * 5 * model_bytes
        for engine in ours.values():
            deepspeed_internals.end(engine)
        assert held_bytes() < before + model_bytes / 100
        assert len(ours) == len(STAGES)
