"""This node's copies of files on S3: fetched once for all processes of a user, and deleted when unused.

Other things that a node makes once for all processes lie beside them (`node_directory`).

A copy is named after the versions of its files, so it never goes stale. Its directory belongs to this user alone, since
files in it are loaded as weights.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_ISDIR, filemode

from humpback_ray.storage.connection import s3
from humpback_ray.storage.errors import Damaged, StorageError
from humpback_ray.storage.files import sha256_of
from humpback_ray.storage.listings import stored_under
from humpback_ray.storage.uri import is_s3
from humpback_ray.storage.versions import Directory, InputFile, changed, check_unchanged, etag_version


def local_directory(wanted: str | Directory, without: tuple[str, ...] = ()) -> Path:
    """Return a local directory with the files of a directory: itself, or a copy fetched once per node.

    If processes of one node ask at the same time, the others wait for the first to fetch.

    Args:
        wanted: local or s3://; from a `Directory`, only the files it names, each in its version.
        without: suffixes of file names to leave out.

    Raises:
        InputChanged, Damaged: a file has another version.
    """
    directory = Directory(wanted) if isinstance(wanted, str) else wanted
    expected = [file for file in directory.files if not file.name.endswith(without)]
    if not is_s3(directory.uri):
        for file in expected:
            check_unchanged(file)
        return Path(directory.uri)
    if not directory.files:
        stored_files = sorted(stored_under(directory.uri), key=lambda pair: pair[0])
        expected = [
            InputFile(stored.uri, name, stored.bytes, etag_version(stored))
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
    """Download an object in the version given by its etag or hash."""
    kind, _, value = file.version.partition(":")
    stored = s3().stat(file.uri)
    if stored is None:
        raise FileNotFoundError(errno.ENOENT, "no such object", file.uri)
    if kind == "etag" and etag_version(stored) != file.version:
        raise changed(file, etag_version(stored))
    try:
        s3().download(stored, path)
    except FileExistsError as error:
        raise changed(file, "another etag") from error
    if kind == "sha256" and (found := sha256_of(str(path))) != value:
        raise Damaged(errno.EIO, f"{file.uri} has the SHA-256 {found}, but {value} was recorded; see `jobs.verify`")


def local_file(uri: str) -> Path:
    """Return a local path with a file's content: itself, or a copy fetched once per node, until `forget_local_file`.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    stored = s3().stat(uri) if is_s3(uri) else None
    if stored is None and not os.path.isfile(uri):
        raise FileNotFoundError(errno.ENOENT, "no such file", uri)
    if stored is None:
        return Path(uri)
    return _copied(f"{uri} {stored.bytes} {stored.etag}", lambda path: s3().download(stored, path / "file")) / "file"


def forget_local_file(uri: str, path: Path) -> None:
    """Delete the path that `local_file` returned if it is a copy, for all processes of this node."""
    if is_s3(uri):
        shutil.rmtree(path.parent, ignore_errors=True)


@contextlib.contextmanager
def node_directory(purpose: str, waits: Callable[[], object]) -> Iterator[Path]:
    """Yield this node's directory for a purpose, held by this process alone until the block ends or the process dies.

    The first process finds it empty; `forget_old_copies` deletes it after a time without use.

    Args:
        purpose: names the directory; the same for all processes that share it.
        waits: called before waiting for another process that holds it.
    """
    target = _target(purpose)
    with _file_lock(target.with_suffix(".lock"), waits):
        target.mkdir(mode=0o700, exist_ok=True)
        _refuse_others(target)
        os.utime(target)
        yield target


def _target(content: str) -> Path:
    return _cache() / hashlib.sha256(content.encode()).hexdigest()[:32]


def _copied(content: str, fetch: Callable[[Path], None]) -> Path:
    """Return this node's directory with the named content; call `fetch` to fill it if no process has done so yet."""
    target = _target(content)
    with _file_lock(target.with_suffix(".lock")):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=target.parent) as partial:
                fetch(Path(partial))
                os.rename(partial, target)
        _refuse_others(target)
        os.utime(target)  # `forget_old_copies` counts from here
    return target


def _cache() -> Path:
    """Return the directory of this node's copies; only this user may write to it, since it holds weights to load."""
    cache = Path(tempfile.gettempdir()) / f"humpback-ray-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    _refuse_others(cache)
    return cache


def _refuse_others(directory: Path) -> None:
    """Raise if a directory of copies is another user's or a link, or if others may write to it."""
    stat = directory.lstat()
    if not S_ISDIR(stat.st_mode) or stat.st_uid != os.getuid() or stat.st_mode & 0o022:
        raise StorageError(
            errno.EPERM,
            f"{directory} should be a directory that only user {os.getuid()} can write to, but it is "
            f"{filemode(stat.st_mode)} of user {stat.st_uid}; delete it, or set TMPDIR to another directory",
        )


def forget_old_copies(unused_s: float) -> list[str]:
    """Delete this node's copies that were not used for `unused_s` seconds; return their paths."""
    gone, now = [], time.time()
    for target in [path for path in _cache().iterdir() if path.is_dir() and not path.is_symlink()]:
        with _file_lock(target.with_suffix(".lock")):
            if target.exists() and now - target.stat().st_mtime > unused_s:
                shutil.rmtree(target, ignore_errors=True)
                gone.append(str(target))
    return gone


@contextlib.contextmanager
def _file_lock(path: Path, waits: Callable[[], object] = lambda: None) -> Iterator[None]:
    import fcntl

    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
