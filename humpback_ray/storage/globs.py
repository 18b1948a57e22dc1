"""The files that a path, directory, glob or s3:// URI names."""

import fnmatch
import os
from collections.abc import Sequence

from humpback_ray.storage.connection import s3
from humpback_ray.storage.listings import stored_under
from humpback_ray.storage.local import tree
from humpback_ray.storage.uri import is_s3, located
from humpback_ray.storage.versions import InputFile, etag_version, stamp_of


def find(pattern: str) -> list[InputFile]:
    """Return the files that a path, directory, glob or s3:// URI names, sorted by name; [] if none.

    A directory stands for every file under it, links followed. Files and directories whose names begin with a dot are
    left out unless the pattern has the dot too. Local files have no version yet.

    Raises:
        OSError: a directory cannot be read, or a link leads nowhere.
    """
    if is_s3(pattern):
        return _find_s3(*_split(pattern.rstrip("/")))
    pattern = located(pattern)
    fixed, wild = (pattern, "") if os.path.exists(pattern) else _split(pattern)
    if not wild and os.path.isfile(fixed):
        found = [(os.path.basename(fixed), os.stat(fixed))]
        fixed = os.path.dirname(fixed)
    else:
        parts = wild.split("/") if wild else ["**"]
        under = tree(fixed, lambda name: _leads_to(name.split("/"), parts)) if os.path.isdir(fixed) else ()
        found = [(name, stat) for name, stat in under if _matches(name.split("/"), parts)]
    found = sorted(found, key=lambda pair: pair[0])
    return [InputFile(os.path.join(fixed, name), name, stat.st_size, stamp=stamp_of(stat)) for name, stat in found]


def _split(pattern: str) -> tuple[str, str]:
    """Split a pattern into the directory before its first wildcard and the rest."""
    parts = pattern.split("/")
    wild = next((i for i, part in enumerate(parts) if any(sign in part for sign in "*?[")), len(parts))
    return "/".join(parts[:wild]) or ("/" if pattern.startswith("/") else "."), "/".join(parts[wild:])


def _find_s3(fixed: str, wild: str) -> list[InputFile]:
    parts, listed = wild.split("/") if wild else ["**"], list(stored_under(fixed))
    found = [(name, stored) for name, stored in listed if _matches(name.split("/"), parts)]
    if not listed and not wild and (stored := s3().stat(fixed)):
        found = [(fixed.rsplit("/", 1)[-1], stored)]
    found.sort(key=lambda pair: pair[0])
    return [InputFile(stored.uri, name, stored.bytes, etag_version(stored)) for name, stored in found]


def _matches(name: Sequence[str], pattern: Sequence[str]) -> bool:
    """Tell whether a path matches a glob, both split at "/"; `**` stands for any number of directories, or all files.

    As in a shell, wildcards do not match names that begin with a dot.
    """
    if not pattern or not name:
        return not name and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return _matches(name, pattern[1:]) or (not name[0].startswith(".") and _matches(name[1:], pattern))
    return _fits(name[0], pattern[0]) and _matches(name[1:], pattern[1:])


def _leads_to(directory: Sequence[str], pattern: Sequence[str]) -> bool:
    """Tell whether files under a directory can match a glob, both split at "/"."""
    if not directory:
        return bool(pattern)
    if not pattern:
        return False
    if pattern[0] == "**":
        hidden = directory[0].startswith(".")
        return _leads_to(directory, pattern[1:]) or (not hidden and _leads_to(directory[1:], pattern))
    return _fits(directory[0], pattern[0]) and _leads_to(directory[1:], pattern[1:])


def _fits(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) and name.startswith(".") <= pattern.startswith(".")
