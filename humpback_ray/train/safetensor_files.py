"""The tensors of a model directory by the headers of its safetensors files: names, dtypes and shapes, no weights.

A header is the first few kilobytes of a file, so a model of any size, on a disk or in a bucket, is looked through in
seconds. A file that is missing, cut off or something else is found here, by its size and header.
"""

import json
import math
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from humpback_ray import storage

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FIRST_BYTES = 64 << 10
"""Bytes that are read of a file at first: most headers fit."""
LARGEST_HEADER_BYTES = 100_000_000
"""Limit of the safetensors library."""
READERS = 16
"""Files read at once."""

BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8,
}  # fmt: skip
"""Size of an element by the dtype's name in a header; smaller ones are not checked."""

LFS = b"version https://git-lfs.github.com/spec/"
"""Beginning of the small text file that stands for a large one in a git repository."""

OTHERS = {
    b"PK\x03\x04": "a pickled PyTorch file", b"\x80": "a pickled PyTorch file", b"GGUF": "a GGUF file",
    b"<": "a web page", b"/annex/": "a git-annex pointer", b"\x89HDF": "an HDF5 file",
}  # fmt: skip
"""Beginnings of files that are often taken for safetensors files."""


class Unusable(ValueError):
    """A file of a base model is missing or wrong; the message begins with its URI."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    file: str
    dtype: str
    shape: tuple[int, ...]


def stored_tensors(uri: str, files: Mapping[str, storage.InputFile]) -> dict[str, Stored]:
    """Return the tensors of a model directory by name.

    Args:
        uri: the directory.
        files: its files by name, with their sizes.

    Raises:
        Unusable: no weights, an index that does not match its files, or a damaged file.
    """
    index = weight_map(uri, files)
    names = list(dict.fromkeys(index.values())) if index is not None else [SINGLE]
    if lost := [name for name in names if name not in files]:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise Unusable(
            f"{uri} lacks {lost[0]}{more} of the {len(names)} files that {INDEX} names; copy the model again"
        )
    with ThreadPoolExecutor(READERS) as readers:
        headers = dict(zip(names, readers.map(lambda name: header(files[name]), names), strict=True))
    for name, file in (index or {}).items():
        if name not in headers[file]:
            raise Unusable(
                f"{uri}: {INDEX} says that {name} is in {file}, which lacks it; copy both again from the same model"
            )
    return {name: stored for tensors in headers.values() for name, stored in tensors.items()}


def weight_map(uri: str, files: Mapping[str, storage.InputFile]) -> dict[str, str] | None:
    """Return the file of each tensor by a directory's index; None if there is one file and no index.

    Raises:
        Unusable: there are no weights, or two sets of them, or the index is not one.
    """
    if INDEX not in files:
        if SINGLE not in files:
            raise Unusable(f"{uri} {_without_weights(list(files))}")
        return None
    found = read_object(files[INDEX]).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(file, str) for file in found.values()):
        raise Unusable(f"{uri}/{INDEX} has no weight_map from names of tensors to names of files; copy it again")
    if SINGLE in files and SINGLE not in found.values():
        raise Unusable(
            f"{uri} has {SINGLE} and also {INDEX}, which names other files, so it is not clear which are the weights; "
            "delete one of the two"
        )
    return found


def _without_weights(names: list[str]) -> str:
    """Say which weights a directory without usable ones has."""
    names = sorted(name for name in names if "/" not in name)
    safe = [name for name in names if name.endswith(".safetensors")]
    shards = [name for name in safe if re.search(r"-\d+-of-\d+\.safetensors$", name)]
    if shards:
        return f"has {len(shards)} files of weights such as {shards[0]} but no {INDEX}, which says what is in them"
    if safe:
        return f"has {safe[0]} but no {SINGLE} and no {INDEX}, the names that transformers looks for"
    others = [name for name in names if re.search(r"\.(bin|pth?|ckpt|gguf|h5|msgpack|onnx|npz)$", name)]
    instead = (
        f" (it has {others[0]}); load it with AutoModelForCausalLM.from_pretrained and write it with save_pretrained"
        if others
        else "; copy the model again"
    )
    return f"has no .safetensors weights; pickled weights are not supported{instead}"


def read_object(file: storage.InputFile) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        Unusable: it is something else.
    """
    data = storage.read_bytes(file.uri)
    refuse_pointer(file, data)
    try:
        found = json.loads(data.decode())  # as transformers reads it: UTF-8 without a byte order mark
    except (ValueError, RecursionError) as error:
        raise Unusable(f"{file.uri} is not JSON ({error}; {len(data):,} bytes); copy it again") from None
    if not isinstance(found, dict):
        raise Unusable(f"{file.uri} holds a JSON {type(found).__name__} and not an object in braces; copy it again")
    return found


def refuse_pointer(file: storage.InputFile, start: bytes) -> None:
    """Stop if a file is empty or only stands for another one, by its first bytes.

    Raises:
        Unusable: it does.
    """
    if not start:
        raise Unusable(f"{file.uri} is empty; copy it again")
    if start.startswith(LFS):
        size = re.search(rb"size (\d+)", start)
        whole = f" of {int(size[1]):,} bytes" if size else ""
        raise Unusable(f"{file.uri} is a Git LFS pointer to a file{whole}; run `git lfs pull` where it was cloned")


def header(file: storage.InputFile) -> dict[str, Stored]:
    """Return the tensors of a safetensors file.

    Raises:
        Unusable: it is none, or is cut off.
    """
    start = storage.read_part(file.uri, 0, FIRST_BYTES)
    refuse_pointer(file, start)
    length = int.from_bytes(start[:8], "little")
    for beginning, kind in OTHERS.items():
        if start.startswith(beginning) and start[8:9] != b"{":
            raise Unusable(f"{file.uri} is no safetensors file but {kind}; copy the model again or convert it")
    if len(start) < 8 or start[8:9] not in (b"{", b"") or length > LARGEST_HEADER_BYTES:
        raise Unusable(f"{file.uri} ({file.bytes:,} bytes) is no safetensors file; copy it again")
    if 8 + length > file.bytes:
        raise Unusable(
            f"{file.uri} is cut off: it has {file.bytes:,} bytes, and its header alone should end at byte "
            f"{8 + length:,}; copy it again"
        )
    text = start[8 : 8 + length]
    text += storage.read_part(file.uri, 8 + len(text), 8 + length) if len(text) < length else b""
    try:
        entries: dict[str, Any] = json.loads(text)
        entries.pop("__metadata__", None)
        spans = sorted(
            (_size(first), _size(end), name)
            for name, entry in entries.items()
            for first, end in [entry["data_offsets"]]
        )
        found = {
            name: Stored(file.name, _dtype(entry["dtype"]), tuple(map(_size, entry["shape"])))
            for name, entry in entries.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Unusable(f"{file.uri} has a damaged header ({type(error).__name__}: {error}); copy it again") from None
    _check_spans(file, length, spans, found)
    return found


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r} is no size")
    return value


def _dtype(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no dtype")
    return value


def _check_spans(
    file: storage.InputFile, length: int, spans: list[tuple[int, int, str]], tensors: Mapping[str, Stored]
) -> None:
    """Check that a file has the bytes of every tensor in its header, and no others."""
    if not spans:
        raise Unusable(f"{file.uri} holds no tensors; copy it again")
    last = 0
    for first, end, name in spans:
        tensor = tensors[name]
        size = math.prod(tensor.shape) * BYTES.get(tensor.dtype, 0)
        if first != last or (size and size != end - first):
            raise Unusable(f"{file.uri} has a damaged header: the bytes of {name} do not fit its shape; copy it again")
        last = end
    if (whole := 8 + length + last) != file.bytes:
        what = "is cut off" if file.bytes < whole else "is damaged"
        raise Unusable(
            f"{file.uri} {what}: it has {file.bytes:,} bytes, and its header tells of {whole:,}; copy it again"
        )
