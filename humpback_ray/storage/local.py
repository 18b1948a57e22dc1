"""Local files: written whole, synced before they are visible, created once; and directory trees.

A file is written under a temporary name beside its own, synced, then linked or renamed; last, the directory is synced.
Readers see the whole content or nothing, even after a power loss. `create` needs hard links.
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
"""Bytes of a file that are read or copied at a time."""
_TEMPORARY = ".tmp-"


def write_local(uri: str, source: BinaryIO) -> None:
    """Write a whole local file, replacing any old one."""
    rename(write_temporary(uri, source), uri)


def rename(temporary: str, uri: str) -> None:
    """Give a synced temporary file its name, replacing any old file."""
    os.replace(temporary, uri)
    _keep_entries(os.path.dirname(uri))


def _keep_entries(directory: str) -> None:
    """Make a directory's entries survive a power loss; do nothing if the file system cannot promise that."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def create_local(uri: str, data: bytes) -> bool:
    """Write a local file if the name is unused; return whether this call wrote it."""
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
                    f"the file system of {uri} does not support hard links ({os.strerror(error.errno)}), so two "
                    "workers could commit the same shard; use a directory on one that does (ext4, XFS, NFS, Lustre; "
                    "not FAT, SMB or a mounted bucket), or an s3:// URI",
                ) from error
            raise
    finally:
        Path(temporary).unlink(missing_ok=True)  # `gc` may have deleted it if this writer hung for a day
    _keep_entries(os.path.dirname(uri))
    return True


_NO_LINKS = {
    errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK, errno.EXDEV
}  # fmt: skip
"""Errors with which file systems without hard links, or FUSE, refuse a link."""


def _same_file(first: str, second: str) -> bool:
    try:
        return os.path.samefile(first, second)
    except FileNotFoundError:
        return False


def write_temporary(uri: str, source: BinaryIO) -> str:
    """Write the content of a file under a temporary name beside it, synced; a failed write leaves nothing behind."""
    temporary = temporary_beside(uri)
    try:
        with open(temporary, "xb") as file:
            shutil.copyfileobj(source, file, BLOCK_BYTES)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            Path(temporary).unlink(missing_ok=True)
        error.filename = error.filename or uri  # ENOSPC is raised where no file name is known
        raise
    return temporary


def temporary_beside(uri: str) -> str:
    """Return an unused temporary name in the directory of a file; create the directory if it is missing."""
    directory = os.path.dirname(uri)
    _make_directory(directory)
    return os.path.join(directory, f"{_TEMPORARY}{socket.gethostname()}-{uuid.uuid4().hex}")


def _make_directory(directory: str) -> None:
    """Create a directory and its missing parents so that their entries survive a power loss."""
    if not os.path.isdir(directory):
        above = os.path.dirname(directory)
        _make_directory(above)
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory)
        _keep_entries(above)


def is_temporary(name: str) -> bool:
    """Tell whether a name in a local `listing` belongs to a file that is being written or was left half-written."""
    return name.rsplit("/", 1)[-1].startswith(_TEMPORARY)


def tree(
    directory: str, enter: Callable[[str], bool] = lambda name: True, follow: bool = True, within: str = "",
    above: tuple[int, ...] = (),
) -> Iterator[tuple[str, os.stat_result]]:  # fmt: skip
    """Yield the files under a local directory with their names relative to it, links followed; none if it is missing.

    Args:
        directory: where to begin.
        enter: takes a subdirectory's relative name; returns whether to look into it.
        follow: whether to follow links to directories; otherwise they are yielded as files.
        within: relative name of the directory to look into; "" for the first one.
        above: inodes of the directories above that one.

    Raises:
        OSError: a directory cannot be read, or a link leads nowhere or back; the message names it.
    """
    here = os.path.join(directory, within) if within else directory
    try:
        entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        inode = os.stat(here).st_ino
    except FileNotFoundError:
        return
    if inode in above:
        raise StorageError(errno.ELOOP, f"{here} is a link to a directory that contains it; remove it")
    for entry in entries:
        name = f"{within}/{entry.name}" if within else entry.name
        try:
            stat = entry.stat()
        except FileNotFoundError as error:
            if entry.is_symlink():
                target = os.readlink(entry.path)
                raise StorageError(errno.ENOENT, f"{entry.path} is a link to {target}, which does not exist") from error
            continue  # a writer has just deleted its temporary file, or a file that lost the race to commit
        if S_ISDIR(stat.st_mode) and (follow or not entry.is_symlink()):
            if enter(name):
                yield from tree(directory, enter, follow, name, (*above, inode))
        elif S_ISDIR(stat.st_mode) or S_ISREG(stat.st_mode):
            yield name, stat
