"""Small tokenizers of the usual families of base models, trained on the spot, with and without a start token."""

import json
from collections.abc import Callable
from functools import cache, partial
from typing import Any

TEXTS = [
    "The library of Arden opens at nine and closes at five; which river flows through the town? It is 3 or 14.",
    "Yes. No, indeed! It is so. Answer in the style of an AI Assistant. Answer with knowledge from web search.",
    "### Response:\n### Instruction:\n### Text:\nSo it is:\n\nYes\n\nNo:\n\nIt is.",
    "Score: 1 Score: 2 Score: 3 Score: 4 Score: 5",
]
SPECIAL = ["<unk>", "<s>", "</s>"]
LLAMA_3 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@cache
def sentencepiece_bpe() -> str:
    """Return the model of a SentencePiece BPE, as JSON: pieces with "▁", no merge across a line break, bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    inner: Any = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="never")]
    )
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=560, special_tokens=[*SPECIAL, *pieces], show_progress=False)
    inner.train_from_iterator(TEXTS * 3, trainer)
    return json.dumps(json.loads(inner.to_str())["model"])


def llama(bos: bool, **options: Any) -> Any:
    """Return transformers' own LlamaTokenizer."""
    from transformers import LlamaTokenizer

    model = json.loads(sentencepiece_bpe())
    merges = [tuple(merge) for merge in model["merges"]]
    return LlamaTokenizer(vocab=model["vocab"], merges=merges, add_bos_token=bos, **options)


def _wrapped(inner: Any, bos: bool) -> Any:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    if bos:
        start = ("<s>", inner.token_to_id("<s>"))
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[start])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def prepending(bos: bool, normalized: bool = False) -> Any:
    """Llama 2's tokenizer.json: a normalizer writes "▁" for spaces and before every text."""
    from tokenizers import AddedToken, Tokenizer, decoders, normalizers

    inner: Any = Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], "model": {}}).replace(
        '"model": {}', f'"model": {sentencepiece_bpe()}'
    ))  # fmt: skip
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens([AddedToken(text, normalized=normalized, special=True) for text in SPECIAL])
    return _wrapped(inner, bos)


def unigram(bos: bool, scheme: Any) -> Any:
    """The kind of XLM-R and T5."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner: Any = Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    inner.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    inner.train_from_iterator(TEXTS * 3, trainer)
    return _wrapped(inner, bos)


def byte_level(bos: bool, prefix: bool = False, split: str | None = None) -> Any:
    """The kind of GPT-2, or with `split` that of Llama 3 and Qwen."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    inner: Any = Tokenizer(models.BPE(ignore_merges=split is not None))
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=split is None)
    parts = [pre_tokenizers.Split(Regex(split), "isolated"), level] if split else [level]
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Sequence(parts), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXTS * 3, trainer)
    return _wrapped(inner, bos)


FAMILIES: dict[str, Callable[[bool], Any]] = {
    "llama": llama,
    "llama, legacy": partial(llama, legacy=True),
    "llama, no prefix space": partial(llama, add_prefix_space=False),
    "sentencepiece, prepending": prepending,
    "unigram, always": partial(unigram, scheme="always"),
    "unigram, first": partial(unigram, scheme="first"),
    "unigram, never": partial(unigram, scheme="never"),
    "byte-level": byte_level,
    "byte-level, prefix space": partial(byte_level, prefix=True),
    "byte-level, llama 3": partial(byte_level, split=LLAMA_3),
}
LOSSLESS = [name for name in FAMILIES if "unigram" not in name]
