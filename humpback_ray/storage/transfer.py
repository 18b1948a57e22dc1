"""Upload a local file or directory to a URI, or copy a file between URIs; each file whole or not at all."""

import errno
import functools
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from humpback_ray.storage.connection import s3
from humpback_ray.storage.errors import Damaged
from humpback_ray.storage.files import sha256_of
from humpback_ray.storage.local import rename, temporary_beside, write_local
from humpback_ray.storage.uri import is_s3, join


@dataclass(frozen=True)
class FileEntry:
    """A file that was written: its name relative to the directory it belongs to, its size and its content."""

    name: str
    bytes: int
    sha256: str


def upload_directory(local: Path, uri: str) -> list[FileEntry]:
    """Copy every file of a local directory to a directory URI; the entries' names are relative to it."""
    entries = []
    for path in sorted(path for path in local.rglob("*") if path.is_file()):
        name = path.relative_to(local).as_posix()
        upload_file(path, join(uri, name))
        entries.append(FileEntry(name, path.stat().st_size, sha256_of(str(path))))
    return entries


def upload_file(local: Path, uri: str) -> None:
    """Copy one local file to a URI that nobody else writes; whole or not at all."""
    if is_s3(uri):
        s3().write(uri, local.stat().st_size, functools.partial(_bytes_of, local))
        return
    with local.open("rb") as source:
        write_local(uri, source)


def copy_file(uri: str, target: str, sha256: str) -> None:
    """Copy a file of any size; it appears under the new name only whole and with the right content.

    Raises:
        Damaged: the content read has another SHA-256; nothing is written.
    """
    if is_s3(target):
        with tempfile.TemporaryDirectory(prefix="humpback-copy-") as directory:
            path = Path(directory, "file")
            _fetch(uri, path, sha256)
            upload_file(path, target)
        return
    path = Path(temporary_beside(target))
    try:
        _fetch(uri, path, sha256)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        rename(str(path), target)
    finally:
        path.unlink(missing_ok=True)


def _fetch(uri: str, path: Path, sha256: str) -> None:
    if not is_s3(uri):
        shutil.copyfile(uri, path)
    elif stored := s3().stat(uri):
        s3().download(stored, path)
    else:
        raise FileNotFoundError(errno.ENOENT, "no such object", uri)
    if (found := sha256_of(str(path))) != sha256:
        raise Damaged(errno.EIO, f"{uri} has the SHA-256 {found}, but {sha256} was recorded; it was not copied")


def _bytes_of(local: Path, start: int, stop: int) -> bytes:
    with local.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)
