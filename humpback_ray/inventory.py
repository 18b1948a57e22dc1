"""Inputs from outside, resolved: which files a pattern names, and what identifies them.

A file is identified by its name relative to the pattern's fixed part, its size, and its S3 etag or content hash; so
new and changed files are seen and a moved folder is not. Local hashes are remembered by (path, size, time of change),
which keeps a resumed run from reading terabytes again; forgetting them only costs time.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from humpback_ray import storage
from humpback_ray.config import ConfigError, fingerprint
from humpback_ray.storage import InputFile


@dataclass(frozen=True)
class Inventory:
    """The files that a stage reads from outside the run, in the order of their names."""

    files: tuple[InputFile, ...]

    @property
    def identity(self) -> list[dict[str, object]]:
        """What enters a fingerprint: names, sizes and versions, no locations."""
        return [{"name": f.name, "bytes": f.bytes, "version": f.version} for f in self.files]

    @property
    def digest(self) -> str:
        """One hash of the identity."""
        return fingerprint(self.identity)


class Hashes:
    """Content hashes of local files, kept in a file of the run between submissions."""

    def __init__(self, uri: str) -> None:
        self.uri, self._changed = uri, False
        try:
            self._known: dict[str, list[object]] = json.loads(storage.read_bytes(uri))
        except FileNotFoundError:
            self._known = {}

    def of(self, file: InputFile) -> str:
        """Return what identifies a file's content: its etag on S3, `sha256:...` of a local one."""
        if storage.is_s3(file.uri):
            return f"etag:{file.version}"
        known = self._known.get(file.uri)
        if known and known[:2] == [file.bytes, file.version]:
            return str(known[2])
        self._known[file.uri] = [file.bytes, file.version, f"sha256:{storage.sha256_of(file.uri)}"]
        self._changed = True
        return str(self._known[file.uri][2])

    def save(self) -> None:
        """Write down what was learned."""
        if self._changed:
            storage.write_bytes(self.uri, json.dumps(self._known).encode())
            self._changed = False


def resolve(field: str, patterns: Sequence[str], hashes: Hashes) -> Inventory:
    """Find the files that patterns name.

    Raises:
        ConfigError: a pattern that names nothing; `field` is the configuration key to blame.
    """
    found: dict[str, InputFile] = {}
    for pattern in patterns:
        matches = storage.find(pattern)
        if not matches:
            raise ConfigError(f"{field}: no file matches {pattern}")
        found.update({match.uri: match for match in matches})
    return _inventory(found.values(), hashes)


def _inventory(files: Iterable[InputFile], hashes: Hashes) -> Inventory:
    known = [InputFile(file.uri, file.name, file.bytes, hashes.of(file)) for file in files]
    hashes.save()
    return Inventory(tuple(sorted(known, key=lambda file: (file.name, file.version, file.uri))))


MODEL_FILES = (".json", ".safetensors", ".model", ".txt", ".jinja")


def resolve_model(field: str, uri: str, hashes: Hashes) -> Inventory:
    """Find the files of a model directory.

    Raises:
        ConfigError: it is no model directory: no config.json, or no safetensors weights.
    """
    files = [file for file in storage.find(uri) if file.name.endswith(MODEL_FILES)]
    names = {file.name for file in files}
    if "config.json" not in names:
        raise ConfigError(f"{field}: {uri} is no model directory (it has no config.json)")
    if not any(name.endswith(".safetensors") for name in names):
        raise ConfigError(f"{field}: {uri} has no .safetensors weights; pickled weights are not loaded")
    return _inventory(files, hashes)
