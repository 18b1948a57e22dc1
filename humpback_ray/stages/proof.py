"""What of files from outside can be proven again: how the rows of a stage that read them are made anew.

A stage of the graph that reads such files says which of the two it is; `operate/verify.py` does it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from humpback_ray.stages.commits import Commit
from humpback_ray.stages.manifest import Manifest
from humpback_ray.storage import InputFile


class Difference(Exception):
    """What storage holds is not what it says it holds; the message names the stage, the file and both values."""


@dataclass(frozen=True)
class Together:
    """All files become one table."""

    ids: Callable[[Manifest, Sequence[InputFile]], Iterator[pa.ChunkedArray]]
    """Reads the files again and yields the ids of their rows, dropped ones included."""


@dataclass(frozen=True)
class EachFile:
    """Each file becomes a shard, each of its documents (column `document_id`) any number of rows.

    A document that is in the files twice has its rows, and their ids, twice.
    """

    check: Callable[[Manifest, Commit, InputFile, frozenset[str]], int]
    """Reads a file again and returns its documents, those in quarantine (the last argument) left alone; raises
    Difference where one has other rows than its shard. Called in processes of its own."""
    refusal: Callable[[Manifest], str]
    """Says why that cannot be done with a stage, "" where it can."""


Again = Together | EachFile
