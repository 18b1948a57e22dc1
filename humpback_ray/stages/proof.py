"""How `jobs.verify` proves a stage that reads external files: it makes the ids of its rows again.

A stage of the graph that reads such files says which of the two ways applies; `operate/verify.py` does the work.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from humpback_ray.stages.commits import Commit
from humpback_ray.stages.manifest import Manifest
from humpback_ray.storage import InputFile


class Difference(Exception):
    """Storage does not hold what the records say; the message names the stage, the file and both values."""


@dataclass(frozen=True)
class Together:
    """All files become one table."""

    ids: Callable[[Manifest, Sequence[InputFile]], Iterator[pa.ChunkedArray]]
    """Reads the files again and yields the ids of their rows, including dropped ones."""


@dataclass(frozen=True)
class EachFile:
    """Each file becomes a shard, and each of its documents (column `document_id`) any number of rows.

    A document that occurs twice has its rows, and their ids, twice.
    """

    check: Callable[[Manifest, Commit, InputFile, frozenset[str]], int]
    """Reads a file again, except documents in quarantine (the last argument), and returns its number of documents;
    raises Difference if one has other rows than its shard. Called in separate processes."""
    refusal: Callable[[Manifest], str]
    """Returns why a stage cannot be checked in this way, or ""."""


Again = Together | EachFile
