"""External inputs, resolved: the files that a pattern names, and their identities.

A file is identified by its name relative to the pattern's fixed part, its size, and its S3 etag or content hash. So new
and changed files are noticed, and a moved folder makes no difference. Local hashes are cached by path, size and the
file's state in the file system (`InputFile.stamp`), so a resumed run need not read terabytes again; losing the cache
only costs time. Code that reads a file later checks that it is still the one that was hashed (`versions.reading`).
"""

import contextlib
import json
import logging
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from humpback_ray.config import ConfigError, fingerprint
from humpback_ray.storage.errors import Damaged
from humpback_ray.storage.files import read_json, sha256_of, write_bytes
from humpback_ray.storage.globs import find
from humpback_ray.storage.uri import is_s3
from humpback_ray.storage.versions import InputFile

logger = logging.getLogger(__name__)

SAVE_EVERY_S = 60.0
"""Seconds between saves: at most this much hashing is lost when a job is killed."""
SAY_EVERY_BYTES = 10 << 30
"""Hashed bytes between two log lines."""


_VERSION = re.compile("sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Inventory:
    """The external files that a stage reads, in the order of their names."""

    files: tuple[InputFile, ...]

    @property
    def identity(self) -> list[dict[str, object]]:
        """The part of a fingerprint: names, sizes and versions, without locations."""
        return [{"name": f.name, "bytes": f.bytes, "version": f.version} for f in self.files]

    @property
    def digest(self) -> str:
        """One hash of the identity."""
        return fingerprint(self.identity)


class Hashes:
    """Content hashes of local files, kept in a file of the run between submissions."""

    def __init__(self, uri: str) -> None:
        self.uri, self._changed, self._saved = uri, False, time.monotonic()
        self._hashed = self._said = 0
        try:
            known = read_json(uri)
        except (FileNotFoundError, Damaged):
            known = None
        self._known: dict[str, list[object]] = known if isinstance(known, dict) else {}

    def of(self, file: InputFile) -> InputFile:
        """Return a file with its version set: its etag on S3, `sha256:...` for a local file."""
        if is_s3(file.uri):
            return file
        known = self._known.get(file.uri)
        if isinstance(known, list) and len(known) == 3 and known[:2] == [file.bytes, file.stamp]:
            version = str(known[2])
            if _VERSION.fullmatch(version):
                return replace(file, version=version)
        hashed = replace(file, version=f"sha256:{sha256_of(file.uri)}")
        self._known[file.uri] = [file.bytes, file.stamp, hashed.version]
        self._changed = True
        self._tell(file)
        return hashed

    def _tell(self, file: InputFile) -> None:
        """Log the progress of hashing and save the hashes from time to time."""
        self._hashed += file.bytes
        if self._hashed - self._said >= SAY_EVERY_BYTES:
            self._said = self._hashed
            logger.info("inputs: %.0f GB hashed, up to %s", self._hashed / 1e9, file.uri)
        if time.monotonic() - self._saved > SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the hashes to their file if there are new ones."""
        if self._changed:
            write_bytes(self.uri, json.dumps(self._known).encode())
            self._changed, self._saved = False, time.monotonic()


def resolve(field: str, patterns: Sequence[str], hashes: Hashes) -> Inventory:
    """Find the files that patterns name.

    Raises:
        ConfigError: a pattern matches no file; `field` is the configuration key to blame.
    """
    found: dict[str, InputFile] = {}
    for pattern in patterns:
        matches = find(pattern)
        if not matches:
            raise ConfigError(f"{field}: no file matches {pattern}")
        found.update({match.uri: match for match in matches})
    return _inventory(found.values(), hashes)


def _inventory(files: Iterable[InputFile], hashes: Hashes) -> Inventory:
    try:
        known = [hashes.of(file) for file in files]
    except BaseException:
        with contextlib.suppress(OSError):  # the propagating error says more
            hashes.save()
        raise
    hashes.save()
    return Inventory(tuple(sorted(known, key=lambda file: (file.name, file.version, file.uri))))


MODEL_FILES = (".json", ".safetensors", ".model", ".txt", ".jinja")


def resolve_model(field: str, uri: str, hashes: Hashes) -> Inventory:
    """Find the files of a model directory.

    Raises:
        ConfigError: it is not a model directory: no config.json, or no safetensors weights.
    """
    files = [file for file in find(uri) if file.name.endswith(MODEL_FILES)]
    names = {file.name for file in files}
    if "config.json" not in names:
        raise ConfigError(f"{field}: {uri} is not a model directory (it has no config.json)")
    if not any(name.endswith(".safetensors") for name in names):
        raise ConfigError(f"{field}: {uri} has no .safetensors weights; pickled weights are not supported")
    return _inventory(files, hashes)


def refuse_untemplated(setting: str, field: str, model: Inventory | None) -> None:
    """Refuse a model without a chat template if a setting asks for the model's own chat format.

    Args:
        setting: the configuration key that is "own".
        field: the configuration key that names the model.
        model: its files; None: the sample's base model.

    Raises:
        ConfigError: the model has no chat template.
    """
    files = {file.name: file.uri for file in model.files} if model else {}
    config = files.get("tokenizer_config.json")
    if "chat_template.jinja" in files or (config and read_json(config).get("chat_template")):
        return
    where = f"the model in {files['config.json'].removesuffix('config.json')}" if files else "the sample's base model"
    raise ConfigError(
        f"{field}: {where} has no chat template, so {setting} cannot be own; name a chat model, or set the layout to "
        "chat or raw"
    )
