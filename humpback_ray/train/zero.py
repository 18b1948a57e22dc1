"""DeepSpeed for one worker: its configuration from a placement, the base model, the engine.

ZeRO 0 to 3 on GPUs and on CPU workers, AdamW on float32 master weights; optimizer and weights may stay in CPU memory.
Under ZeRO 3 the model is created partitioned (`zero.Init`) and each worker reads its own part of each parameter from
the safetensors files, so no process ever holds the model. A name that the files lack, or have
besides, stops the run.

Dropout is what the model's family has: transformers' Llama, Mistral and Qwen have it in attention alone, and
`TrainResult.dropouts` names the fields that were set. There is none on the residual stream, where the paper's
unreported dropout may have been.

DeepSpeed divides gradients by the number of workers and of accumulated micro-batches; `loss_scale_of` is the factor
that undoes both, so that the loss may be a sum over the global batch's tokens.

Given up: optimizers other than AdamW; with ZeRO 3 families whose checkpoints name or lay out parameters otherwise than
transformers' classes do.
"""

import contextlib
import io
import json
import logging
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from humpback_ray.placement import TrainPlacement
from humpback_ray.train.job import TrainingStopped
from humpback_ray.train.recipe import TrainRecipe

BUCKET_ELEMENTS = 50_000_000
"""Elements that ZeRO reduces or gathers at once: 100 MB in bfloat16."""

LIVE_ELEMENTS = 1_000_000_000
"""Elements of weights that ZeRO 3 keeps whole at a time, 2 GB in bfloat16: more than a layer of 70B has."""

PERSISTENT_ELEMENTS = 100_000
"""Smaller parameters stay whole under ZeRO 3: the norms, which would cost a message each."""

SUB_GROUP_ELEMENTS = 1_000_000_000
"""Elements of its part that a worker updates at once under ZeRO 3."""

NO_CLIP = 1e30
"""A norm that no gradient reaches: DeepSpeed reports the norm only where it may clip."""

DROPOUT_FIELDS = (
    "attention_dropout", "attn_pdrop", "attention_probs_dropout_prob", "hidden_dropout", "hidden_dropout_prob",
    "resid_pdrop", "embd_pdrop", "dropout", "resid_dropout", "embed_dropout",
)  # fmt: skip
"""Names under which transformers' configurations keep dropout probabilities."""


def engine_config(placement: TrainPlacement, recipe: TrainRecipe, micro_batches: int) -> dict[str, Any]:
    """Return the DeepSpeed configuration of one worker.

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
        "train_micro_batch_size_per_gpu": placement.micro_batch_examples,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": recipe.gradient_clip or NO_CLIP,
        "steps_per_print": None,
        "optimizer": _optimizer(placement, recipe),
        "bf16": {"enabled": bfloat16},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
    }
    if bfloat16:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def stage_of(placement: TrainPlacement, recipe: TrainRecipe) -> Literal[0, 1, 2, 3]:
    """Return the ZeRO stage that is run: at least 1 in bfloat16 (see `engine_config`)."""
    return 1 if placement.zero_stage == 0 and recipe.dtype == "bfloat16" else placement.zero_stage


def _optimizer(placement: TrainPlacement, recipe: TrainRecipe) -> dict[str, Any]:
    """PyTorch's fused AdamW; for an offloaded optimizer of a GPU worker DeepSpeed's CPU Adam, if it can be compiled."""
    parameters: dict[str, Any] = {
        "lr": recipe.learning_rate,
        "betas": list(recipe.betas),
        "eps": recipe.epsilon,
        "weight_decay": recipe.weight_decay,
    }
    compiles = all(shutil.which(tool) for tool in ("c++", "ninja"))
    if not (placement.offload_optimizer and placement.gpus_per_worker and compiles):
        parameters |= {"torch_adam": True, "fused": True}
    return {"type": "AdamW", "params": parameters}


def loss_scale_of(workers: int, micro_batches: int, output_tokens: int) -> float:
    """Return the factor on a micro-batch's summed loss that makes the step's gradient that of the global mean."""
    return workers * micro_batches / output_tokens


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


def load_model(
    base: Path, recipe: TrainRecipe, engine: dict[str, Any], checkpointing: bool = False
) -> tuple[Any, list[str]]:
    """Load the base model for training; return it and the dropout fields that were set.

    Under ZeRO 3 every worker must call this at once: parameters are partitioned as they are created.

    Args:
        base: directory of the model.
        recipe: says the dtype and the dropout.
        engine: DeepSpeed's configuration.
        checkpointing: whether layers are computed again in the backward pass.

    Raises:
        TrainingStopped: the files lack a parameter, or have one of another name or shape.
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


def load_partitioned(base: Path, config: Any, dtype: Any, engine: dict[str, Any]) -> Any:
    """Create a model partitioned over the workers and fill this worker's parts from the files; collective.

    At most the part of one parameter, and while modules are created one parameter, is held beside the parts.
    """
    from deepspeed import zero
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with no_init_weights(), zero.Init(config_dict_or_path=engine):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    fill(model, base)
    restore_rotary(model)
    return model


def fill(model: Any, base: Path) -> None:
    """Read this worker's part of every parameter, and every persistent buffer, from a model directory."""
    import torch
    from safetensors import safe_open

    names = stored_names(base)
    wanted = wanted_names(model, {name for held in names.values() for name in held}, base)
    for file, held in names.items():
        with safe_open(base / file, framework="pt") as tensors, torch.no_grad():
            for name in held:
                if name in wanted:
                    _fill_one(wanted[name], tensors.get_slice(name), f"{base}: {name}")


def stored_names(base: Path) -> dict[str, list[str]]:
    """Return the names of the tensors of a model directory by safetensors file."""
    from safetensors import safe_open

    index = base / "model.safetensors.index.json"
    found: dict[str, list[str]] = defaultdict(list)
    if index.exists():
        for name, file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
            found[file].append(name)
        return found
    with safe_open(base / "model.safetensors", framework="pt") as tensors:
        return {"model.safetensors": list(tensors.keys())}


def wanted_names(model: Any, stored: set[str], base: Path) -> dict[str, Any]:
    """Return the tensors of a model by the names under which they are stored, each once; tied ones have several names.

    Raises:
        TrainingStopped: a tensor is stored under none of its names, or a name belongs to none.
    """
    tensors = model.state_dict(keep_vars=True)
    aliases: dict[int, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        aliases[id(tensor)].append(name)
    chosen = [next((name for name in names if name in stored), None) for names in aliases.values()]
    missing = [names[0] for names, name in zip(aliases.values(), chosen, strict=True) if name is None]
    ignored = [r"rotary_emb\.inv_freq", *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or [])]
    strange = [name for name in stored - set(tensors) if not any(re.search(pattern, name) for pattern in ignored)]
    refuse_names(base, missing, strange)
    return {name: tensors[name] for name in chosen if name is not None}


def refuse_names(base: Path, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    """Stop unless a model directory has the parameters that its configuration calls for, and no others."""
    for names, what in ((missing, "lacks"), (unexpected, "has, and its configuration does not call for,")):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise TrainingStopped(
                f"the base model in {base} {what} {shown}; is its config.json that of another model? Training would "
                "begin with weights that nobody trained"
            )


def _fill_one(tensor: Any, stored: Any, where: str) -> None:
    """Copy one stored tensor, or this worker's part of it, in."""
    shape, part = list(stored.get_shape()), getattr(tensor, "ds_tensor", None)
    expected = list(tensor.shape if part is None else tensor.ds_shape)
    if shape != expected:
        raise TrainingStopped(f"{where} is of shape {shape} and the model's configuration calls for {expected}")
    if part is None:
        tensor.copy_(stored[:])
        return
    rank = _partition_rank(tensor)
    first = min(part.numel() * rank, tensor.ds_numel)
    last = min(first + part.numel(), tensor.ds_numel)
    part.zero_()  # its end may lie beyond the parameter's
    for start, piece in pieces(stored, shape, first, last):
        part.narrow(0, start - first, piece.numel()).copy_(piece)


PIECE_ELEMENTS = 16_000_000
"""Elements that are read at once."""


def pieces(stored: Any, shape: Sequence[int], first: int, last: int) -> Iterator[tuple[int, Any]]:
    """Read the elements `first` to `last` - 1 of a tensor laid flat, whole rows at a time.

    Yields:
        The number of the first element of a piece, and the piece, flat.
    """
    row = 1
    for size in shape[1:]:
        row *= size
    rows = max(1, PIECE_ELEMENTS // row)
    for top in range(first // row, -(-last // row), rows):
        bottom = min(top + rows, -(-last // row))
        start, end = max(first, top * row), min(last, bottom * row)
        yield start, stored[top:bottom].flatten()[start - top * row : end - top * row]


def _partition_rank(parameter: Any) -> int:
    """Return which of the parts of a partitioned parameter is this worker's."""
    import torch.distributed as dist

    return dist.get_rank(group=parameter.ds_process_group)


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
    parameters = list(model.parameters())
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


def parameter_count(model: Any) -> int:
    """Count parameters, partitioned ones by their whole size."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())
