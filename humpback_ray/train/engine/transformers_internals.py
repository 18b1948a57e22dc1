"""What transformers and Liger's kernels keep private and training needs; no other module of `train` touches it.

It was read off the source of the version of transformers below; `tests/train/engine/test_transformers_internals.py`
names what has moved in another one.
"""

from collections.abc import Sequence
from typing import Any

WRITTEN_AGAINST = "5.19.0"


def attention_is_replaceable(model: Any) -> bool:
    """Tell whether a model passes every argument on to an attention function that one may replace, and has no state."""
    return model._supports_attention_backend and model._supports_sdpa and not model._is_stateful


def known_leftovers(model: Any) -> Sequence[str]:
    """Return patterns of the tensors that may lie in a model's files although its class has no use for them."""
    return getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []


def put_liger_kernels(model: Any) -> bool:
    """Put Liger's Triton kernels into a model; False where the package is not installed."""
    try:
        from liger_kernel.transformers import (  # pyright: ignore[reportMissingImports]
            _apply_liger_kernel_to_instance,
        )
    except ImportError:
        return False
    _apply_liger_kernel_to_instance(model)
    return True
