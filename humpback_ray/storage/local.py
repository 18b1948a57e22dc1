"""Local files: written whole, synced before they are seen, created once; and the trees of directories.

A file is written under a temporary name beside its own, synced, and then linked or renamed, and the directory is synced
after it: readers see the whole content or nothing, also after a loss of power. `create` needs hard links.
"""

import contextlib
import errno
import io
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import BinaryIO

from humpback_ray.storage.errors import NoLinks, StorageError
from humpback_ray.storage.steps import reach

BLOCK_BYTES = 8 << 20
"""How much of a file is read or copied at a time."""
_TEMPORARY = ".tmp-"


def write_local(uri: str, source: BinaryIO) -> None:
    """Write a local file whole, over what was there."""
    rename(write_temporary(uri, source), uri)


def rename(temporary: str, uri: str) -> None:
    """Give a synced temporary file its name, over what was there."""
    os.replace(temporary, uri)
    _keep_entries(os.path.dirname(uri))


def _keep_entries(directory: str) -> None:
    """Make a directory's entries outlive a loss of power; where the file system cannot promise that, do nothing."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def create_local(uri: str, data: bytes) -> bool:
    """Write a local file if there is none of that name; return whether this call wrote it."""
    if os.path.exists(uri):
        return False
    temporary = write_temporary(uri, io.BytesIO(data))
    reach(8)
    try:
        os.link(temporary, uri)
    except OSError as error:
        if not _same_file(temporary, uri):  # NFS may report an error for a link that it made
            if isinstance(error, FileExistsError):
                return False
            if error.errno in _NO_LINKS:
                raise NoLinks(
                    error.errno,
                    f"the file system of {uri} makes no hard links ({os.strerror(error.errno)}), without which two "
                    "workers could commit the same shard; use a directory on one that does (ext4, XFS, NFS and Lustre "
                    "do; FAT, SMB and buckets that are mounted do not), or an s3:// URI",
                ) from error
            raise
    finally:
        Path(temporary).unlink(missing_ok=True)  # `gc` may have taken it from a writer that stood still for a day
    _keep_entries(os.path.dirname(uri))
    return True


_NO_LINKS = {
    errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK, errno.EXDEV
}  # fmt: skip
"""Errors with which file systems without hard links, or FUSE on their behalf, refuse a link."""


def _same_file(first: str, second: str) -> bool:
    try:
        return os.path.samefile(first, second)
    except FileNotFoundError:
        return False


def write_temporary(uri: str, source: BinaryIO) -> str:
    """Write the content of a file under a temporary name beside it, synced; a write that fails leaves nothing."""
    temporary = temporary_beside(uri)
    try:
        with open(temporary, "xb") as file:
            shutil.copyfileobj(source, file, BLOCK_BYTES)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            Path(temporary).unlink(missing_ok=True)
        error.filename = error.filename or uri  # a full disk is noticed where no name is known
        raise
    return temporary


def temporary_beside(uri: str) -> str:
    """Return an unused temporary name in the directory of a file; make the directory if it is missing."""
    directory = os.path.dirname(uri)
    _make_directory(directory)
    return os.path.join(directory, f"{_TEMPORARY}{socket.gethostname()}-{uuid.uuid4().hex}")


def _make_directory(directory: str) -> None:
    """Make a directory and those above it that are missing, so that their entries outlive a loss of power."""
    if not os.path.isdir(directory):
        above = os.path.dirname(directory)
        _make_directory(above)
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory)
        _keep_entries(above)


def is_temporary(name: str) -> bool:
    """Tell whether a name in a local `listing` belongs to a file that is being written, or was left half-written."""
    return name.rsplit("/", 1)[-1].startswith(_TEMPORARY)


def tree(
    directory: str, enter: Callable[[str], bool] = lambda name: True, follow: bool = True, within: str = "",
    above: tuple[int, ...] = (),
) -> Iterator[tuple[str, os.stat_result]]:  # fmt: skip
    """Yield the files under a local directory, links followed, by their names relative to it; none if it is missing.

    Args:
        directory: where to begin.
        enter: tells of a directory in it, by its relative name, whether to look into it.
        follow: whether links to directories are; else they are yielded as files.
        within: the relative name of the directory that is looked into; "" of the first.
        above: inodes of that directory and those above it.

    Raises:
        OSError: a directory cannot be read, a link leads nowhere or back; the message names it.
    """
    here = os.path.join(directory, within) if within else directory
    try:
        entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        inode = os.stat(here).st_ino
    except FileNotFoundError:
        return
    if inode in above:
        raise StorageError(errno.ELOOP, f"{here} is a link to a directory that it lies in; remove it")
    for entry in entries:
        name = f"{within}/{entry.name}" if within else entry.name
        try:
            stat = entry.stat()
        except FileNotFoundError as error:
            if entry.is_symlink():
                target = os.readlink(entry.path)
                raise StorageError(errno.ENOENT, f"{entry.path} is a link to {target}, which is not there") from error
            continue  # it was temporary, or a loser's: a writer is at work
        if S_ISDIR(stat.st_mode) and (follow or not entry.is_symlink()):
            if enter(name):
                yield from tree(directory, enter, follow, name, (*above, inode))
        elif S_ISDIR(stat.st_mode) or S_ISREG(stat.st_mode):
            yield name, stat
