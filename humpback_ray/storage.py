"""Local paths and `s3://` URIs behind a handful of functions; the only module that touches a filesystem.

The promise that the ledger rests on is `create`: of any number of writers of one name exactly one succeeds, readers
see the whole content or nothing, and a writer whose request was retried after it had succeeded can find out by reading
back (`create` returns False, the content is its own). Credentials, region and endpoint of S3 come from the environment
or the standard AWS files, never from a configuration.

Given up: other stores (gs://, abfs://) until someone needs them; local filesystems without hard links.
"""

import contextlib
import errno
import functools
import hashlib
import io
import os
import random
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from humpback_ray import steps

BLOCK_BYTES = 8 << 20
CREATE_ATTEMPTS = 8
_TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class FileEntry:
    """A file that was written: its name relative to the directory it belongs to, its size and its content."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class InputFile:
    """A file that a run reads: `name` is relative to its pattern's fixed part, so a moved folder is the same input."""

    uri: str
    name: str
    bytes: int
    version: str
    """S3: the etag. Local: modification time in ns; `run.Inventory` replaces it by a content hash."""


@dataclass(frozen=True)
class Listed:
    """A file in a listing: `name` is relative to the directory listed, `modified` in seconds by the store's clock."""

    name: str
    bytes: int
    modified: float


class StorageError(OSError):
    """Storage answered something the caller cannot act on; the message says which URI and what to do."""


def is_s3(uri: str) -> bool:
    """Tell whether a URI is on S3."""
    return uri.startswith("s3://")


def join(uri: str, *parts: str) -> str:
    """Join path parts to a directory URI."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def located(uri: str) -> str:
    """Return a local path made absolute, `~` expanded; an s3:// URI as it is, without a trailing slash.

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


@functools.cache
def _s3_of(_pid: int) -> "_S3":
    return _S3()


def _s3() -> "_S3":
    return _s3_of(os.getpid())


class _S3:
    """s3fs, with errors of the connection and of credentials, which are no OSError there, made one."""

    def __init__(self) -> None:
        import botocore.exceptions
        import s3fs

        self._files = s3fs.S3FileSystem(use_listings_cache=False, default_block_size=BLOCK_BYTES)
        self._faults = botocore.exceptions.BotoCoreError

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._files, name)

        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return method(*arguments, **named)
            except self._faults as error:
                raise StorageError(errno.EIO, f"S3: {error}") from error

        return call


def _bucket_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def exists(uri: str) -> bool:
    """Tell whether a file exists."""
    return bool(_s3().isfile(uri)) if is_s3(uri) else os.path.isfile(uri)


def read_bytes(uri: str) -> bytes:
    """Return a file's content.

    Raises:
        FileNotFoundError: there is none.
    """
    return _s3().cat_file(uri) if is_s3(uri) else Path(uri).read_bytes()


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file whole, over what was there; readers see the old content or the new."""
    if is_s3(uri):
        bucket, key = _bucket_key(uri)
        _s3().call_s3("put_object", Bucket=bucket, Key=key, Body=data)
    else:
        os.replace(_write_temporary(uri, data), uri)


def create(uri: str, data: bytes) -> bool:
    """Write a file if there is none of that name; return whether this call wrote it.

    False may also mean that an earlier request of this very call had succeeded while its reply was lost: a caller to
    whom that matters reads the file and compares.

    Raises:
        StorageError: the store refused eight times in a row.
    """
    return _create_s3(uri, data) if is_s3(uri) else _create_local(uri, data)


def _create_local(uri: str, data: bytes) -> bool:
    if os.path.exists(uri):
        return False
    temporary = _write_temporary(uri, data)
    steps.reach(8)
    try:
        os.link(temporary, uri)
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)
    return True


def _write_temporary(uri: str, data: bytes) -> str:
    parent = os.path.dirname(uri)
    os.makedirs(parent, exist_ok=True)
    temporary = os.path.join(parent, f"{_TEMPORARY}{socket.gethostname()}-{uuid.uuid4().hex}")
    with open(temporary, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def _create_s3(uri: str, data: bytes) -> bool:
    bucket, key = _bucket_key(uri)
    for attempt in range(CREATE_ATTEMPTS):
        try:
            _s3().call_s3("put_object", Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except OSError as error:
            code = _error_code(error)
            if code == "PreconditionFailed":
                return False
            if code not in _TRY_AGAIN or attempt == CREATE_ATTEMPTS - 1:
                raise
            time.sleep(random.uniform(0, 0.1 * 2**attempt))
        else:
            return True
    raise StorageError(errno.EIO, f"creating {uri} was refused {CREATE_ATTEMPTS} times")


_TRY_AGAIN = {
    "ConditionalRequestConflict", "OperationAborted", "InternalError", "ServiceUnavailable", "SlowDown", "connection",
}  # fmt: skip


def _error_code(error: BaseException) -> str:
    """Return S3's code of a failed call; s3fs keeps botocore's error as the cause."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            code = str(response.get("Error", {}).get("Code", ""))
            return {"412": "PreconditionFailed", "409": "ConditionalRequestConflict", "503": "SlowDown"}.get(code, code)
        if isinstance(cause, StorageError):
            return "connection"
        cause = cause.__cause__
    return ""


def delete(uri: str) -> None:
    """Delete one file; a missing one is no error."""
    if is_s3(uri):
        bucket, key = _bucket_key(uri)
        _s3().call_s3("delete_object", Bucket=bucket, Key=key)
    else:
        Path(uri).unlink(missing_ok=True)


def list_names(uri: str) -> list[str]:
    """Return the names of all files under a directory, relative to it, sorted; [] if there is no such directory."""
    if is_s3(uri):
        prefix = uri.removeprefix("s3://").rstrip("/") + "/"
        names = (path.removeprefix(prefix) for path in _s3().find(uri.rstrip("/") + "/") if path.startswith(prefix))
        return sorted(name for name in names if name and not name.endswith("/"))  # others are directory markers
    found = []
    for parent, _, names in os.walk(uri):
        relative = os.path.relpath(parent, uri)
        found += [os.path.normpath(os.path.join(relative, name)) for name in names if not name.startswith(_TEMPORARY)]
    return sorted(found)


def listing(uri: str) -> list[Listed]:
    """Return all files under a directory with size and time, sorted by name; temporary local files included."""
    if is_s3(uri):
        prefix = uri.removeprefix("s3://").rstrip("/") + "/"
        found = _s3().find(uri.rstrip("/") + "/", detail=True)
        entries = [
            Listed(path.removeprefix(prefix), int(info["size"]), info["LastModified"].timestamp())
            for path, info in found.items()
            if path.startswith(prefix) and info["type"] == "file"
        ]
    else:
        paths = [Path(parent) / name for parent, _, names in os.walk(uri) for name in names]
        stats = [(path, path.stat()) for path in paths if path.is_file()]
        entries = [Listed(path.relative_to(uri).as_posix(), stat.st_size, stat.st_mtime) for path, stat in stats]
    return sorted((entry for entry in entries if entry.name), key=lambda entry: entry.name)


def open_input(uri: str) -> BinaryIO:
    """Open a file to read from, seekable; S3 objects are fetched block by block as they are read."""
    return _s3().open(uri, "rb", cache_type="readahead") if is_s3(uri) else open(uri, "rb")


def find(pattern: str) -> list[InputFile]:
    """Return the files that a path, directory, glob or s3:// URI names, sorted by name; [] if none.

    A directory stands for every file under it.
    """
    if is_s3(pattern):
        return _find_s3(pattern, *_split(pattern))
    pattern = located(pattern)
    fixed, wild = (pattern, "") if os.path.exists(pattern) else _split(pattern)
    base = Path(fixed)
    if wild:
        paths = [path for path in base.glob(wild) if path.is_file()] if base.is_dir() else []
    elif base.is_dir():
        paths = [path for path in base.rglob("*") if path.is_file() and not path.name.startswith(".")]
    else:
        paths, base = ([base], base.parent) if base.is_file() else ([], base)
    stats = [(path, path.stat()) for path in sorted(paths)]
    return [InputFile(str(p), p.relative_to(base).as_posix(), s.st_size, str(s.st_mtime_ns)) for p, s in stats]


def _split(pattern: str) -> tuple[str, str]:
    """Split a pattern into the directory before its first wildcard and the rest."""
    parts = pattern.split("/")
    wild = next((i for i, part in enumerate(parts) if any(sign in part for sign in "*?[")), len(parts))
    return "/".join(parts[:wild]) or ("/" if pattern.startswith("/") else "."), "/".join(parts[wild:])


def _find_s3(pattern: str, fixed: str, wild: str) -> list[InputFile]:
    listed = _s3().glob(pattern, detail=True) if wild else _s3().find(fixed, detail=True)
    details: dict[str, Any] = {path: info for path, info in listed.items() if info["type"] == "file"}
    base = fixed.removeprefix("s3://").rstrip("/")
    names = {path: path.removeprefix(base).lstrip("/") or path.rsplit("/", 1)[-1] for path in details}
    return [
        InputFile(f"s3://{path}", names[path], int(info["size"]), str(info["ETag"]).strip('"'))
        for path, info in sorted(details.items())
    ]


def sha256_of(uri: str) -> str:
    """Return the SHA-256 of a file's content, in hex, read in blocks."""
    digest = hashlib.sha256()
    with open_input(uri) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def parquet_bytes(table: pa.Table, row_group_rows: int = 1000) -> bytes:
    """Write a table to Parquet in memory: an exception half-way then publishes nothing."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=row_group_rows)
    return sink.getvalue()


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """Read a whole Parquet file."""
    with open_input(uri) as file:
        return pq.read_table(file, columns=columns)


def read_kept_rows(uri: str, start: int, stop: int) -> pa.Table:
    """Read the kept rows (`drop_reason` null) start to stop, counted among the kept, touching only their row groups."""
    with open_input(uri) as file:
        parquet = pq.ParquetFile(file)
        seen, tables = 0, []
        for group in range(parquet.num_row_groups):
            kept = parquet.read_row_group(group, columns=["drop_reason"]).column(0).is_null()
            count = kept.to_pylist().count(True)
            low, high = max(start - seen, 0), min(stop - seen, count)
            if low < high:
                tables.append(parquet.read_row_group(group).filter(kept).slice(low, high - low))
            seen += count
            if seen >= stop:
                break
        return pa.concat_tables(tables) if tables else parquet.schema_arrow.empty_table()


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
        _s3().put_file(str(local), uri)
        return
    os.makedirs(os.path.dirname(uri), exist_ok=True)
    temporary = os.path.join(os.path.dirname(uri), f"{_TEMPORARY}{uuid.uuid4().hex}")
    shutil.copyfile(local, temporary)
    os.replace(temporary, uri)


def local_directory(uri: str) -> Path:
    """Return a local directory with the files of a directory URI: itself, or a copy fetched once per node.

    Processes of one node that ask at once wait for the first to fetch.
    """
    if not is_s3(uri):
        return Path(uri)
    cache = Path(tempfile.gettempdir()) / f"humpback-ray-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    target = cache / hashlib.sha256(_listing(uri).encode()).hexdigest()[:32]
    with _file_lock(target.with_suffix(".lock")):
        if not target.is_dir():
            partial = Path(tempfile.mkdtemp(dir=cache))
            for name in list_names(uri):
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                _s3().get_file(join(uri, name), str(partial / name))
            partial.rename(target)
    return target


def _listing(uri: str) -> str:
    return "\n".join([uri, *(f"{file.name} {file.bytes} {file.version}" for file in find(uri))])


@contextlib.contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_writable(uri: str) -> None:
    """Create and delete a file under a root, so that a wrong path or missing right is known before any work.

    Raises:
        StorageError: it cannot be written, or the store ignores the condition of a conditional create.
    """
    probe = join(uri, f"probe-{uuid.uuid4().hex}")
    try:
        create(probe, b"1")
        create(probe, b"2")
        first = read_bytes(probe) == b"1"
        delete(probe)
    except OSError as error:
        raise StorageError(error.errno or errno.EIO, f"cannot write to {uri}: {error}") from error
    if not first:
        raise StorageError(
            errno.ENOTSUP, f"{uri} ignores conditional writes (If-None-Match); use a store that has them"
        )
