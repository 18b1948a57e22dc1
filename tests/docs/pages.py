"""The repository's Markdown pages, taken apart: prose, links, headings, code blocks, commands."""

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[2]
PATTERNS = ("*.md", "docs/*.md", "examples/*.md", "cluster/*.md")
PAGES = {str(path.relative_to(REPOSITORY)): path for pattern in PATTERNS for path in sorted(REPOSITORY.glob(pattern))}

_BLOCK = re.compile(r"^( *)```([^\n]*)\n(.*?)^ *```[ ]*$\n?", re.M | re.S)
_LINK = re.compile(
    r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|<(?:img|a|source)\b[^>]*?\b(?:src|srcset|href)=\"([^\"]+)\""
)
_DEFINED = re.compile(r"^ *\[[^\]]+\]:\s*(\S+)", re.M)
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.M)
_SHELL = ("", "bash", "sh", "console", "shell")


class Block(NamedTuple):
    """A fenced code block."""

    language: str
    text: str


def blocks(text: str) -> list[Block]:
    return [Block(language.strip(), body) for _, language, body in _BLOCK.findall(text)]


def prose(text: str) -> str:
    """A page without its code blocks."""
    return _BLOCK.sub("\n", text)


def spans(text: str) -> list[str]:
    """What stands in backticks in the prose of a page, tables included."""
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(text))]


def links(text: str) -> list[str]:
    """Where the prose of a page points to."""
    without_code = re.sub(r"(?<!`)`[^`\n]+`(?!`)", "", prose(text))
    found = [one or other for one, other in _LINK.findall(without_code)]
    return found + _DEFINED.findall(without_code)


def anchors(text: str) -> set[str]:
    """The names under which GitHub finds the headings of a page."""
    seen, found = Counter[str](), set()
    for heading in _HEADING.findall(prose(text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def broken_links(text: str, page: Path) -> Iterator[str]:
    """Relative links of a page to what is not there: a file, or a heading of one."""
    for link in links(text):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.is_relative_to(REPOSITORY) or not target.exists():
            yield f"{link}: no such file in the repository"
        elif anchor and target.suffix == ".md":
            there = text if target == page else target.read_text()
            if anchor not in anchors(there):
                yield f"{link}: {target.name} has no such heading"


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a page: of its shell blocks, and those in backticks that run a job or a target.

    A job that the prose merely names is one to be asked for its `--help`.
    """
    for block in blocks(text):
        if block.language in _SHELL:
            for line in block.text.replace("\\\n", " ").splitlines():
                yield from split(line)
    for span in spans(text):
        if re.match(r"(python3? |make [a-z])", span):
            yield from split(f"{span} --help" if re.fullmatch(r"python -m [\w.]+", span) else span)


def split(line: str) -> Iterator[list[str]]:
    """The commands of a line of shell, each without the variables that are set before it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set(";&|()<>"):
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words:
                yield words
            words = []
        else:
            words.append(word)
