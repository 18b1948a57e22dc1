"""Attention of one new token per sequence, without copying the keys and values that several heads share.

At every step with a mask, transformers repeats them for each head of a group before it calls torch's kernel. Instead we
make the heads of a group rows of one query: each sees the same keys under the same mask.
"""

import math
from typing import TYPE_CHECKING, Any

from humpback_ray.engines.types import CausalModel

if TYPE_CHECKING:
    import torch

NAME = "humpback_ray_grouped"


def avoid_cudnn() -> None:
    """Keep torch from choosing cuDNN's attention in this process; flash and memory-efficient attention remain.

    cuDNN makes a plan for every new shape, and our shapes are always new: keys grow by a token at each step, and each
    example of a packed row has its own length. On an H100 (torch 2.11) a plan took 48 ms. Plans were three quarters of
    each step of an engine, and all but 0.9 s of the 5.7 s of a 1B model's training step (docs/gpu.md).
    """
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)


def cap_scores(model: Any) -> None:
    """Let a model that caps its scores (Gemma 2) compute attention in single products: torch's kernel has no cap.

    transformers 5.19 calls the kernel all the same, and leaves the cap out.
    """
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    if capped and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")


def share_heads(model: CausalModel) -> None:
    """Use this attention in a model that would use torch's kernel; other cases go to transformers' own attention."""
    from transformers import AttentionInterface, AttentionMaskInterface

    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, grouped_attention)
        AttentionMaskInterface.register(NAME, additive_mask)
        model.set_attn_implementation(NAME)


def additive_mask(
    *sizes: Any, attention_mask: "torch.Tensor | None" = None, dtype: "torch.dtype", **others: Any
) -> "torch.Tensor | None":
    """Return transformers' mask for torch's kernel as numbers to add: 0 where a token is seen, else -inf.

    torch's kernel would make these numbers of a boolean mask in every layer: three more kernels each. And transformers
    would wait for the device to learn whether a given mask hides anything; the decoder only gives one that does.

    Returns:
        [B, 1, T, C], or None if the kernel needs no mask.
    """
    from transformers.masking_utils import sdpa_mask

    others["allow_is_causal_skip"] = attention_mask is None and others.get("allow_is_causal_skip", True)
    seen = sdpa_mask(*sizes, attention_mask=attention_mask, dtype=dtype, **others)
    if seen is None:
        return None
    columns = seen.shape[-1]  # rows begin at multiples of 8, else torch's CUDA kernel copies the mask in every layer
    added = seen.new_zeros((*seen.shape[:-1], columns + -columns % 8), dtype=dtype)[..., :columns]
    return added.masked_fill_(~seen, -math.inf)


def grouped_attention(
    module: "torch.nn.Module",
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    scaling: float | None = None,
    **others: Any,
) -> "tuple[torch.Tensor, None]":
    """Attend, in transformers' shapes: query [B, H, T, D], key and value [B, G, C, D], result [B, T, H, D]."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows, heads, tokens, width = query.shape
    groups = key.shape[1]
    plain = others.get("position_bias") is None and others.get("cache") is None and not others.get("dropout")
    if tokens > 1 or heads == groups or not plain:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)
    together = query.reshape(rows, groups, heads // groups, width)
    found = torch.nn.functional.scaled_dot_product_attention(
        together, key, value, attn_mask=attention_mask, scale=scaling
    )
    return found.reshape(rows, 1, heads, value.shape[-1]), None
