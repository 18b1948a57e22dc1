"""Local paths and `s3://` URIs behind a handful of functions; the only module that touches a filesystem.

The promise that the ledger rests on is `create`: of any number of writers of one name exactly one succeeds, readers
see the whole content or nothing, and a writer whose request was retried after it had succeeded can find out by reading
back (`create` returns False, the content is its own). Credentials, region and endpoint of S3 come from the environment
or the standard AWS files, never from a configuration.

Given up: other stores (gs://, abfs://) until someone needs them; local filesystems without hard links.
"""

import contextlib
import errno
import fnmatch
import functools
import hashlib
import io
import os
import shutil
import socket
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from humpback_ray import steps

if TYPE_CHECKING:
    from humpback_ray.s3 import S3, Stored

BLOCK_BYTES = 8 << 20
_TEMPORARY = ".tmp-"
_requests: Counter[str] = Counter()
_counting = threading.RLock()


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


@dataclass(frozen=True)
class UnfinishedUpload:
    """A multipart upload on S3 that never ended: the name its file was to have, `begun` by the store's clock."""

    name: str
    upload_id: str
    begun: float


class StorageError(OSError):
    """Storage answered something the caller cannot act on; the message says which URI and what to do."""


class Damaged(StorageError):
    """A file's content is not what was recorded of it."""


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
def _s3_of(_pid: int) -> "S3":
    from humpback_ray.s3 import S3  # brings botocore, which a local run does without

    return S3(_count)


def _s3() -> "S3":
    with _counting:
        return _s3_of(os.getpid())


def _count(operation: str) -> None:
    with _counting:
        _requests[operation] += 1


def requests() -> Counter[str]:
    """Return how many requests this process has sent to S3 so far, by operation (PutObject), each try counted."""
    with _counting:
        return _requests.copy()


def exists(uri: str) -> bool:
    """Tell whether a file exists."""
    return _s3().stat(uri) is not None if is_s3(uri) else os.path.isfile(uri)


def read_bytes(uri: str) -> bytes:
    """Return a file's content.

    Raises:
        FileNotFoundError: there is none.
    """
    return _s3().read(uri) if is_s3(uri) else Path(uri).read_bytes()


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file whole, over what was there; readers see the old content or the new."""
    if is_s3(uri):
        _s3().write(uri, len(data), lambda start, stop: data[start:stop])
    else:
        os.replace(_write_temporary(uri, io.BytesIO(data)), uri)


def create(uri: str, data: bytes) -> bool:
    """Write a file if there is none of that name; return whether this call wrote it.

    False may also mean that an earlier request of this very call had succeeded while its reply was lost: a caller to
    whom that matters reads the file and compares.

    Raises:
        OSError: the store went on refusing, or has no conditional create.
    """
    return _s3().create(uri, data) if is_s3(uri) else _create_local(uri, data)


def _create_local(uri: str, data: bytes) -> bool:
    if os.path.exists(uri):
        return False
    temporary = _write_temporary(uri, io.BytesIO(data))
    steps.reach(8)
    try:
        os.link(temporary, uri)
    except OSError as error:
        if not _same_file(temporary, uri):  # NFS may report an error for a link that it made
            if isinstance(error, FileExistsError):
                return False
            raise
    finally:
        Path(temporary).unlink(missing_ok=True)  # `gc` may have taken it from a writer that stood still for a day
    return True


def _same_file(first: str, second: str) -> bool:
    try:
        return os.path.samefile(first, second)
    except FileNotFoundError:
        return False


def _write_temporary(uri: str, source: BinaryIO) -> str:
    """Write what is to become a file under another name beside it; nothing is left of a write that failed."""
    temporary = _temporary_beside(uri)
    try:
        with open(temporary, "xb") as file:
            shutil.copyfileobj(source, file, BLOCK_BYTES)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise
    return temporary


def _temporary_beside(uri: str) -> str:
    """Return a new name in the directory of a file that is to be made, which is made if it is missing."""
    os.makedirs(os.path.dirname(uri), exist_ok=True)
    return os.path.join(os.path.dirname(uri), f"{_TEMPORARY}{socket.gethostname()}-{uuid.uuid4().hex}")


def delete(uri: str) -> None:
    """Delete one file; a missing one is no error."""
    if is_s3(uri):
        _s3().delete(uri)
    else:
        Path(uri).unlink(missing_ok=True)


def list_names(uri: str) -> list[str]:
    """Return the names of all files under a directory, relative to it, sorted; [] if there is no such directory."""
    if is_s3(uri):
        return sorted(name for name, _ in _stored_under(uri))
    found = []
    for parent, _, names in os.walk(uri):
        relative = os.path.relpath(parent, uri)
        found += [os.path.normpath(os.path.join(relative, name)) for name in names if not name.startswith(_TEMPORARY)]
    return sorted(found)


def listing(uri: str) -> list[Listed]:
    """Return all files under a directory with size and time, sorted by name; temporary local files included."""
    if is_s3(uri):
        entries = [Listed(name, stored.bytes, stored.modified) for name, stored in _stored_under(uri)]
    else:
        paths = (Path(parent) / name for parent, _, names in os.walk(uri) for name in names)
        entries = [entry for path in paths if (entry := _listed(path, uri))]
    return sorted(entries, key=lambda entry: entry.name)


def _listed(path: Path, directory: str) -> Listed | None:
    try:
        stat = path.stat()
    except FileNotFoundError:  # it was temporary, or a loser's: a writer is at work
        return None
    return Listed(path.relative_to(directory).as_posix(), stat.st_size, stat.st_mtime)


def _stored_under(uri: str) -> "Iterator[tuple[str, Stored]]":
    directory = uri.rstrip("/") + "/"
    for stored in _s3().objects(directory):
        if not stored.uri.endswith("/"):  # others are directory markers
            yield stored.uri.removeprefix(directory), stored


def is_temporary(name: str) -> bool:
    """Tell whether a name in a local `listing` is that of a file whose writing has not ended, or never will."""
    return name.rsplit("/", 1)[-1].startswith(_TEMPORARY)


def unfinished_uploads(uri: str) -> list[UnfinishedUpload]:
    """Return the multipart uploads under a directory that were neither completed nor aborted; locally there are none.

    Only parts of files above 64 MiB are stored so; no reader sees them, but they cost money.
    """
    if not is_s3(uri):
        return []
    directory = uri.rstrip("/") + "/"
    found = _s3().uploads(directory)
    return [UnfinishedUpload(upload.uri.removeprefix(directory), upload.id, upload.begun) for upload in found]


def abort_upload(uri: str, upload_id: str) -> None:
    """Drop the parts of an unfinished upload of the file `uri`; one that has ended is no error."""
    _s3().abort(uri, upload_id)


def open_input(uri: str) -> BinaryIO:
    """Open a file to read from, seekable; of an S3 object 32 MiB are fetched at once, the rest as it is read."""
    return _s3().open(uri) if is_s3(uri) else open(uri, "rb")


def _open_parquet(uri: str) -> Any:
    """Open a file for Arrow: its threads may let go last, and of a Python object at exit that aborts the process."""
    return _s3().open(uri, from_end=True) if is_s3(uri) else pa.OSFile(uri, "rb")  # the footer is at the end


def find(pattern: str) -> list[InputFile]:
    """Return the files that a path, directory, glob or s3:// URI names, sorted by name; [] if none.

    A directory stands for every file under it.
    """
    if is_s3(pattern):
        return _find_s3(*_split(pattern.rstrip("/")))
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


def _find_s3(fixed: str, wild: str) -> list[InputFile]:
    if wild:
        pattern = wild.split("/")
        found = [(name, stored) for name, stored in _stored_under(fixed) if _matches(name.split("/"), pattern)]
    elif not (found := list(_stored_under(fixed))) and (stored := _s3().stat(fixed)):
        found = [(fixed.rsplit("/", 1)[-1], stored)]
    return [InputFile(stored.uri, name, stored.bytes, stored.etag.strip('"')) for name, stored in sorted(found)]


def _matches(name: Sequence[str], pattern: Sequence[str]) -> bool:
    """Tell whether a path fits a glob, both split at "/"; `**` stands for any number of directories."""
    if not pattern or not name:
        return not pattern and not name
    if pattern[0] == "**":
        return _matches(name, pattern[1:]) or _matches(name[1:], pattern)
    return fnmatch.fnmatchcase(name[0], pattern[0]) and _matches(name[1:], pattern[1:])


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
    with _open_parquet(uri) as file:
        return pq.read_table(file, columns=columns)


def read_kept_rows(uri: str, start: int, stop: int) -> pa.Table:
    """Read the kept rows (`drop_reason` null) start to stop, counted among the kept, touching only their row groups."""
    with _open_parquet(uri) as file:
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
        _s3().write(uri, local.stat().st_size, functools.partial(_bytes_of, local))
        return
    with local.open("rb") as source:
        os.replace(_write_temporary(uri, source), uri)


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
    path = Path(_temporary_beside(target))
    try:
        _fetch(uri, path, sha256)
        os.replace(path, target)
    finally:
        path.unlink(missing_ok=True)


def _fetch(uri: str, path: Path, sha256: str) -> None:
    if not is_s3(uri):
        shutil.copyfile(uri, path)
    elif stored := _s3().stat(uri):
        _s3().download(stored, path)
    else:
        raise FileNotFoundError(errno.ENOENT, "there is no such object", uri)
    if (found := sha256_of(str(path))) != sha256:
        raise Damaged(errno.EIO, f"{uri} has the SHA-256 {found}, recorded is {sha256}; it was not copied")


def _bytes_of(local: Path, start: int, stop: int) -> bytes:
    with local.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


def local_directory(uri: str, without: tuple[str, ...] = ()) -> Path:
    """Return a local directory with the files of a directory URI: itself, or a copy fetched once per node.

    Processes of one node that ask at once wait for the first to fetch.

    Args:
        uri: local or s3://.
        without: ends of the names of files that need not be fetched.
    """
    if not is_s3(uri):
        return Path(uri)
    stored_files = sorted(_stored_under(uri), key=lambda pair: pair[0])
    found = [(name, stored) for name, stored in stored_files if not name.endswith(without)]

    def fetch(directory: Path) -> None:
        for name, stored in found:
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _s3().download(stored, path)

    return _copied("\n".join([uri, *(f"{name} {stored.bytes} {stored.etag}" for name, stored in found)]), fetch)


def local_file(uri: str) -> Path:
    """Return a local path with a file's content: itself, or a copy fetched once per node, until `forget_local_file`.

    Raises:
        FileNotFoundError: there is no such file.
    """
    stored = _s3().stat(uri) if is_s3(uri) else None
    if stored is None and not os.path.isfile(uri):
        raise FileNotFoundError(errno.ENOENT, "no such file", uri)
    if stored is None:
        return Path(uri)
    return _copied(f"{uri} {stored.bytes} {stored.etag}", lambda path: _s3().download(stored, path / "file")) / "file"


def forget_local_file(uri: str, path: Path) -> None:
    """Delete what `local_file` returned if it is a copy, for all processes of this node."""
    if is_s3(uri):
        shutil.rmtree(path.parent, ignore_errors=True)


def _copied(content: str, fetch: Callable[[Path], None]) -> Path:
    """Return the directory of this node that `fetch` fills with the named content, unless somebody has done so."""
    cache = Path(tempfile.gettempdir()) / f"humpback-ray-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    target = cache / hashlib.sha256(content.encode()).hexdigest()[:32]
    with _file_lock(target.with_suffix(".lock")):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as partial:
                fetch(Path(partial))
                os.rename(partial, target)
    return target


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
        reason = _UNCONDITIONAL if error.errno == errno.ENOTSUP else str(error)
        raise StorageError(error.errno or errno.EIO, f"cannot write to {uri}: {reason}") from error
    if not first:
        raise StorageError(errno.ENOTSUP, f"cannot write to {uri}: {_UNCONDITIONAL}")


_UNCONDITIONAL = (
    "its store cannot create a file only if there is none (PUT with If-None-Match: *), so two workers could commit the "
    "same shard; use a store that can (AWS S3, Cloudflare R2, MinIO and SeaweedFS do) or a shared directory"
)
