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
import json
import os
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG, filemode
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from humpback_ray.storage import steps

if TYPE_CHECKING:
    from humpback_ray.storage.s3 import S3, Stored

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
    version: str = ""
    """What identifies its content: `etag:...` on S3, `sha256:...` elsewhere; "" where nobody has looked."""
    stamp: str = ""
    """Of a local file: what the file system says of it (see `_stamp`); as long as it stays, the content does."""


@dataclass(frozen=True)
class Directory:
    """A directory and the files that it must hold, each of its version; none named: whatever it holds."""

    uri: str
    files: tuple[InputFile, ...] = ()


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


class NoLinks(StorageError):
    """A local file system does not make hard links; the message says what to use instead."""


class Damaged(StorageError):
    """A file's content is not what was recorded of it."""


class InputChanged(Damaged):
    """A file from outside is not the one any more that the run took stock of."""


def words(error: OSError) -> str:
    """Return what an error says in one line: of storage its message alone, else with the file's name."""
    said = error.strerror if isinstance(error, StorageError) and error.strerror else error
    return " ".join(str(said).split())


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
    from humpback_ray.storage.s3 import S3

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


def be_patient(seconds: float) -> None:
    """Let every request to S3 of this process be tried for so long while it fails for a passing reason."""
    _s3().patience_s = seconds


def exists(uri: str) -> bool:
    """Tell whether a file exists."""
    return _s3().stat(uri) is not None if is_s3(uri) else os.path.isfile(uri)


def read_bytes(uri: str) -> bytes:
    """Return a file's content.

    Raises:
        FileNotFoundError: there is none.
    """
    return _s3().read(uri) if is_s3(uri) else Path(uri).read_bytes()


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
        _s3().write(uri, len(data), lambda start, stop: data[start:stop])
    else:
        _rename(_write_temporary(uri, io.BytesIO(data)), uri)


def _rename(temporary: str, uri: str) -> None:
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
"""How file systems without hard links, and FUSE in their name, answer a link."""


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
    except OSError as error:
        with contextlib.suppress(OSError):
            Path(temporary).unlink(missing_ok=True)
        error.filename = error.filename or uri  # a full disk is noticed where no name is known
        raise
    return temporary


def check_room(uri: str) -> None:
    """Refuse to go on where a local directory has no room for a small file; S3 always has.

    Raises:
        StorageError: with what to do.
    """
    if is_s3(uri):
        return
    try:
        os.unlink(_write_temporary(join(uri, "room"), io.BytesIO(bytes(ROOM_BYTES))))
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(
                error.errno,
                f"{uri} cannot be written to: {os.strerror(error.errno)}; make room on its file system (`python -m "
                "jobs.gc` names what of a run may go)",
            ) from error


_FULL = {errno.ENOSPC, errno.EDQUOT}
"""What a file system without room answers, and one whose quota is used up."""
ROOM_BYTES = 64 << 10


def _temporary_beside(uri: str) -> str:
    """Return a new name in the directory of a file that is to be made, which is made if it is missing."""
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
    return sorted(name for name, _ in _tree(uri) if not is_temporary(name))


def listing(uri: str, follow: bool = True) -> list[Listed]:
    """Return all files under a directory with size and time, sorted by name; temporary local files included.

    Without `follow` a link to a directory is listed as a file, and what lies behind it is not.
    """
    if is_s3(uri):
        entries = [Listed(name, stored.bytes, stored.modified) for name, stored in _stored_under(uri)]
    else:
        entries = [Listed(name, stat.st_size, stat.st_mtime) for name, stat in _tree(uri, follow=follow)]
    return sorted(entries, key=lambda entry: entry.name)


def _tree(
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
                yield from _tree(directory, enter, follow, name, (*above, inode))
        elif S_ISDIR(stat.st_mode) or S_ISREG(stat.st_mode):
            yield name, stat


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


@contextlib.contextmanager
def reading(file: InputFile) -> Iterator[BinaryIO]:
    """Open an input file of the version that the run took stock of, in a `with` block.

    Raises:
        InputChanged: it is another one; of a local file that is known once it has been read, at the end of the block.
    """
    if is_s3(file.uri):
        try:
            with _s3().open(file.uri, etag=file.version and f'"{file.version.removeprefix("etag:")}"') as stream:
                yield stream
        except FileExistsError as error:
            raise _changed(file, "another etag") from error
        return
    with open(file.uri, "rb") as stream:
        yield stream
    check_unchanged(file)


def check_unchanged(file: InputFile) -> None:
    """Raise InputChanged if an input file is not the one that the run took stock of; local files are hashed at need."""
    if is_s3(file.uri):
        stored = _s3().stat(file.uri)
        found = f"etag:{_plain(stored.etag)}" if stored else "no object"
    else:
        stat = os.stat(file.uri)
        if not file.version or (stat.st_size, _stamp(stat)) == (file.bytes, file.stamp):
            return
        found = f"sha256:{sha256_of(file.uri)}"
    if found != file.version:
        raise _changed(file, found)


def _changed(file: InputFile, found: str) -> InputChanged:
    return InputChanged(
        errno.EIO,
        f"{file.uri} has changed since this run took stock of it: recorded is {file.version} ({file.bytes:,} bytes), "
        f"there is {found}; put the old file back, or use another root for the new one",
    )


def _stamp(stat: os.stat_result) -> str:
    """Return what changes when a file is written or replaced, even where size and modification time are kept."""
    return f"{stat.st_mtime_ns}-{stat.st_ctime_ns}-{stat.st_ino}"


def find(pattern: str) -> list[InputFile]:
    """Return the files that a path, directory, glob or s3:// URI names, sorted by name; [] if none.

    A directory stands for every file under it, links followed. Names that begin with a dot, of files and of
    directories, are left out unless the pattern has the dot, too. Local files have no version yet.

    Raises:
        OSError: a directory cannot be read, or a link leads nowhere.
    """
    if is_s3(pattern):
        return _find_s3(*_split(pattern.rstrip("/")))
    pattern = located(pattern)
    fixed, wild = (pattern, "") if os.path.exists(pattern) else _split(pattern)
    if not wild and os.path.isfile(fixed):
        found = [(os.path.basename(fixed), os.stat(fixed))]
        fixed = os.path.dirname(fixed)
    else:
        parts = wild.split("/") if wild else ["**"]
        tree = _tree(fixed, lambda name: _leads_to(name.split("/"), parts)) if os.path.isdir(fixed) else ()
        found = [(name, stat) for name, stat in tree if _matches(name.split("/"), parts)]
    found = sorted(found, key=lambda pair: pair[0])
    return [InputFile(os.path.join(fixed, name), name, stat.st_size, stamp=_stamp(stat)) for name, stat in found]


def _split(pattern: str) -> tuple[str, str]:
    """Split a pattern into the directory before its first wildcard and the rest."""
    parts = pattern.split("/")
    wild = next((i for i, part in enumerate(parts) if any(sign in part for sign in "*?[")), len(parts))
    return "/".join(parts[:wild]) or ("/" if pattern.startswith("/") else "."), "/".join(parts[wild:])


def _find_s3(fixed: str, wild: str) -> list[InputFile]:
    parts, listed = wild.split("/") if wild else ["**"], list(_stored_under(fixed))
    found = [(name, stored) for name, stored in listed if _matches(name.split("/"), parts)]
    if not listed and not wild and (stored := _s3().stat(fixed)):
        found = [(fixed.rsplit("/", 1)[-1], stored)]
    found.sort(key=lambda pair: pair[0])
    return [InputFile(stored.uri, name, stored.bytes, f"etag:{_plain(stored.etag)}") for name, stored in found]


def _plain(etag: str) -> str:
    return etag.strip('"')


def _matches(name: Sequence[str], pattern: Sequence[str]) -> bool:
    """Tell whether a path fits a glob, both split at "/"; `**` stands for any number of directories, or for all files.

    As in a shell, wildcards fit no name that begins with a dot.
    """
    if not pattern or not name:
        return not name and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return _matches(name, pattern[1:]) or (not name[0].startswith(".") and _matches(name[1:], pattern))
    return _fits(name[0], pattern[0]) and _matches(name[1:], pattern[1:])


def _leads_to(directory: Sequence[str], pattern: Sequence[str]) -> bool:
    """Tell whether files under a directory can fit a glob, both split at "/"."""
    if not directory:
        return bool(pattern)
    if not pattern:
        return False
    if pattern[0] == "**":
        hidden = directory[0].startswith(".")
        return _leads_to(directory, pattern[1:]) or (not hidden and _leads_to(directory[1:], pattern))
    return _fits(directory[0], pattern[0]) and _leads_to(directory[1:], pattern[1:])


def _fits(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) and name.startswith(".") <= pattern.startswith(".")


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
        _rename(_write_temporary(uri, source), uri)


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
        with path.open("rb") as file:
            os.fsync(file.fileno())
        _rename(str(path), target)
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


def local_directory(wanted: "str | Directory", without: tuple[str, ...] = ()) -> Path:
    """Return a local directory with the files of a directory: itself, or a copy fetched once per node.

    Processes of one node that ask at once wait for the first to fetch.

    Args:
        wanted: local or s3://; of a `Directory` the named files alone, each of its version.
        without: ends of the names of files that need not be fetched.

    Raises:
        InputChanged, Damaged: a file is not of its version.
    """
    directory = Directory(wanted) if isinstance(wanted, str) else wanted
    expected = [file for file in directory.files if not file.name.endswith(without)]
    if not is_s3(directory.uri):
        for file in expected:
            check_unchanged(file)
        return Path(directory.uri)
    if not directory.files:
        stored_files = sorted(_stored_under(directory.uri), key=lambda pair: pair[0])
        expected = [
            InputFile(stored.uri, name, stored.bytes, f"etag:{_plain(stored.etag)}")
            for name, stored in stored_files
            if not name.endswith(without)
        ]

    def fetch(target: Path) -> None:
        for file in expected:
            path = target / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            _fetch_version(file, path)

    names = (f"{file.name} {file.bytes} {file.version}" for file in expected)
    return _copied("\n".join([directory.uri, *names]), fetch)


def _fetch_version(file: InputFile, path: Path) -> None:
    """Download an object of the version that its etag or its hash names."""
    kind, _, value = file.version.partition(":")
    stored = _s3().stat(file.uri)
    if stored is None:
        raise FileNotFoundError(errno.ENOENT, "there is no such object", file.uri)
    if kind == "etag" and _plain(stored.etag) != value:
        raise _changed(file, f"etag:{_plain(stored.etag)}")
    try:
        _s3().download(stored, path)
    except FileExistsError as error:
        raise _changed(file, "another etag") from error
    if kind == "sha256" and (found := sha256_of(str(path))) != value:
        raise Damaged(errno.EIO, f"{file.uri} has the SHA-256 {found}, recorded is {value}; see `jobs.verify`")


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
    cache = _cache()
    target = cache / hashlib.sha256(content.encode()).hexdigest()[:32]
    with _file_lock(target.with_suffix(".lock")):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=cache) as partial:
                fetch(Path(partial))
                os.rename(partial, target)
        _refuse_others(target)
        os.utime(target)  # `forget_old_copies` counts from here
    return target


def _cache() -> Path:
    """Return the directory of this node's copies: this user's alone, since what lies there is loaded as weights."""
    cache = Path(tempfile.gettempdir()) / f"humpback-ray-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    _refuse_others(cache)
    return cache


def _refuse_others(directory: Path) -> None:
    """Raise if a directory of copies is another user's, or a link, or others may write into it."""
    stat = directory.lstat()
    if not S_ISDIR(stat.st_mode) or stat.st_uid != os.getuid() or stat.st_mode & 0o022:
        raise StorageError(
            errno.EPERM,
            f"{directory} should be a directory that user {os.getuid()} alone can write to, but it is "
            f"{filemode(stat.st_mode)} of user {stat.st_uid}; delete it, or set TMPDIR to another directory",
        )


def forget_old_copies(unused_s: float) -> list[str]:
    """Delete this node's copies that nobody asked for during so many seconds; returns their paths."""
    gone, now = [], time.time()
    for target in [path for path in _cache().iterdir() if path.is_dir() and not path.is_symlink()]:
        with _file_lock(target.with_suffix(".lock")):
            if target.exists() and now - target.stat().st_mtime > unused_s:
                shutil.rmtree(target, ignore_errors=True)
                gone.append(str(target))
    return gone


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
