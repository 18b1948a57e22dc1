"""One file at a time: read, written, created, deleted, hashed; and whether a root can be written to at all.

The promise that the ledger rests on is `create`: of any number of writers of one name exactly one succeeds, readers
see the whole content or nothing, and a writer whose request was retried after it had succeeded can find out by reading
back (`create` returns False, the content is its own).
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
        FileNotFoundError: there is none.
    """
    return s3().read(uri) if is_s3(uri) else Path(uri).read_bytes()


def read_json(uri: str) -> Any:
    """Return the JSON object that a file of a run holds.

    Raises:
        FileNotFoundError: there is none.
        Damaged: it holds something else.
    """
    data = read_bytes(uri)
    try:
        value = json.loads(data)
        if not isinstance(value, dict):
            raise ValueError("no object in braces")
        return value
    except (ValueError, RecursionError) as error:
        raise Damaged(
            errno.EIO,
            f"{uri} is not JSON ({error}; {len(data)} bytes): it was cut off or is not the run's; restore it from a "
            "copy, or delete it if nothing else is known of it",
        ) from None


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file whole, over what was there; readers see the old content or the new."""
    if is_s3(uri):
        s3().write(uri, len(data), lambda start, stop: data[start:stop])
    else:
        write_local(uri, io.BytesIO(data))


def create(uri: str, data: bytes) -> bool:
    """Write a file if there is none of that name; return whether this call wrote it.

    False may also mean that an earlier request of this very call had succeeded while its reply was lost: a caller to
    whom that matters reads the file and compares.

    Raises:
        OSError: the store went on refusing, or has no conditional create.
    """
    return s3().create(uri, data) if is_s3(uri) else create_local(uri, data)


def delete(uri: str) -> None:
    """Delete one file; a missing one is no error."""
    if is_s3(uri):
        s3().delete(uri)
    else:
        Path(uri).unlink(missing_ok=True)


def open_input(uri: str) -> BinaryIO:
    """Open a file for reading, seekable; 32 MiB of an S3 object are fetched at once, the rest as it is read."""
    return s3().open(uri) if is_s3(uri) else open(uri, "rb")


def sha256_of(uri: str) -> str:
    """Return the SHA-256 of a file's content, in hex, read in blocks."""
    digest = hashlib.sha256()
    with open_input(uri) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def check_writable(uri: str) -> None:
    """Create and delete a file under a root, so that a wrong path or a missing permission is found before any work.

    Raises:
        StorageError: it cannot be written, or the store ignores the condition of a conditional create.
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
    "its store cannot create a file only if there is none (PUT with If-None-Match: *), so two workers could commit the "
    "same shard; use a store that can (AWS S3, Cloudflare R2, MinIO and SeaweedFS do) or a shared directory"
)


def check_room(uri: str) -> None:
    """Check that a local directory has room for a small file; S3 always has.

    Raises:
        StorageError: it has none; the message says what to do.
    """
    if is_s3(uri):
        return
    try:
        os.unlink(write_temporary(join(uri, "room"), io.BytesIO(bytes(ROOM_BYTES))))
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(
                error.errno,
                f"{uri} cannot be written to: {os.strerror(error.errno)}; make room on its file system (`python -m "
                "jobs.gc` names what of a run may go)",
            ) from error


_FULL = {errno.ENOSPC, errno.EDQUOT}
"""Errors of a file system that is full, or whose quota is used up."""
ROOM_BYTES = 64 << 10
