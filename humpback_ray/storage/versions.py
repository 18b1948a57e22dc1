"""External files, each in the version that the run recorded; every read checks that the version is unchanged.

An etag identifies the content on S3, a hash elsewhere. A local file is hashed again only if the file system says that
it may have changed.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from humpback_ray.storage.connection import s3
from humpback_ray.storage.errors import InputChanged
from humpback_ray.storage.files import sha256_of
from humpback_ray.storage.uri import is_s3

if TYPE_CHECKING:
    from humpback_ray.storage.s3 import Stored


@dataclass(frozen=True)
class InputFile:
    """A file that a run reads: `name` is relative to its pattern's fixed part, so a moved folder is the same input."""

    uri: str
    name: str
    bytes: int
    version: str = ""
    """Identity of the content: `etag:...` on S3, `sha256:...` elsewhere; "" if not determined yet."""
    stamp: str = ""
    """State of a local file as its file system reports it (`stamp_of`): while it is unchanged, so is the content."""


@dataclass(frozen=True)
class Directory:
    """A directory and the files that it must hold, each in its version; without `files`, any files in any version."""

    uri: str
    files: tuple[InputFile, ...] = ()


@contextlib.contextmanager
def reading(file: InputFile) -> Iterator[BinaryIO]:
    """Open an input file in the version that the run recorded, in a `with` block.

    Raises:
        InputChanged: the version differs; for a local file this is checked only at the end of the block, after reading.
    """
    if is_s3(file.uri):
        try:
            with s3().open(file.uri, etag=file.version and f'"{file.version.removeprefix("etag:")}"') as stream:
                yield stream
        except FileExistsError as error:
            raise changed(file, "another etag") from error
        return
    with open(file.uri, "rb") as stream:
        yield stream
    check_unchanged(file)


def check_unchanged(file: InputFile) -> None:
    """Raise InputChanged if an input file is not the one that the run recorded; hash a local file if in doubt."""
    if is_s3(file.uri):
        stored = s3().stat(file.uri)
        found = etag_version(stored) if stored else "no object"
    else:
        stat = os.stat(file.uri)
        if not file.version or (stat.st_size, stamp_of(stat)) == (file.bytes, file.stamp):
            return
        found = f"sha256:{sha256_of(file.uri)}"
    if found != file.version:
        raise changed(file, found)


def changed(file: InputFile, found: str) -> InputChanged:
    """Return the error for an input file that was found in another version."""
    return InputChanged(
        errno.EIO,
        f"{file.uri} has changed since this run recorded it: recorded {file.version} ({file.bytes:,} bytes), found "
        f"{found}; put the old file back, or use another root for the new one",
    )


def stamp_of(stat: os.stat_result) -> str:
    """Return text that changes when a file is written or replaced, even if size and modification time stay the same."""
    return f"{stat.st_mtime_ns}-{stat.st_ctime_ns}-{stat.st_ino}"


def etag_version(stored: "Stored") -> str:
    """Return the version of an object as `InputFile` writes it."""
    return "etag:" + stored.etag.strip('"')
