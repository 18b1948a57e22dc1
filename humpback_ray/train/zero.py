"""DeepSpeed for one worker: its configuration from a placement, the base model, the engine.

ZeRO 0 to 3 on GPUs and on CPU workers, AdamW on float32 master weights. Under ZeRO 3 the model is created partitioned
(`zero.Init`): each worker keeps its part of every parameter. transformers reads the files on every worker; only the
parameter being loaded is whole there.

DeepSpeed divides gradients by the number of workers; `loss_scale_of` is the factor that undoes it, so that the loss may
be a sum over the global batch's tokens. It is told of no accumulation: how many micro-batches a step has differs from
step to step, so the loop says which is the last (`set_gradient_accumulation_boundary`).

Given up: parameter offload, activation checkpointing, other optimizers; families without a configured dropout train
without one (the names that were set are reported).
"""

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

from humpback_ray.placement import TrainPlacement
from humpback_ray.train.recipe import TrainRecipe

BUCKET_ELEMENTS = 50_000_000
"""Elements that ZeRO reduces or gathers at once: 100 MB in bfloat16."""

NO_CLIP = 1e30
"""A norm that no gradient reaches: DeepSpeed reports the norm only where it may clip."""

DROPOUT_FIELDS = (
    "attention_dropout", "attn_pdrop", "attention_probs_dropout_prob", "hidden_dropout", "hidden_dropout_prob",
    "resid_pdrop", "embd_pdrop", "dropout", "resid_dropout", "embed_dropout",
)  # fmt: skip
"""Names under which transformers' configurations keep dropout probabilities."""


def engine_config(placement: TrainPlacement, recipe: TrainRecipe) -> dict[str, Any]:
    """Return the DeepSpeed configuration of one worker.

    Stage 0 in bfloat16 becomes stage 1: without ZeRO, DeepSpeed 0.19 rounds every update to bfloat16 (a model that
    reached a loss of 5.434 in ten steps with stage 2 was at 5.459 with stage 0).
    """
    bfloat16 = recipe.dtype == "bfloat16"
    stage = max(placement.zero_stage, 1) if bfloat16 else placement.zero_stage
    offload = placement.offload_optimizer and stage >= 2
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "allgather_bucket_size": BUCKET_ELEMENTS,
        "stage3_prefetch_bucket_size": BUCKET_ELEMENTS,
        "overlap_comm": placement.gpus_per_worker > 0,
    }
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": placement.gpus_per_worker > 0}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": recipe.gradient_clip or NO_CLIP,
        "steps_per_print": None,
        "optimizer": _optimizer(placement, recipe, offload),
        "bf16": {"enabled": bfloat16},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
    }
    if bfloat16:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def _optimizer(placement: TrainPlacement, recipe: TrainRecipe, offload: bool) -> dict[str, Any]:
    """PyTorch's AdamW, except where a GPU worker offloads: DeepSpeed's CPU Adam is built for that."""
    parameters: dict[str, Any] = {
        "lr": recipe.learning_rate,
        "betas": list(recipe.betas),
        "eps": recipe.epsilon,
        "weight_decay": recipe.weight_decay,
    }
    if not (offload and placement.gpus_per_worker):
        parameters["torch_adam"] = True
    return {"type": "AdamW", "params": parameters}


def loss_scale_of(workers: int, output_tokens: int) -> float:
    """Return the factor on a micro-batch's summed loss that makes the step's gradient that of the global mean."""
    return workers / output_tokens


def import_deepspeed(gpu: bool) -> Any:
    """Import DeepSpeed for this worker's device, quietly."""
    logger = logging.getLogger("DeepSpeed")
    logger.addFilter(_is_worth_reading)
    import deepspeed
    from deepspeed.accelerator import set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    if not gpu:
        deepspeed.ops.__compatible_ops__[_COMPILED_COLLECTIVES] = False
        set_accelerator(CPU_Accelerator())
    return deepspeed


_COMPILED_COLLECTIVES = "deepspeed_shm_comm"
"""An extension that CPU workers would compile for a minute and a half before their first step; gloo does its work."""


def _is_worth_reading(record: logging.LogRecord) -> bool:
    """Drop what DeepSpeed warns of on every CPU worker although it was asked for."""
    return "Setting accelerator to CPU" not in record.getMessage()


def set_dropout(config: Any, probability: float) -> list[str]:
    """Set every dropout that a model's configuration names; return their names."""
    names = [name for name in DROPOUT_FIELDS if isinstance(getattr(config, name, None), int | float)]
    for name in names:
        setattr(config, name, probability)
    return names


def load_model(base: Path, recipe: TrainRecipe, engine: dict[str, Any]) -> tuple[Any, list[str]]:
    """Load the base model for training; return it and the dropout fields that were set.

    Under ZeRO 3 every worker must call this at once: parameters are partitioned as they are created.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(base)
    dropouts = set_dropout(config, recipe.dropout)
    config.use_cache = False
    dtype = getattr(torch, recipe.dtype)
    partitioned = HfDeepSpeedConfig(engine) if engine["zero_optimization"]["stage"] == 3 else None
    try:
        model = AutoModelForCausalLM.from_pretrained(base, config=config, dtype=dtype, use_safetensors=True)
    finally:
        if partitioned is not None:
            unset_hf_deepspeed_config()
    if partitioned is not None:
        restore_rotary(model)
    return model, dropouts


def restore_rotary(model: Any) -> None:
    """Compute rotary frequencies anew, in float32: `zero.Init` made them in the training dtype."""
    for module in model.modules():
        frequencies = module._buffers.get("inv_freq")
        if frequencies is not None and hasattr(module, "config"):
            fresh = type(module)(module.config).to(frequencies.device)
            module._buffers.update(fresh._buffers)


def start_engine(model: Any, config: dict[str, Any], gpu: bool) -> Any:
    """Wrap a loaded model in a DeepSpeed engine; torch.distributed is up already.

    What DeepSpeed prints of its memory meanwhile is swallowed.
    """
    deepspeed = import_deepspeed(gpu)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with contextlib.redirect_stdout(io.StringIO()):
        engine, *_ = deepspeed.initialize(
            model=model, model_parameters=parameters, config=config, dist_init_required=False
        )
    engine.train()  # transformers loads models for inference, in which no dropout acts
    return engine


def gradient_norm(engine: Any) -> float:
    """Return the norm of the step's gradient, between the last backward pass and the update where ZeRO is off."""
    import torch

    if engine.zero_optimization_stage() == 0:
        return float(torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None]))
    return float(engine.get_global_grad_norm())


def drop_update(engine: Any) -> None:
    """Do in the place of `engine.step()`, where ZeRO is off, what ZeRO does with gradients that are no numbers."""
    engine.zero_grad()
    engine.micro_steps += 1


def forget_dropped(engine: Any) -> None:
    """Clear the gradients of an update that ZeRO dropped.

    Where stage 2 offloads the optimizer of a bfloat16 model, DeepSpeed 0.19 keeps them, adds the next step's to what is
    no number, and drops every update from then on.
    """
    kept = getattr(engine.optimizer, "averaged_gradients", {})
    kept.update(dict.fromkeys(kept))


def parameter_count(model: Any, trainable: bool = False) -> int:
    """Count parameters, partitioned ones by their whole size; `trainable`: those alone that require gradients."""
    counted = (parameter for parameter in model.parameters() if parameter.requires_grad or not trainable)
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in counted)
