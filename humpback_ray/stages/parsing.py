"""Read the JSON of a stage directory back: every value is checked before use.

A file that a run did not write, or that somebody edited, is `Damaged`: the error names the file and the field.
"""

import errno
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from humpback_ray import storage

T = TypeVar("T")


def read_as(parse: Callable[[Any], T], value: Any, uri: str) -> T:
    """Return the parsed value.

    Raises:
        Damaged: the value cannot be parsed.
    """
    try:
        return parse(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        said = f"{type(error).__name__}: {error}"
        raise storage.Damaged(errno.EIO, f"{uri} is not what a run writes there ({said}); restore it") from error


def check_types(of: type, values: Mapping[str, Any]) -> None:
    """Raise TypeError unless values match a dataclass's annotations, as far as these are plain types."""
    for name, value in values.items():
        kind, inner = _kinds(of).get(name, (None, None))
        if kind and not isinstance(value, kind):
            raise TypeError(f"{name} is {value!r}")
        if inner and not all(isinstance(one, inner) for one in value.values()):
            raise TypeError(f"{name} is {value!r}")


@functools.cache
def _kinds(of: type) -> dict[str, tuple[Any, Any]]:
    """Return by field the type of its value, and of that value's items: plain types, and dictionaries of them."""
    found: dict[str, tuple[Any, Any]] = {}
    for name, hint in get_type_hints(of).items():
        kind, inner = get_origin(hint) or hint, get_args(hint)
        if kind in (str, int, float, dict):
            inside = get_origin(inner[1]) or inner[1] if inner else None
            found[name] = ((int, float) if kind is float else kind, None if inside is Any else inside)
    return found


def check_name(name: str) -> None:
    """Raise ValueError unless a file's name stays within its stage directory."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or "\0" in name:
        raise ValueError(f"the file name {name!r} leads out of the stage's directory")
