"""One file at a time: read, write, create, delete, hash; and check whether a root is writable.

The ledger rests on the promise of `create`: if several writers create one name, exactly one succeeds, and readers see
the whole content or nothing. If a request is retried although it had succeeded, `create` returns False; the writer then
finds its own content when it reads the file back.
"""

import errno
import hashlib
import io
import json
import os
import uuid
from pathlib import Path
from typing import Any, BinaryIO

from humpback_ray.storage.connection import s3
from humpback_ray.storage.errors import Damaged, NoLinks, StorageError, words
from humpback_ray.storage.local import BLOCK_BYTES, create_local, write_local, write_temporary
from humpback_ray.storage.uri import is_s3, join


def exists(uri: str) -> bool:
    """Tell whether a file exists."""
    return s3().stat(uri) is not None if is_s3(uri) else os.path.isfile(uri)


def read_bytes(uri: str) -> bytes:
    """Return a file's content.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    return s3().read(uri) if is_s3(uri) else Path(uri).read_bytes()


def read_part(uri: str, start: int, stop: int) -> bytes:
    """Return the bytes from `start` to `stop` - 1 of a file, fewer if it is shorter."""
    if is_s3(uri):
        return s3().piece(uri, f"bytes={start}-{stop - 1}").data
    with open(uri, "rb") as file:
        file.seek(start)
        return file.read(stop - start)


def read_json(uri: str) -> Any:
    """Return the JSON object that a file of a run holds.

    Raises:
        FileNotFoundError: the file does not exist.
        Damaged: it holds something else.
    """
    data = read_bytes(uri)
    try:
        value = json.loads(data)
        if not isinstance(value, dict):
            raise ValueError("not an object in braces")
        return value
    except (ValueError, RecursionError) as error:
        raise Damaged(
            errno.EIO,
            f"{uri} is not JSON ({error}; {len(data)} bytes): it was cut off, or the run did not write it; restore it "
            "from a copy, or delete it if there is none",
        ) from None


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file, replacing any old one; readers see the old content or the new."""
    if is_s3(uri):
        s3().write(uri, len(data), lambda start, stop: data[start:stop])
    else:
        write_local(uri, io.BytesIO(data))


def create(uri: str, data: bytes) -> bool:
    """Write a file if the name is unused; return whether this call wrote it.

    False may also mean that an earlier request of this same call succeeded but its reply was lost. If that matters, the
    caller reads the file and compares.

    Raises:
        OSError: the store kept refusing, or has no conditional create.
    """
    return s3().create(uri, data) if is_s3(uri) else create_local(uri, data)


def delete(uri: str) -> None:
    """Delete one file; a missing one is not an error."""
    if is_s3(uri):
        s3().delete(uri)
    else:
        Path(uri).unlink(missing_ok=True)


def open_input(uri: str) -> BinaryIO:
    """Open a file for reading, seekable; the first 32 MiB of an S3 object are fetched at once, the rest when read."""
    return s3().open(uri) if is_s3(uri) else open(uri, "rb")


def sha256_of(uri: str) -> str:
    """Return the SHA-256 of a file's content, in hex, read in blocks."""
    digest = hashlib.sha256()
    with open_input(uri) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def check_writable(uri: str) -> None:
    """Create and delete a file under a root, to find a wrong path or a missing permission before any work.

    Raises:
        StorageError: the root is not writable, or the store ignores the condition of a conditional create.
    """
    probe = join(uri, f"probe-{uuid.uuid4().hex}")
    try:
        create(probe, b"1")
        create(probe, b"2")
        first = read_bytes(probe) == b"1"
        delete(probe)
    except NoLinks:
        raise
    except OSError as error:
        reason = _UNCONDITIONAL if is_s3(uri) and error.errno == errno.ENOTSUP else words(error)
        raise StorageError(error.errno or errno.EIO, f"cannot write to {uri}: {reason}") from error
    if not first:
        raise StorageError(errno.ENOTSUP, f"cannot write to {uri}: {_UNCONDITIONAL}")


_UNCONDITIONAL = (
    "its store cannot create a file only if the name is unused (PUT with If-None-Match: *), so two workers could "
    "commit the same shard; use a store that can (AWS S3, Cloudflare R2, MinIO, SeaweedFS) or a shared directory"
)


def check_room(uri: str) -> None:
    """Check that a local directory has room for a small file; S3 always has.

    Raises:
        StorageError: the file system is full; the message says what to do.
    """
    if is_s3(uri):
        return
    try:
        os.unlink(write_temporary(join(uri, "room"), io.BytesIO(bytes(ROOM_BYTES))))
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(
                error.errno,
                f"cannot write to {uri}: {os.strerror(error.errno)}; make room on its file system (`python -m jobs.gc` "
                "names the files of a run that can be deleted)",
            ) from error


_FULL = {errno.ENOSPC, errno.EDQUOT}
"""Error numbers of a full file system or an exhausted quota."""
ROOM_BYTES = 64 << 10
