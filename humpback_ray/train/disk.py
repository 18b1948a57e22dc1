"""Errors of a disk that is full, gone or read-only, in words: which directory, the bytes needed and the bytes free.

safetensors and tokenizers report them as exceptions of their own, which are not an `OSError`, and often without a path.
"""

import contextlib
import errno
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from humpback_ray.storage import StorageError, words

if TYPE_CHECKING:
    import torch

_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
"""How Rust ends the message of an error of the operating system."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Error numbers of a full file system, an exhausted quota, and a limit on the size of files."""


def errno_of(error: BaseException) -> int | None:
    """Return the operating system's number of an error, also of one that a Rust library raised; None: it has none."""
    if isinstance(error, OSError):
        return error.errno
    found = _RUST_ERROR.search(str(error))
    return int(found[1]) if found else None


@contextlib.contextmanager
def explained(what: str, needed_bytes: int, *places: Callable[[], str]) -> Iterator[None]:
    """Name directories, bytes needed and bytes free if the block fails for lack of room or in a Rust library.

    Args:
        what: what the block does, such as "writing the model".
        needed_bytes: bytes that the block writes.
        places: functions that return the local directories that it writes to.

    Raises:
        StorageError: instead of such an error; all others pass.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        number = errno_of(error)
        if number is None or (isinstance(error, OSError) and number not in _NO_ROOM):
            raise
        said = words(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        free = ", ".join(_free(place) for place in places)
        advice = "; make room or use a larger disk (TMPDIR names the temporary directory)" if number in _NO_ROOM else ""
        raise StorageError(number, f"{what} failed: {said}; it needs {needed_bytes:,} bytes, {free}{advice}") from error


def free_at(path: Path) -> tuple[Path, int]:
    """Return a directory, or the nearest one above it that exists, and the bytes free there."""
    path = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return path, shutil.disk_usage(path).free


def _free(place: Callable[[], str]) -> str:
    try:
        path, free = free_at(Path(place()))
        return f"{path} has {free:,} bytes free"
    except OSError as error:
        return f"its directory cannot be used ({words(error)})"


@contextlib.contextmanager
def scratch(purpose: str, what: str, needed_bytes: int) -> Iterator[Path]:
    """Yield a temporary directory that is deleted after the block.

    Args:
        purpose: part of its name.
        what: what the block does, such as "writing the model".
        needed_bytes: bytes that the block writes.

    Raises:
        StorageError: it could not be made for lack of room.
    """
    with explained(what, needed_bytes, tempfile.gettempdir):
        folder = tempfile.TemporaryDirectory(prefix=f"humpback-{purpose}-")
    with folder as name:
        yield Path(name)


def save_tensors(tensors: "Mapping[str, torch.Tensor]", path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file.

    Raises:
        OSError: it could not be written.
    """
    from safetensors.torch import save_file

    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    with explained(f"writing {path}", needed, lambda: str(path.parent)):
        save_file(dict(tensors), path, metadata)
