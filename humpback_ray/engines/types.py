"""The members of a transformers model that engines and training use; any object with these members will do."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import Cache, GenerationConfig


class TextConfig(Protocol):
    """The part of a configuration that describes the language model."""

    num_hidden_layers: int
    vocab_size: int


class ModelConfig(Protocol):
    """A model's configuration."""

    model_type: str
    name_or_path: str
    _attn_implementation: str | None

    def get_text_config(self) -> TextConfig:
        """Return the language model's part of the configuration, or all of it if it has no parts."""
        ...


class Output(Protocol):
    """The result of a forward pass."""

    logits: "torch.Tensor"
    """[B, T, V], or only the positions in `logits_to_keep`."""


class CausalModel(Protocol):
    """A causal language model in evaluation mode."""

    config: ModelConfig
    generation_config: "GenerationConfig"

    @property
    def device(self) -> "torch.device":
        """The device of its inputs."""
        ...

    def modules(self) -> "Iterator[torch.nn.Module]":
        """Return its parts."""
        ...

    def parameters(self) -> "Iterator[torch.nn.Parameter]":
        """Return its weights."""
        ...

    def set_attn_implementation(self, name: str, /) -> None:
        """Use the attention function that is registered under a name."""
        ...

    def __call__(
        self,
        input_ids: "torch.Tensor",
        /,
        *,
        past_key_values: "Cache",
        use_cache: bool,
        logits_to_keep: int,
        attention_mask: "torch.Tensor | None" = None,
        position_ids: "torch.Tensor | None" = None,
    ) -> Output:
        """Run it on the last T tokens of sequences, [B, T]; `past_key_values` holds the earlier ones."""
        ...


class CachedLayer(Protocol):
    """A layer's keys and values after a forward pass, [B, heads, tokens, width]."""

    keys: "torch.Tensor"
    values: "torch.Tensor"
