"""Checks that the private parts of libraries that we use still exist, with the parameters that we pass."""

import ast
import inspect
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def moved(library: str, written_against: str, owner: Any, wanted: Mapping[str, Sequence[str] | None]) -> Iterator[str]:
    """Name each attribute of a class, a module or an object that is missing or takes other arguments.

    Args:
        library: name of the distribution.
        written_against: the version whose source we read.
        owner: the class, module or object with the attributes.
        wanted: the parameters that we pass, from the first on, by attribute; None if we do not call it.
    """
    where = f"{library} {version(library)}, while we were written against {written_against}"
    called = getattr(owner, "__qualname__", None) or getattr(owner, "__name__", None) or type(owner).__qualname__
    for name, parameters in wanted.items():
        if not hasattr(owner, name):
            yield f"{called}.{name} is gone from {where}"
        elif parameters is not None:
            found = [one for one in inspect.signature(getattr(owner, name)).parameters if one != "self"]
            if found[: len(parameters)] != list(parameters):
                yield f"{called}.{name} takes {found} in {where}; we pass {list(parameters)}"


OPEN = {"__name__", "__init__", "__cause__", "__context__", "__suppress_context__", "_replace", "_exit"}
"""Private names that Python's own documentation allows."""


def privates(module: Path) -> set[str]:
    """Return the private attributes of other objects that a module uses, and the private modules it imports from."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr not in OPEN:
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            found |= set() if own else {node.attr}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            name = node.args[1]
            private = isinstance(name, ast.Constant) and str(name.value).startswith("_")
            found |= {ast.literal_eval(name)} if private else set()
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found |= {name for name in names if name.startswith("_") and names[0] != "__future__"}
    return found
