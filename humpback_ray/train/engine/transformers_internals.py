"""All uses of private parts of transformers and Liger's kernels; no other module of `train` touches them.

They follow the source of the version of transformers below; `tests/train/engine/test_transformers_internals.py` names
what has moved in another version.
"""

from collections.abc import Sequence
from typing import Any

WRITTEN_AGAINST = "5.19.0"


def attention_is_replaceable(model: Any) -> bool:
    """Tell whether a model passes every argument on to a replaceable attention function and has no state."""
    return model._supports_attention_backend and model._supports_sdpa and not model._is_stateful


def known_leftovers(model: Any) -> Sequence[str]:
    """Return patterns for names of tensors that a model's files may have although its class does not use them."""
    return getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []


def put_liger_kernels(model: Any) -> bool:
    """Put Liger's Triton kernels into a model; return False if the package is not installed."""
    try:
        from liger_kernel.transformers import (  # pyright: ignore[reportMissingImports]
            _apply_liger_kernel_to_instance,
        )
    except ImportError:
        return False
    _apply_liger_kernel_to_instance(model)
    return True
