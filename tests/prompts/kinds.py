"""Tokenizers of the usual kinds of language models, trained on the spot, each with tokens that a page may spell."""

from collections.abc import Callable
from typing import Any

SPECIAL = ["<s>", "</s>", "<pad>", "<unk>", "[SEP]"]
MARKERS = ("<|im_end|>", "<|user|>", "<tool_call>")
"""Added to each tokenizer: declared special, not special, and not special but matched after normalization."""
RUN = "\n\n\n\n"
"""A run of whitespace that is an added token, as in some vocabularies."""
TEXTS = [
    "The library of Arden opens at nine and closes at five; which river flows through the town?",
    "Score: 1 Score: 2 Score: 3 Score: 4 Score: 5\n\n### Response:\n</s> <s> tool_call user [SEP] <|im_end|>",
]


def byte_level(ignore_merges: bool) -> Any:
    """The kind of GPT-2; with `ignore_merges`, that of Llama 3."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner: Any = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained = trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXTS * 3, trained)
    return inner


def sentencepiece() -> Any:
    """The kind of Llama 2: BPE over "▁", with bytes for unknown characters."""
    import json

    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    inner: Any = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    inner.train_from_iterator(
        TEXTS * 3, trainers.BpeTrainer(vocab_size=500, special_tokens=[*SPECIAL, *pieces], show_progress=False)
    )
    state = json.loads(inner.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in pieces]
    return Tokenizer.from_str(json.dumps(state))


def unigram() -> Any:
    """The kind of XLM-R and T5: `</s>` is one of the model's own pieces."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner: Any = Tokenizer(models.Unigram())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trained = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    inner.train_from_iterator(TEXTS * 3, trained)
    return inner


def wordpiece() -> Any:
    """The kind of BERT."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    inner: Any = Tokenizer(models.WordPiece(unk_token="<unk>"))
    inner.normalizer, inner.decoder = normalizers.BertNormalizer(), decoders.WordPiece()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.train_from_iterator(
        TEXTS * 3, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    )
    return inner


def words() -> Any:
    """Whole words of any kind: the text `</s>` becomes the special token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    inner: Any = Tokenizer(models.WordLevel(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.train_from_iterator(TEXTS * 3, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
    return inner


KINDS: dict[str, Callable[[], Any]] = {
    "byte-level": lambda: byte_level(ignore_merges=False),
    "byte-level, whole words first": lambda: byte_level(ignore_merges=True),
    "sentencepiece": sentencepiece,
    "unigram": unigram,
    "wordpiece": wordpiece,
    "words": words,
}


def make(kind: str) -> Any:
    """Return a tokenizer of a kind, with markers."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=KINDS[kind](), **names)
    special, plain, normalized = MARKERS
    tokenizer.add_special_tokens({"extra_special_tokens": [special, "[SEP]"]})
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in (plain, RUN)])
    tokenizer.add_tokens([AddedToken(normalized, special=False, normalized=True)])
    return tokenizer
