"""A byte-level BPE tokenizer and a random Llama, made in a second."""

from pathlib import Path
from typing import Any

TEXTS = [
    "The library of Arden opens at nine and closes at five.",
    "Which river flows through the town? Answer in the style of an AI Assistant.",
    "Score: 1 Score: 2 Score: 3 Score: 4 Score: 5\n\n### Response:\n",
]


def make_tokenizer(bos: bool) -> Any:
    """Return a tokenizer that decodes to the same text; with `bos` it puts its start token before a text by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    special = ["<s>", "</s>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXTS * 3, trainer)
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def save_model(folder: Path, bos: bool = True, context_tokens: int = 256, kind: str = "llama", **shape: Any) -> Path:
    """Write a random model with clearly different logits, which sometimes ends its replies.

    Args:
        folder: directory to write to.
        bos: whether its tokenizer puts its start token before a text by itself.
        context_tokens: number of its positions.
        kind: transformers' name of the kind of model; `shape` has its own settings.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer(bos)
    torch.manual_seed(0)
    usual = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": context_tokens,
        "initializer_range": 0.3, "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    config = AutoConfig.for_model(kind, **usual | shape)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] *= 2.5
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
