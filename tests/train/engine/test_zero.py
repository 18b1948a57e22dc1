import platform
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from humpback_ray.placement import TrainPlacement
from humpback_ray.train.engine.zero import engine_config, loss_scale_of, set_dropout
from humpback_ray.train.recipe import TrainRecipe
from humpback_ray.train.tune import dropout_words


def config(recipe: dict[str, Any], **placement: Any) -> dict[str, Any]:
    return engine_config(TrainPlacement.model_validate(placement), TrainRecipe.model_validate(recipe))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bfloat16_always_has_master_weights(stage: int, dtype: str) -> None:
    made = config({"dtype": dtype}, zero_stage=stage)
    assert made["bf16"]["enabled"] == (dtype == "bfloat16")
    assert made["zero_optimization"]["stage"] == (max(stage, 1) if dtype == "bfloat16" else stage)
    assert made.get("data_types") == ({"grad_accum_dtype": "fp32"} if dtype == "bfloat16" else None)


def test_what_is_offloaded_is_pinned_for_a_gpu_and_updated_by_deepspeed_where_it_can() -> None:
    on_cpu = config({}, zero_stage=2, offload_optimizer=True)
    assert on_cpu["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert "offload_param" not in on_cpu["zero_optimization"]
    assert on_cpu["optimizer"]["params"]["torch_adam"] is on_cpu["optimizer"]["params"]["fused"] is True
    away = TrainPlacement(zero_stage=3, offload_optimizer=True, offload_parameters=True, gpus_per_worker=1)
    for compiled in (True, False):
        on_gpu = engine_config(away, TrainRecipe(), compiled)
        for name in ("offload_optimizer", "offload_param"):
            assert on_gpu["zero_optimization"][name] == {"device": "cpu", "pin_memory": True}
        assert ("torch_adam" not in on_gpu["optimizer"]["params"]) == compiled


@pytest.mark.parametrize(
    ("placement", "said"),
    [
        ({"zero_stage": 1, "offload_optimizer": True}, "zero_stage is 1, but DeepSpeed offloads from stage 2 on"),
        ({"zero_stage": 2, "offload_optimizer": True, "offload_parameters": True}, "zero_stage is 2"),
        ({"zero_stage": 3, "offload_parameters": True}, "offload_optimizer false"),
    ],
)
def test_what_cannot_be_offloaded_is_refused_with_the_fix(placement: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TrainPlacement.model_validate(placement)


def test_the_recipe_reaches_the_optimizer() -> None:
    made = config({"weight_decay": 0.3, "betas": (0.8, 0.9), "epsilon": 1e-6, "gradient_clip": None})
    parameters = made["optimizer"]["params"]
    assert (parameters["weight_decay"], parameters["betas"], parameters["eps"]) == (0.3, [0.8, 0.9], 1e-6)
    assert made["gradient_clipping"] > 1e20


def test_the_loss_scale_undoes_deepspeeds_average_over_workers() -> None:
    workers, output_tokens = 3, 50
    assert loss_scale_of(workers, output_tokens) / workers == pytest.approx(1 / output_tokens)


def test_dropout_is_set_where_the_family_has_it() -> None:
    from transformers import GPT2Config, LlamaConfig, MambaConfig

    llama, gpt2 = LlamaConfig(), GPT2Config()
    assert set_dropout(llama, 0.2) == ["attention_dropout"]
    assert llama.attention_dropout == 0.2
    assert set(set_dropout(gpt2, 0.2)) == {"attn_pdrop", "resid_pdrop", "embd_pdrop"}
    assert set_dropout(MambaConfig(), 0.2) == []


def test_the_log_says_where_dropout_acted_or_that_it_had_no_effect() -> None:
    assert dropout_words(0.1, ["attention_dropout"]) == (
        "dropout 0.1 acted on attention_dropout, all that this model family has"
    )
    assert "trained without dropout" in dropout_words(0.1, [])


FAULTS = """
import resource, sys, torch
from humpback_ray.train.engine.zero import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(sorted(faults() for _ in range(20))[10])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_the_next_step_reuses_freed_memory_without_clearing_it() -> None:
    processes = {
        case: subprocess.Popen([sys.executable, "-c", FAULTS, case], stdout=subprocess.PIPE, text=True)
        for case in ("kept", "as it is")
    }
    faults = {case: int(process.communicate()[0]) for case, process in processes.items()}
    pages = 64_000_000 // 4096
    if faults["as it is"] < pages / 2:
        pytest.skip("this kernel has huge pages for everyone")
    assert faults["kept"] < pages / 100
