"""Names of files: local paths and `s3://` URIs, as text; nothing here accesses the files."""

import errno
import os

from humpback_ray.storage.errors import StorageError


def is_s3(uri: str) -> bool:
    """Tell whether a URI is on S3."""
    return uri.startswith("s3://")


def join(uri: str, *parts: str) -> str:
    """Join path parts to a directory URI."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def located(uri: str) -> str:
    """Return a local path as absolute, with `~` expanded; an s3:// URI unchanged but without a trailing slash.

    Raises:
        StorageError: a URI of another scheme.
    """
    if is_s3(uri):
        return uri.rstrip("/")
    if "://" in uri:
        raise StorageError(
            errno.ENOTSUP, f"{uri} is neither a local path nor an s3:// URI; no other store is supported"
        )
    return os.path.abspath(os.path.expanduser(uri))
