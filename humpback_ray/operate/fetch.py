"""Copy a finished model out of its run: its files only, each checked against the hash in its commit.

Safe to repeat: correct files are not copied again, and a file appears only once it is complete and correct.
"""

from collections.abc import Iterator

from humpback_ray import storage
from humpback_ray.config import ConfigError
from humpback_ray.stages.commits import DataFile
from humpback_ray.stages.manifest import Manifest, read_manifest


def fetch_model(uri: str, target: str) -> Iterator[str]:
    """Copy the model of a stage to a directory; yield a line per file.

    Args:
        uri: of the stage, `<root>/models/m2`.
        target: directory or s3:// URI.

    Raises:
        ConfigError: the model is missing or unfinished, or the target holds other files or another model's weights.
        Damaged: a file differs from its commit.
    """
    manifest = model_of(uri)
    prefix = f"{manifest.extra['model']}/"
    files = {file.name.removeprefix(prefix): file for file in manifest.files}
    strange = [name for name in storage.list_names(target) if name not in files]
    if strange:
        raise ConfigError(
            f"{target} holds {strange[0]}, which is not a file of {uri} ({len(strange)} such files); choose an empty "
            "directory"
        )
    for name, file in files.items():
        there = storage.join(target, name)
        if name.endswith(".safetensors") and storage.exists(there) and storage.sha256_of(there) != file.sha256:
            raise ConfigError(
                f"{there} is not the file of {uri}: it is damaged or another model's; choose an empty directory"
            )
    for name, file in files.items():
        yield f"{name}: {fetch_file(storage.join(uri, file.name), storage.join(target, name), file)}"


def model_of(uri: str) -> Manifest:
    """Return the manifest of a stage that made a model.

    Raises:
        ConfigError: the stage is not finished, or does not make a model.
    """
    manifest = read_manifest(uri)
    if manifest is None:
        raise ConfigError(f"{uri} is not a finished stage (it has no manifest.json); a model's is <root>/models/<name>")
    if not isinstance(manifest.extra.get("model"), str):
        raise ConfigError(
            f"{uri} is the stage {manifest.stage}, which does not make a model; choose one of <root>/models"
        )
    return manifest


def fetch_file(uri: str, target: str, expected: DataFile) -> str:
    """Copy one file unless it is there already; say which it was."""
    if storage.exists(target) and storage.sha256_of(target) == expected.sha256:
        return "already there"
    storage.copy_file(uri, target, expected.sha256)
    return f"{expected.bytes:,} bytes"
