"""Words of a text in any script, for every filter that counts or compares words.

Chinese, Japanese, Thai, Lao, Khmer and Burmese put no spaces between words, so a whole sentence would be one word. A
run of such letters gives its character n-grams instead: n = 2 for Chinese and Japanese, where most words have one or
two characters; n = 4 for the others, which spell words out. Vowel signs and accents that are separate characters
(Hindi, Arabic, Thai) belong to the word. This needs no dictionary: an n-gram is not a word, but texts that share words
share n-grams, and texts that repeat words repeat them.
"""

import re
from collections.abc import Iterator

import regex

_ASCII_WORD = re.compile(r"\w+")
_WORD = regex.compile(r"\w+")  # combining marks included, which re's \w leaves out
_DENSE = r"\p{Han}\p{Hiragana}\p{Katakana}ー々〆"
_SPELLED = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_UNSPACED = regex.compile(rf"[{_DENSE}{_SPELLED}]")
_RUN = regex.compile(rf"(?P<dense>(?:[{_DENSE}]\p{{M}}*)+)|(?P<spelled>[{_SPELLED}]+)|[^{_DENSE}{_SPELLED}]+")
_CHARS = {"dense": 2, "spelled": 4}
_KANA = regex.compile(r"[\p{Hiragana}ー]+")
_MIN_CONTENT_CHARS = 4


def words(text: str) -> list[str]:
    """Return the words of a text in order, as written; character n-grams for scripts without spaces.

    A run of k such characters gives k - n + 1 n-grams; a run shorter than n is one word.
    """
    if text.isascii():
        return _ASCII_WORD.findall(text)
    found = _WORD.findall(text)
    if not _UNSPACED.search(text):
        return found
    return [part for word in found for part in _parts(word)]


def _parts(word: str) -> Iterator[str]:
    for run in _RUN.finditer(word):
        size = _CHARS.get(run.lastgroup or "")
        if size is None:
            yield run[0]
        else:
            yield from (run[0][at : at + size] for at in range(max(1, len(run[0]) - size + 1)))


def content_words(text: str) -> set[str]:
    """Return the distinct words that show what a text is about: numbers, and words of four letters or more.

    Shorter words mostly occur in every text, as do runs of hiragana: Japanese endings and particles.
    """
    found = set(words(text.casefold()))
    return {word for word in found if len(word) >= _MIN_CONTENT_CHARS or word.isdigit() or _is_dense(word)}


def _is_dense(word: str) -> bool:
    return not word.isascii() and bool(_UNSPACED.match(word)) and not _KANA.fullmatch(word)
