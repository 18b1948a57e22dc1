"""Running a model on a micro-batch: examples in one row without padding if the model's family can, else padded rows.

In a packed row, linear layers compute no padding and each example attends only to itself:

    flash      flash-attention's kernel for rows of several lengths, on GPUs where it is installed (transformers' path)
    packed     PyTorch's kernels, once per example: attention costs the sum of squares, not the square of the sum
    padded     a row per example, for families that carry state from token to token or mask in chunks

Position ids restart with every example. Sliding windows work within each example. transformers marks classes that pass
every argument on to a replaceable attention function, but some of them drop arguments on the way (Nemotron), or give
the window only to the mask (PhiMoE), and would silently mix examples. So we look at what reaches the attention of the
first layer, in a copy without weights.

Given up: PyTorch's own kernel for several lengths, which has no dropout; the paper's recipe needs dropout.
"""

import contextlib
import copy
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from humpback_ray.engines.attention import avoid_cudnn, cap_scores
from humpback_ray.engines.rope import settings
from humpback_ray.placement import TrainPlacement
from humpback_ray.train.data.examples import Example
from humpback_ray.train.engine.transformers_internals import attention_is_replaceable, put_liger_kernels
from humpback_ray.train.job import TrainingStopped
from humpback_ray.train.types import Causal

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

NAME = "humpback_ray_packed"
PROBE = "humpback_ray_probe"

Batching = Literal["flash", "packed", "padded"]
"""How the examples of a micro-batch are separated (see above)."""

_LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers whose attention mask is the causal triangle or a band of it."""

logger = logging.getLogger(__name__)


def prepare(model: "PreTrainedModel", placement: TrainPlacement) -> Batching:
    """Choose the attention by family, device and placement, and set it up; on GPUs, also install Liger's kernels.

    Raises:
        TrainingStopped: the model's tokens see later ones, as in encoders.
        ImportError: the placement asks for flash-attention, which is not installed.
    """
    if {getattr(module, "is_causal", None) for module in model.modules()} - {None} == {False}:
        raise TrainingStopped(
            f"{type(model).__name__} cannot be trained to write: its tokens see the ones that they should predict, as "
            "in an encoder (is_decoder in the base model's config.json); choose a causal language model"
        )
    gpu = placement.gpus_per_worker > 0
    avoid_cudnn()
    cap_scores(model)
    packs = can_pack(model)
    if gpu and placement.kernels == "auto" and put_liger_kernels(model):
        logger.info("%s uses Liger's kernels where they support it", type(model).__name__)
    if not packs:
        logger.info("%s cannot read several examples in a row: each has a padded row", type(model).__name__)
        return "padded"
    half = str(model.dtype) in ("torch.bfloat16", "torch.float16")
    if placement.attention == "flash_attention_2" or (placement.attention == "auto" and gpu and half and _has_flash()):
        model.set_attn_implementation("flash_attention_2")
        return "flash"
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, _mask)
    model.set_attn_implementation(NAME)
    return "packed"


def can_pack(model: "PreTrainedModel") -> bool:
    """Tell whether every layer of a model can separate the examples of a row."""
    config: Any = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    own_positions = _counts_from_padding(model) or getattr(config, "attn_temperature_tuning", False)
    if not attention_is_replaceable(model) or not kinds <= _LAYERS or own_positions:
        return False
    reached = first_attention(model)
    lost = {"packed_lengths", *(["sliding_window"] if getattr(config, "sliding_window", None) else [])} - reached.keys()
    more = {name for name, value in reached.items() if value is not None} - _ARGUMENTS
    return not lost and not more


def _counts_from_padding(model: "PreTrainedModel") -> bool:
    """Tell whether a model's first position is the one after the padding token's id (RoBERTa)."""
    embeddings = ((name, getattr(module, "padding_idx", None)) for name, module in model.named_modules())
    return any("position" in name and index is not None for name, index in embeddings)


_ARGUMENTS = {
    "packed_lengths", "sliding_window", "scaling", "dropout", "is_causal", "position_ids", "use_cache",
    "output_attentions", "output_router_logits",
}  # fmt: skip
"""What `packed_attention` knows how to do with; a mask, a soft cap, sinks and biases are not among it."""


def first_attention(model: "PreTrainedModel") -> dict[str, Any]:
    """Return the arguments beside queries, keys and values that reach the attention of a model's first layer.

    They come from a copy of the model on PyTorch's meta device, which has no weights, and a row of two examples; {} if
    such a copy cannot be run that far.
    """
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.initialization import no_init_weights

    reached: dict[str, Any] = {}

    def note(*tensors: "torch.Tensor | nn.Module | None", **arguments: Any) -> None:
        reached.update(arguments | ({"attention_mask": tensors[4]} if len(tensors) > 4 else {}))
        raise InterruptedError("this is as far as the copy must run")

    AttentionInterface.register(PROBE, note)
    AttentionMaskInterface.register(PROBE, _mask)
    config = copy.deepcopy(model.config)
    for one in settings(config):
        one["rope_type"] = "default"  # the others look at the positions, which have no values here
    arguments, _ = inputs([Example(name, np.zeros(2, np.int32), 1) for name in "ab"], "packed", "meta")
    ids = arguments.pop("input_ids")
    for embed in (False, True):  # one or the other way, and with a cache, most models look at no values before
        with contextlib.suppress(Exception), no_init_weights(), torch.device("meta"):
            twin: Any = type(model)(config).eval()
            twin.set_attn_implementation(PROBE)
            text = {"inputs_embeds": twin.get_input_embeddings()(ids)} if embed else {"input_ids": ids}
            twin(**text, **arguments, use_cache=True)
        if reached:
            break
    return reached


def _has_flash() -> bool:
    from transformers.utils.import_utils import is_flash_attn_2_available

    return is_flash_attn_2_available()


def inputs(
    examples: Sequence[Example], batching: Batching, device: "torch.device | str"
) -> tuple[dict[str, Any], "torch.Tensor"]:
    """Return a micro-batch as a model's arguments.

    Args:
        examples: the micro-batch; if it is empty, a single token without a target stands in.
        batching: result of `prepare`.
        device: device of the tensors.

    Returns:
        The model's arguments, and the tokens that carry loss, int64 [N], in the order of `logits_of`.
    """
    import torch

    targets = np.concatenate([example.ids[example.loss_start :] for example in examples] or [[]])
    arrange = padded_rows if batching == "padded" else one_row
    found: dict[str, Any] = {
        name: torch.tensor(value, dtype=torch.long, device=device) for name, value in arrange(examples).items()
    }
    lengths = tuple(map(len, _rows(examples)))
    if batching == "flash":
        bounds = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32, device=device)
        found |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
        found |= {"max_length_q": max(lengths), "max_length_k": max(lengths)}
    elif batching == "packed":
        found["packed_lengths"] = lengths
    return found, torch.tensor(targets, dtype=torch.long, device=device)


def _rows(examples: Sequence[Example]) -> list[np.ndarray]:
    """Return the tokens of each example; for an empty micro-batch, one row of one token."""
    return [example.ids for example in examples] or [np.zeros(1, np.int32)]


def padded_rows(examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """Put each example in a row of its own, padded with zeros on the right."""
    rows = _rows(examples)
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for row, tokens in zip(ids, rows, strict=True):
        row[: len(tokens)] = tokens
    return {"input_ids": ids}


def one_row(examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """Lay examples end to end in one row; `logits_to_keep` lists the positions whose next token carries loss."""
    rows = _rows(examples)
    starts = np.cumsum([0, *map(len, rows)])
    kept = [
        np.arange(start + example.loss_start - 1, start + example.length - 1)
        for start, example in zip(starts, examples, strict=False)
    ]
    return {
        "input_ids": np.concatenate(rows)[None],
        "position_ids": np.concatenate([np.arange(len(row)) for row in rows])[None],
        "logits_to_keep": np.concatenate(kept or [[0]]),
    }


def logits_of(
    model: Causal, examples: Sequence[Example], batching: Batching, device: "torch.device | str"
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Run a model on a micro-batch; return logits [N, V] of the tokens that carry loss, and those tokens [N].

    An empty micro-batch gives one row of logits, so there is a graph, and no tokens.
    """
    import torch

    arguments, targets = inputs(examples, batching, device)
    if batching != "padded":
        return model(**arguments, use_cache=False).logits.flatten(0, 1), targets  # a view: its gradient is no copy
    first = min((example.loss_start for example in examples), default=1) - 1  # padding on the right: causal, so unseen
    width = arguments["input_ids"].shape[1]
    logits = model(**arguments, use_cache=False, logits_to_keep=width - first).logits
    if not examples:
        return logits[0], targets
    wanted = np.zeros(logits.shape[:2], bool)
    for row, example in zip(wanted, examples, strict=True):
        row[example.loss_start - 1 - first : example.length - 1 - first] = True
    return logits[torch.tensor(wanted, device=device)], targets


def packed_attention(
    module: "nn.Module",
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    packed_lengths: Sequence[int] | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple["torch.Tensor", None]:
    """Attend within each example of a packed row; without `packed_lengths`, use transformers' call of PyTorch's kernel.

    Shapes are transformers': query [1, H, T, D], key and value [1, G, T, D], result [1, T, H, D].
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if packed_lengths is None:
        mask = attention_mask if attention_mask is not None else _band(query, key, sliding_window)
        return sdpa_attention_forward(module, query, key, value, mask, **others)
    pieces = zip(*(tensor.split(list(packed_lengths), 2) for tensor in (query, key, value)), strict=True)
    found = [sdpa_attention_forward(module, q, k, v, _band(q, k, sliding_window), **others)[0] for q, k, v in pieces]
    return torch.cat(found, 1), None


def _band(query: "torch.Tensor", key: "torch.Tensor", window: int | None) -> "torch.Tensor | None":
    """Return the mask [T, C] of a causal window; None if it equals the plain causal triangle."""
    import torch

    tokens, context = query.shape[2], key.shape[2]
    if window is None or context <= window:
        return None
    back = torch.arange(context - tokens, context, device=query.device)[:, None] - torch.arange(
        context, device=query.device
    )
    return (back >= 0) & (back < window)


def _mask(attention_mask: "torch.Tensor | None" = None, **others: Any) -> "torch.Tensor | None":
    """Return a mask only if there is padding; `packed_attention` needs no mask of positions."""
    from transformers.masking_utils import sdpa_mask

    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **others)
