"""DeepSpeed for one worker: its configuration from a placement, the base model, the engine.

ZeRO 0 to 3 on GPUs and on CPU workers, AdamW on float32 master weights; optimizer and weights may stay in CPU memory.
Under ZeRO 3 the model is created partitioned (`zero.Init`) and each worker reads its own part of each parameter from
the files (weights.py). The run stops if the files lack a parameter or have an unexpected one.

Dropout acts where the model's family has it: transformers' Llama, Mistral and Qwen have it in attention only.
`TrainResult.dropouts` names the fields that were set. The residual stream has no dropout; the paper, which does not
say where its dropout acted, may have had some there.

DeepSpeed divides gradients by the number of workers; `loss_scale_of` is the factor that undoes it, since the loss is a
sum over the global batch's tokens. DeepSpeed's accumulation setting is not used: the number of micro-batches differs
from step to step, so the loop says which one is the last (`set_gradient_accumulation_boundary`).

Given up: optimizers other than AdamW.
"""

import contextlib
import ctypes
import io
import logging
import math
import platform
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from humpback_ray.placement import TrainPlacement
from humpback_ray.train.engine.deepspeed_internals import drop_update, run_on_cpu, whole_elements
from humpback_ray.train.engine.exhausted import doing
from humpback_ray.train.engine.weights import load_partitioned, refuse_names
from humpback_ray.train.recipe import TrainRecipe
from humpback_ray.train.types import TrainingEngine

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedConfig, PreTrainedModel

BUCKET_ELEMENTS = 50_000_000
"""Elements that ZeRO reduces or gathers at once: 100 MB in bfloat16."""

LIVE_ELEMENTS = 1_000_000_000
"""Elements of weights that ZeRO 3 keeps whole at a time, 2 GB in bfloat16: more than a layer of a 70B model has."""

PERSISTENT_ELEMENTS = 100_000
"""Smaller parameters stay whole under ZeRO 3. These are the norms, which would cost a message each."""

SUB_GROUP_ELEMENTS = 1_000_000_000
"""Elements of its own part that a worker updates at once under ZeRO 3."""

NO_CLIP = 1e30
"""A norm that no gradient reaches: DeepSpeed reports the norm only if clipping is on."""

DROPOUT_FIELDS = (
    "attention_dropout", "attn_pdrop", "attention_probs_dropout_prob", "hidden_dropout", "hidden_dropout_prob",
    "resid_pdrop", "embd_pdrop", "dropout", "resid_dropout", "embed_dropout",
)  # fmt: skip
"""Names under which transformers' configurations keep dropout probabilities."""


def engine_config(placement: TrainPlacement, recipe: TrainRecipe, cpu_adam: bool = False) -> dict[str, Any]:
    """Return the DeepSpeed configuration of one worker; `cpu_adam` says that DeepSpeed's own updates the weights.

    Stage 0 in bfloat16 becomes stage 1: without ZeRO, DeepSpeed 0.19 rounds every update to bfloat16 (a model that
    reached a loss of 5.434 in ten steps with stage 2 was at 5.459 with stage 0).
    """
    bfloat16 = recipe.dtype == "bfloat16"
    zero: dict[str, Any] = {
        "stage": stage_of(placement, recipe),
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
        "stage3_prefetch_bucket_size": BUCKET_ELEMENTS,
        "stage3_max_live_parameters": LIVE_ELEMENTS,
        "stage3_max_reuse_distance": LIVE_ELEMENTS,
        "stage3_param_persistence_threshold": PERSISTENT_ELEMENTS,
        "sub_group_size": SUB_GROUP_ELEMENTS,
        "overlap_comm": placement.gpus_per_worker > 0,
    }
    on_host = {"device": "cpu", "pin_memory": placement.gpus_per_worker > 0}
    if placement.offload_optimizer:
        zero["offload_optimizer"] = on_host
    if placement.offload_parameters:
        zero["offload_param"] = on_host
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": recipe.gradient_clip or NO_CLIP,
        "steps_per_print": None,
        "optimizer": _optimizer(recipe, cpu_adam),
        "bf16": {"enabled": bfloat16},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
    }
    if bfloat16:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def stage_of(placement: TrainPlacement, recipe: TrainRecipe) -> Literal[0, 1, 2, 3]:
    """Return the ZeRO stage that is used: at least 1 in bfloat16 (see `engine_config`)."""
    return 1 if placement.zero_stage == 0 and recipe.dtype == "bfloat16" else placement.zero_stage


def _optimizer(recipe: TrainRecipe, cpu_adam: bool) -> dict[str, Any]:
    """Choose DeepSpeed's CPU Adam, or PyTorch's fused AdamW."""
    parameters: dict[str, Any] = {
        "lr": recipe.learning_rate,
        "betas": list(recipe.betas),
        "eps": recipe.epsilon,
        "weight_decay": recipe.weight_decay,
    }
    return {"type": "AdamW", "params": parameters | ({} if cpu_adam else {"torch_adam": True, "fused": True})}


def loss_scale_of(workers: int, output_tokens: int) -> float:
    """Return the factor on a micro-batch's summed loss that makes the step's gradient the global mean's gradient."""
    return workers / output_tokens


def import_deepspeed(gpu: bool) -> ModuleType:
    """Import DeepSpeed for this worker's device, quietly."""
    logger = logging.getLogger("DeepSpeed")
    logger.addFilter(_is_worth_reading)
    import deepspeed

    if not gpu:
        run_on_cpu()
        keep_freed_memory()
    return deepspeed


def keep_freed_memory() -> None:
    """Let glibc keep the memory that this process frees, however large: every step asks for the same blocks again.

    Otherwise the kernel maps each of DeepSpeed's buffers again and clears its pages, which took a sixth of the time of
    a step with 50 M parameters on two cores. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        set_option = ctypes.CDLL(None).mallopt
        set_option(_M_MMAP_MAX, 0)
        set_option(_M_TRIM_THRESHOLD, -1)
        set_option(_M_TOP_PAD, 64 << 20)


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
"""Constants of glibc's malloc.h."""


def _is_worth_reading(record: logging.LogRecord) -> bool:
    """Drop the warning that DeepSpeed is on the CPU: every CPU worker logs it, and we asked for the CPU."""
    return "Setting accelerator to CPU" not in record.getMessage()


def set_dropout(config: "PreTrainedConfig", probability: float) -> list[str]:
    """Set every dropout that a model's configuration has; return the names of the fields."""
    names = [name for name in DROPOUT_FIELDS if isinstance(getattr(config, name, None), int | float)]
    for name in names:
        setattr(config, name, probability)
    return names


def load_model(
    base: Path, recipe: TrainRecipe, engine: dict[str, Any], checkpointing: bool = False
) -> tuple["PreTrainedModel", list[str]]:
    """Load the base model for training; return it and the dropout fields that were set.

    Under ZeRO 3 every worker must call this at once: parameters are partitioned as they are created.

    Args:
        base: directory of the model.
        recipe: gives the dtype and the dropout.
        engine: DeepSpeed's configuration.
        checkpointing: whether the backward pass computes layers again instead of keeping their activations.

    Raises:
        TrainingStopped: the files lack a parameter, or have one with another name or shape.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(base)
    dropouts = set_dropout(config, recipe.dropout)
    config.use_cache = False
    dtype = getattr(torch, recipe.dtype)
    if engine["zero_optimization"]["stage"] == 3:
        model = load_partitioned(base, config, dtype, engine)
    else:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            base, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
        model, found = loaded
        refuse_names(base, found["missing_keys"], found["unexpected_keys"])
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model, dropouts


def start_engine(model: "nn.Module", config: dict[str, Any], gpu: bool) -> TrainingEngine:
    """Wrap a loaded model in a DeepSpeed engine; torch.distributed must be up.

    DeepSpeed prints its memory use while it starts; that output is suppressed.
    """
    deepspeed = import_deepspeed(gpu)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with contextlib.redirect_stdout(io.StringIO()):
        engine, *_ = deepspeed.initialize(
            model=model, model_parameters=parameters, config=config, dist_init_required=False
        )
    engine.train()  # transformers loads models in evaluation mode, where no dropout acts
    return engine


def finish_step(engine: TrainingEngine, loss: "torch.Tensor") -> float:
    """Run a step's last backward pass and the update; return the norm of the step's gradient.

    An update with a non-finite gradient is dropped. With ZeRO off, DeepSpeed would apply it.
    """
    engine.backward(loss)
    with doing("in the update"):
        return _update(engine)


def _update(engine: TrainingEngine) -> float:
    if engine.zero_optimization_stage() > 0:
        engine.step()
        return float(engine.get_global_grad_norm())
    import torch

    norm = float(torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None]))
    if math.isfinite(norm):
        engine.step()
    else:
        drop_update(engine)
    return norm


def parameter_count(model: "nn.Module", trainable: bool = False) -> int:
    """Count parameters, partitioned ones in full; with `trainable`, only those that require gradients."""
    counted = (parameter for parameter in model.parameters() if parameter.requires_grad or not trainable)
    return sum(whole_elements(parameter) for parameter in counted)
