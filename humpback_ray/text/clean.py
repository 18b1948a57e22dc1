"""Clean external text for tables and tokenizers."""


def clean(text: str) -> str:
    """Return text that Arrow and every tokenizer accept: replace lone surrogates, drop NUL, unify line endings."""
    text = text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")
    return text.encode("utf-8", "replace").decode("utf-8")
