"""Check the libraries that a configuration needs before anything starts.

A configuration class that needs a library declares it in `packages()`: an engine, a training method, a placement.

The driver checks on behalf of the workers. With `ray job submit` it runs on the head, in the image of all nodes. If
only the workers' image has a library, `check_packages=false` leaves the check to them.
"""

from collections.abc import Iterable, Iterator

from humpback_ray.config import Config, ConfigError
from humpback_ray.packages import OURS, Package


def declared(section: Config, path: str) -> Iterator[tuple[str, Package]]:
    """Yield key and library of everything that a section and its subsections declare."""
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
    """Refuse a configuration whose libraries cannot be used here.

    Raises:
        ConfigError: one line with each key, the library that it needs, and the command that installs all of them.
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
