"""Text from outside, made such that tables and tokenizers take it."""


def clean(text: str) -> str:
    """Return text that Arrow and every tokenizer take: lone surrogates replaced, NUL and line-ending variants gone."""
    text = text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")
    return text.encode("utf-8", "replace").decode("utf-8")
