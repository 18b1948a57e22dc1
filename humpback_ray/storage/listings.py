"""Directories: the files under them and, on S3, unfinished uploads."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from humpback_ray.storage.connection import s3
from humpback_ray.storage.local import is_temporary, tree
from humpback_ray.storage.uri import is_s3

if TYPE_CHECKING:
    from humpback_ray.storage.s3 import Stored


@dataclass(frozen=True)
class Listed:
    """A file in a listing: `name` is relative to the directory listed, `modified` in seconds by the store's clock."""

    name: str
    bytes: int
    modified: float


@dataclass(frozen=True)
class UnfinishedUpload:
    """A multipart upload on S3 that never ended: the intended name of its file, and `begun` by the store's clock."""

    name: str
    upload_id: str
    begun: float


def list_names(uri: str) -> list[str]:
    """Return the names of all files under a directory, relative to it, sorted; [] if there is no such directory."""
    if is_s3(uri):
        return sorted(name for name, _ in stored_under(uri))
    return sorted(name for name, _ in tree(uri) if not is_temporary(name))


def listing(uri: str, follow: bool = True) -> list[Listed]:
    """Return all files under a directory with size and time, sorted by name, including temporary local files.

    Without `follow`, a link to a directory is listed as a file, and the files behind it are not listed.
    """
    if is_s3(uri):
        entries = [Listed(name, stored.bytes, stored.modified) for name, stored in stored_under(uri)]
    else:
        entries = [Listed(name, stat.st_size, stat.st_mtime) for name, stat in tree(uri, follow=follow)]
    return sorted(entries, key=lambda entry: entry.name)


def stored_under(uri: str) -> "Iterator[tuple[str, Stored]]":
    """Yield the objects under an S3 directory with their names relative to it."""
    directory = uri.rstrip("/") + "/"
    for stored in s3().objects(directory):
        if not stored.uri.endswith("/"):  # others are directory markers
            yield stored.uri.removeprefix(directory), stored


def unfinished_uploads(uri: str) -> list[UnfinishedUpload]:
    """Return the multipart uploads under a directory that were neither completed nor aborted; [] for a local directory.

    Only files above 64 MiB are uploaded in parts. No reader sees the parts, but they cost money.
    """
    if not is_s3(uri):
        return []
    directory = uri.rstrip("/") + "/"
    found = s3().uploads(directory)
    return [UnfinishedUpload(upload.uri.removeprefix(directory), upload.id, upload.begun) for upload in found]


def abort_upload(uri: str, upload_id: str) -> None:
    """Drop the parts of an unfinished upload of the file `uri`; an ended upload is not an error."""
    s3().abort(uri, upload_id)
