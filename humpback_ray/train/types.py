"""Protocols of the engine, model and tokenizer that training uses, for the type checker: nothing here runs.

DeepSpeed's engine, transformers' models and tokenizers fit, and so does whatever a test uses instead.
"""

from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol

from humpback_ray.engines.types import Output
from humpback_ray.prompts.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch
    from torch import nn


class Causal(Protocol):
    """A causal language model that can be called, by itself or in an engine."""

    def __call__(self, **arguments: Any) -> Output:
        """Run the model."""
        ...


class TrainingEngine(Causal, Protocol):
    """DeepSpeed's engine, as it is documented."""

    module: "nn.Module"
    device: "torch.device"
    optimizer: Any
    """A ZeRO optimizer, or PyTorch's own if ZeRO is off."""

    def eval(self) -> object:
        """Turn dropout off."""
        ...

    def train(self) -> object:
        """Turn dropout on."""
        ...

    def backward(self, loss: "torch.Tensor") -> object:
        """Add the gradients of a loss."""
        ...

    def step(self) -> object:
        """Update the weights."""
        ...

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> object:
        """Say whether the next backward pass is the last one before the update."""
        ...

    def zero_optimization_stage(self) -> int:
        """Return the ZeRO stage, 0 to 3."""
        ...

    def get_global_grad_norm(self) -> Any:
        """Return the norm of the last update's gradient before clipping; call it after `step`."""
        ...


class SavedTokenizer(Tokenizer, Protocol):
    """A tokenizer as training writes and compares it."""

    def save_pretrained(self, save_directory: str | PathLike[str]) -> object:
        """Write the files that `from_pretrained` reads."""
        ...

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """Return the spellings of token ids."""
        ...


Figures = dict[str, Any]
"""Figures of a step: the columns of METRICS, and how far the run is."""

Told = Callable[[Figures], object]
"""Receives the figures of every step."""
