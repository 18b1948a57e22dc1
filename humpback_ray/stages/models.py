"""A model that a stage uses, made by a stage of this run or external."""

from dataclasses import dataclass

from humpback_ray import storage
from humpback_ray.stages.manifest import Manifest
from humpback_ray.storage.inventory import Inventory


@dataclass(frozen=True)
class Model:
    """A model that a stage uses: its directory, and what identifies it in a fingerprint."""

    uri: str
    source: "Manifest | Inventory"

    @property
    def digest(self) -> str:
        """Identity of its files."""
        return self.source.digest

    @property
    def directory(self) -> storage.Directory:
        """The directory with the versions of its files, so the loaded model is the hashed one.

        A model that a stage of this run wrote to local storage is not hashed again at each load; `jobs.verify` does so.
        """
        if isinstance(self.source, Inventory):
            return storage.Directory(self.uri, self.source.files)
        if not storage.is_s3(self.uri):
            return storage.Directory(self.uri)
        prefix = f"{self.source.extra['model']}/"
        named = [(file.name.removeprefix(prefix), file) for file in self.source.files]
        return storage.Directory(self.uri, tuple(
            storage.InputFile(storage.join(self.uri, name), name, file.bytes, f"sha256:{file.sha256}")
            for name, file in named
        ))  # fmt: skip

    @staticmethod
    def of(manifest: Manifest) -> "Model":
        """Return the model that a finished stage made."""
        return Model(storage.join(manifest.uri, manifest.extra["model"]), manifest)
