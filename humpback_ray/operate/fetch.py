"""A finished model of a run, copied out of it: its files alone, each held against the hash that its commit recorded.

Safe to repeat: what is there and right is not copied again, and a file appears only whole and with the right content.
"""

from collections.abc import Iterator

from humpback_ray import storage
from humpback_ray.config import ConfigError
from humpback_ray.stages.commits import DataFile
from humpback_ray.stages.manifest import Manifest, read_manifest


def fetch_model(uri: str, target: str) -> Iterator[str]:
    """Copy the model of a stage to a directory; yields what was done with each file.

    Args:
        uri: of the stage, `<root>/models/m2`.
        target: directory or s3:// URI.

    Raises:
        ConfigError: there is no finished model, or the target holds other files, or weights of another model.
        Damaged: a file is not what its commit says.
    """
    manifest = model_of(uri)
    prefix = f"{manifest.extra['model']}/"
    files = {file.name.removeprefix(prefix): file for file in manifest.files}
    strange = [name for name in storage.list_names(target) if name not in files]
    if strange:
        raise ConfigError(
            f"{target} holds {strange[0]}, which is no file of {uri} ({len(strange)} such); name an empty directory"
        )
    for name, file in files.items():
        there = storage.join(target, name)
        if name.endswith(".safetensors") and storage.exists(there) and storage.sha256_of(there) != file.sha256:
            raise ConfigError(
                f"{there} holds other weights than {uri}: it is another model's, or damaged; name an empty directory"
            )
    for name, file in files.items():
        yield f"{name}: {fetch_file(storage.join(uri, file.name), storage.join(target, name), file)}"


def model_of(uri: str) -> Manifest:
    """Return the manifest of a stage that made a model.

    Raises:
        ConfigError: it is not finished, or made none.
    """
    manifest = read_manifest(uri)
    if manifest is None:
        raise ConfigError(f"{uri} is not a finished stage (it has no manifest.json); a model's is <root>/models/<name>")
    if not isinstance(manifest.extra.get("model"), str):
        raise ConfigError(f"{uri} is the stage {manifest.stage}, which makes no model; name one of <root>/models")
    return manifest


def fetch_file(uri: str, target: str, expected: DataFile) -> str:
    """Copy one file unless it is there already; returns in words which it was."""
    if storage.exists(target) and storage.sha256_of(target) == expected.sha256:
        return "was there"
    storage.copy_file(uri, target, expected.sha256)
    return f"{expected.bytes:,} bytes"
