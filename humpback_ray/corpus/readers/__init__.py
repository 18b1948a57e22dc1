"""Corpus readers: a closed union on `kind`; the suffix of a file selects its reader."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from humpback_ray.config import ConfigError
from humpback_ray.corpus.readers.base import Document, Dropped
from humpback_ray.corpus.readers.jsonl import JsonlReader
from humpback_ray.corpus.readers.warc import WarcReader

__all__ = ["Document", "Dropped", "JsonlReader", "Reader", "WarcReader", "default_readers", "reader_for"]

Reader = Annotated[WarcReader | JsonlReader, Field(discriminator="kind")]


def default_readers() -> tuple[WarcReader | JsonlReader, ...]:
    """Return every reader with its defaults, for configurations that name no readers."""
    return (WarcReader.model_validate({}), JsonlReader.model_validate({}))


def reader_for(name: str, readers: Sequence[WarcReader | JsonlReader]) -> WarcReader | JsonlReader:
    """Return the first reader that takes files of this name.

    Raises:
        ConfigError: no reader takes them.
    """
    lowered = name.lower()
    for reader in readers:
        if lowered.endswith(reader.suffixes):
            return reader
    taken = ", ".join(suffix for reader in readers for suffix in reader.suffixes)
    raise ConfigError(f"no reader takes {name}: the configured readers take {taken}")
