"""Local paths and `s3://` URIs behind a handful of functions; the only package that touches a file system.

Other packages write `storage.join(...)`, `storage.read_json(...)`. The modules, lowest first; each imports only those
above it, and none imports this front:

    errors       the errors that storage raises, and `words` for them
    uri          names: `join`, `located`, `is_s3`
    steps        the points between two writes where a fault test can interfere
    s3           requests to S3: retries, multipart uploads, ranges (the only module that imports botocore)
    connection   this process's S3 client, with its patience and request counts: the package's mutable state
    local        local files written whole and synced, hard links, directory trees
    listings     the files under a directory, and unfinished uploads
    files        one file: `read_bytes`, `write_bytes`, `create`, `delete`, `sha256_of`; checks of a root
    versions     external files, each in the version that the run recorded
    globs        `find`: the files that a path, directory or glob names
    parquet      tables
    transfer     uploads and copies
    cache        this node's copies of files on S3
    inventory    the inputs of a run, resolved and identified

S3 credentials, region and endpoint come from the environment or the standard AWS files, never from a configuration.

Limits: no other stores (gs://, abfs://) until someone needs them; no local file systems without hard links.
"""

from humpback_ray.storage.cache import forget_local_file, forget_old_copies, local_directory, local_file, node_directory
from humpback_ray.storage.connection import be_patient, requests
from humpback_ray.storage.errors import Damaged, InputChanged, StorageError, words
from humpback_ray.storage.files import (
    check_room,
    check_writable,
    create,
    delete,
    exists,
    open_input,
    read_bytes,
    read_json,
    read_part,
    sha256_of,
    write_bytes,
)
from humpback_ray.storage.globs import find
from humpback_ray.storage.listings import Listed, abort_upload, list_names, listing, unfinished_uploads
from humpback_ray.storage.local import BLOCK_BYTES, is_temporary
from humpback_ray.storage.parquet import parquet_bytes, read_kept_rows, read_table
from humpback_ray.storage.transfer import FileEntry, copy_file, upload_directory, upload_file
from humpback_ray.storage.uri import is_s3, join, located
from humpback_ray.storage.versions import Directory, InputFile, check_unchanged, reading

__all__ = [
    "BLOCK_BYTES", "Damaged", "Directory", "FileEntry", "InputChanged", "InputFile", "Listed", "StorageError",
    "abort_upload", "be_patient", "check_room", "check_unchanged", "check_writable", "copy_file", "create", "delete",
    "exists", "find", "forget_local_file", "forget_old_copies", "is_s3", "is_temporary", "join", "list_names",
    "listing", "local_directory", "local_file", "located", "node_directory", "open_input", "parquet_bytes",
    "read_bytes", "read_json", "read_kept_rows", "read_part", "read_table", "reading", "requests", "sha256_of",
    "unfinished_uploads", "upload_directory", "upload_file", "words", "write_bytes",
]  # fmt: skip
