"""The shapes of the models that people fine-tune, and their parameters and FLOPs.

`SIZES` has one row per size; to add one, copy the values of its published `config.json`. Everything here is arithmetic,
so a plan needs neither weights nor a GPU. A test compares it with transformers' own models on the meta device.

The decoders are like Llama: embedding, layers of grouped-query attention and a gated feed-forward network without
biases, RMS norms, an output matrix that may be the embedding (`tied`). Qwen3 also normalizes queries and keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FAMILIES = ("llama", "mistral", "qwen3")
"""Values of `model_type` in the configurations that a `Shape` can describe."""


@dataclass(frozen=True)
class Shape:
    """The dimensions of a decoder."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    head: int
    """Elements of one head's query; `heads * head` may differ from `hidden`."""
    tied: bool = False
    """Whether the output matrix is the embedding."""
    qk_norm: bool = False
    """Whether queries and keys are normalized per head (Qwen3)."""

    @property
    def layer_matrices(self) -> dict[str, int]:
        """Elements of each matrix of a layer."""
        queries, keys = self.hidden * self.heads * self.head, self.hidden * self.kv_heads * self.head
        feed = self.hidden * self.ffn
        return {"q": queries, "k": keys, "v": keys, "o": queries, "gate": feed, "up": feed, "down": feed}

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer, its norms included."""
        return sum(self.layer_matrices.values()) + 2 * self.hidden + (2 * self.head if self.qk_norm else 0)

    @property
    def embedding(self) -> int:
        """Elements of the embedding, and also of the output matrix if it is a matrix of its own."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Number of all parameters."""
        return self.layers * self.layer_parameters + self.hidden + self.embedding * (1 if self.tied else 2)

    @property
    def largest(self) -> int:
        """Elements of the largest parameter."""
        return max(self.embedding, *self.layer_matrices.values())

    @property
    def kv_elements(self) -> int:
        """Elements of keys and values that one token takes in the cache."""
        return 2 * self.layers * self.kv_heads * self.head

    def forward_flops(self, tokens: float, context: float, logits: float | None = None) -> float:
        """Return the FLOPs of a forward pass.

        Two per matrix element and token (Kaplan et al. 2020, arXiv:2001.08361, section 2.1), and for attention two
        products of `context` by `head` per head, token and layer, halved because a token only sees earlier ones.

        Args:
            tokens: number of tokens read.
            context: length of their sequences, in tokens.
            logits: number of tokens whose next token is predicted; None: all.
        """
        matrices = self.layers * sum(self.layer_matrices.values())
        attention = 2 * self.layers * self.heads * self.head * context
        return tokens * (2 * matrices + attention) + 2 * self.embedding * (tokens if logits is None else logits)


def _shape(hidden: int, layers: int, heads: int, kv_heads: int, ffn: int, vocabulary: int, **more: Any) -> Shape:
    values: dict[str, Any] = {"head": hidden // heads} | more
    return Shape(hidden, layers, heads, kv_heads, ffn, vocabulary, **values)


_QWEN3: dict[str, Any] = {"head": 128, "qk_norm": True}

SIZES: Mapping[str, Shape] = {
    "llama-7b": _shape(4096, 32, 32, 32, 11008, 32_000),  # Touvron et al. 2023, arXiv:2302.13971, table 2
    "llama-13b": _shape(5120, 40, 40, 40, 13824, 32_000),
    "llama-33b": _shape(6656, 60, 52, 52, 17920, 32_000),
    "llama-65b": _shape(8192, 80, 64, 64, 22016, 32_000),
    "llama-2-70b": _shape(8192, 80, 64, 8, 28672, 32_000),  # Touvron et al. 2023, arXiv:2307.09288
    "llama-3.2-1b": _shape(2048, 16, 32, 8, 8192, 128_256, tied=True),
    "llama-3.1-8b": _shape(4096, 32, 32, 8, 14336, 128_256),  # Dubey et al. 2024, arXiv:2407.21783, table 3
    "llama-3.1-70b": _shape(8192, 80, 64, 8, 28672, 128_256),
    "qwen3-0.6b": _shape(1024, 28, 16, 8, 3072, 151_936, tied=True, **_QWEN3),  # Yang et al. 2025, arXiv:2505.09388
    "qwen3-1.7b": _shape(2048, 28, 16, 8, 6144, 151_936, tied=True, **_QWEN3),
    "qwen3-4b": _shape(2560, 36, 32, 8, 9728, 151_936, tied=True, **_QWEN3),
    "qwen3-8b": _shape(4096, 36, 32, 8, 12288, 151_936, **_QWEN3),
    "qwen3-14b": _shape(5120, 40, 40, 8, 17408, 151_936, **_QWEN3),
    "qwen3-32b": _shape(5120, 64, 64, 8, 25600, 151_936, **_QWEN3),
}
"""Shapes as in `config.json`: hidden, layers, heads, heads of keys and values, ffn, vocabulary."""


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Return the shape that a model's `config.json` describes.

    Raises:
        ValueError: the model's family is not in FAMILIES.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"the model's family is {family}; shapes are only known for {', '.join(FAMILIES)}")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    return Shape(
        hidden=hidden, layers=config["num_hidden_layers"], heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads, ffn=config["intermediate_size"],
        vocabulary=config["vocab_size"], head=config.get("head_dim") or hidden // heads,
        tied=bool(config.get("tie_word_embeddings", False)), qk_norm=family == "qwen3",
    )  # fmt: skip
