"""Configuration: frozen pydantic models, YAML with dotted overrides, fingerprints.

An error about an unknown key names the nearest known key; an error about a bad value says what the key takes. YAML is
read without its traps: numbers are plain decimals (`1:30` is not 90), dates are text, and a key may appear only once.

`fingerprint` is the identity of what a stage computes; `difference` names the first field in which two recipes differ,
for error messages.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from humpback_ray.packages import Package

C = TypeVar("C", bound="Config")


class ConfigError(ValueError):
    """The user's configuration or input is unusable; the message is one line that says what to change."""


class Config(BaseModel):
    """Base of every configuration class: immutable, refuses unknown keys, documents fields with docstrings."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    def packages(self) -> Sequence[Package]:
        """Return the libraries that workers need for it, without those of nested configurations (packages.py)."""
        return ()


def load(kind: type[C], path: str | Path, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file and apply dotted overrides such as `augment.placement.max_replicas=16`.

    Values are YAML: plain numbers, `true` and `false`, `null`, `[a, b]`. A list that YAML cannot parse (globs may hold
    `*`) is split at commas.

    Raises:
        ConfigError: no such file, not a YAML mapping, an override without `=`, an unknown key or a bad value.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read the configuration {path}: it is not UTF-8 ({error})") from error
    try:
        values = yaml.load(text, _Loader) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, not a mapping of stages")
    return configured(kind, values, overrides)


def configured(kind: type[C], values: dict[str, Any], overrides: Sequence[str] = ()) -> C:
    """Make a configuration from its values; overrides, as in `load`, are written into `values`.

    Raises:
        ConfigError: as `load`.
    """
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r} is not key=value")
        _assign(values, key.split("."), _parse(value), override)
    try:
        made = kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_one_line(error, kind, values)) from error
    for path, value in _booleans_taken_for_numbers(values, made):
        raise ConfigError(f"{path} is {_shown(value)}, but it takes a plain number")
    return made


class _Loader(yaml.SafeLoader):
    """YAML in which every value is what it looks like."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse duplicate keys: YAML would keep the last one and lose the others."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<" and names.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} appears twice", key.start_mark
                )
        return super().construct_mapping(node, deep)


_PLAIN = {
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:int": (r"[-+]?(0|[1-9][0-9_]*)", "-+0123456789"),
    "tag:yaml.org,2002:float": (r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?", "-+0123456789."),
}
"""Patterns of booleans and numbers, with their possible first characters. They leave out numbers in base 60, 16, 8 and
2, infinity, dates, and `yes`, `no`, `on` and `off`, which pydantic still accepts for a boolean field."""

_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in _PLAIN and not tag.endswith(":timestamp")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, (_pattern, _first) in _PLAIN.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))


def _parse(value: str) -> Any:
    try:
        return yaml.load(value, _Loader)
    except yaml.YAMLError:
        if value.startswith("[") and value.endswith("]"):
            return [item.strip() for item in value[1:-1].split(",") if item.strip()]
        return value


def _assign(values: dict[str, Any], path: Sequence[str], value: Any, override: str) -> None:
    for key in path[:-1]:
        if values.get(key) is None:
            values[key] = {}
        values = values[key]
        if not isinstance(values, dict):
            raise ConfigError(f"override {override!r}: {key} is a value, not a section")
    values[path[-1]] = value


def _booleans_taken_for_numbers(given: Any, made: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield key and value where `true` or `false` was given and pydantic turned it into 1 or 0."""
    if isinstance(given, bool):
        if isinstance(made, int | float) and not isinstance(made, bool):
            yield path, given
    elif isinstance(given, Mapping):
        for key, value in given.items():
            inner = made.get(key) if isinstance(made, Mapping) else getattr(made, str(key), None)
            yield from _booleans_taken_for_numbers(value, inner, f"{path}.{key}" if path else str(key))
    elif isinstance(given, list) and isinstance(made, list | tuple):
        for index, (value, inner) in enumerate(zip(given, made, strict=False)):
            yield from _booleans_taken_for_numbers(value, inner, f"{path}[{index}]")


def _one_line(error: ValidationError, kind: type["Config"], values: Mapping[str, Any]) -> str:
    """Say in our own words what is wrong with a configuration, each key once."""
    problems: dict[str, list[ErrorDetails]] = {}
    for problem in error.errors():
        problems.setdefault(_where(problem, values), []).append(problem)
    within = [path for path in problems if any(other.startswith((f"{path}.", f"{path}[")) for other in problems)]
    return "; ".join(_sentence(path, found, kind) for path, found in problems.items() if path not in within)


def _where(problem: ErrorDetails, values: Any) -> str:
    """Return the key that a problem is about, as a person would write it: without the names of pydantic's variants."""
    path, here, last = "", values, len(problem["loc"]) - 1
    for number, part in enumerate(problem["loc"]):
        if isinstance(here, Mapping) and part in here:
            path, here = f"{path}.{part}".lstrip("."), here[part]
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            path, here = f"{path}[{part}]", here[part]
        elif number == last and problem["type"] == "missing" and isinstance(part, str):
            path = f"{path}.{part}".lstrip(".")
    return path


def _sentence(path: str, problems: Sequence[ErrorDetails], kind: type["Config"]) -> str:
    """Say what is wrong with one key. Several problems with one key come from the variants of a union."""
    first = problems[0]
    if first["type"] == "extra_forbidden":
        return f"unknown key {path}{_suggestion(path, first['loc'], kind)}"
    if first["type"] == "missing" and isinstance(first["loc"][-1], str):
        return f"{path} is missing"
    if first["type"] == "value_error":  # one of our own rules, whose message is complete
        message = " ".join(first["msg"].removeprefix("Value error, ").split())
        return f"{path}: {message}" if path else message
    context = first.get("ctx", {})
    if first["type"] == "union_tag_invalid":
        return f"{path}.kind is {_shown(context['tag'])}, but it takes {context['expected_tags'].replace(', ', ' or ')}"
    if first["type"] == "union_tag_not_found":
        return f"{path} is {_shown(first['input'])}, but it takes a section that has a kind"
    takes = list(dict.fromkeys(_takes(problem) for problem in problems))
    return f"{path or 'the configuration'} is {_shown(first['input'])}, but it takes {' or '.join(takes)}"


_TAKES = {
    "int": "a plain whole number", "float": "a plain number", "finite": "a plain number", "bool": "true or false",
    "string": "text", "tuple": "a list", "list": "a list", "dict": "a section of keys and values",
    "model": "a section of keys and values", "none": "null",
}  # fmt: skip
"""What a key takes, by the first word of pydantic's error type."""

_BOUNDS = {
    "greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le",
    "too_short": "min_length", "too_long": "max_length",
}  # fmt: skip


def _takes(problem: ErrorDetails) -> str:
    """Say what a key takes, given why pydantic refused its value."""
    name, context = problem["type"], problem.get("ctx", {})
    bound = context.get(_BOUNDS.get(name, ""))
    bound = f"{bound:g}" if isinstance(bound, int | float) else bound
    words = {
        "greater_than": f"a number above {bound}", "greater_than_equal": f"a number of at least {bound}",
        "less_than": f"a number below {bound}", "less_than_equal": f"a number of at most {bound}",
        "too_short": f"at least {bound} of them", "too_long": f"at most {bound} of them",
        "literal_error": context.get("expected"), "enum": context.get("expected"),
        "string_pattern_mismatch": f"text of the form {context.get('pattern')}", "missing": "a longer list",
        "int_from_float": "a plain whole number",
    }  # fmt: skip
    return words.get(name) or _TAKES.get(name.partition("_")[0], "another kind of value")


def _shown(value: Any) -> str:
    """Write a value as in YAML, cut if it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _suggestion(path: str, location: Sequence[int | str], kind: type["Config"]) -> str:
    """Name the known key nearest to an unknown one; if none is near, list the keys of its section."""
    name, parent = path.rpartition(".")[2], path.rpartition(".")[0]
    siblings = [field for model in _models_at(location[:-1], kind) for field in model.model_fields]
    if near := difflib.get_close_matches(name, siblings, 1, 0.7):
        return f"; did you mean {f'{parent}.{near[0]}' if parent else near[0]}?"
    every = list(_keys(kind))
    namesakes = [key for key in every if key.rpartition(".")[2] == name]
    near = difflib.get_close_matches(path, namesakes, 3, 0.0) or difflib.get_close_matches(path, every, 1)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; there are {', '.join(dict.fromkeys(siblings))}" if siblings else ""


def _models_at(location: Sequence[int | str], kind: type["Config"]) -> list[type["Config"]]:
    """Return the classes that a place in a configuration may hold, given pydantic's path to it."""
    models = [kind]
    for part in location:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if fields:
            models = [found for field in fields for found in _models_in(field.annotation)]
        else:  # the tag of a union narrows it; a list index or a mapping key does not
            models = [model for model in models if _kind_of(model) == part] or models
    return models


def _models_in(annotation: Any) -> list[type["Config"]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [found for inner in get_args(annotation) for found in _models_in(inner)]


def _kind_of(model: type["Config"]) -> Any:
    field = model.model_fields.get("kind")
    return field.default if field else None


def _keys(kind: type["Config"], path: str = "") -> Iterator[str]:
    """Yield the dotted path of every key of a configuration."""
    for name, field in kind.model_fields.items():
        yield path + name
        for model in _models_in(field.annotation):
            yield from _keys(model, f"{path}{name}.")


def fingerprint(value: Any) -> str:
    """Return the SHA-256, in hex, of a JSON value in canonical form (keys sorted, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def difference(old: Any, new: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """Return (dotted path, old value, new value) where two JSON values first differ, or None."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            found = difference(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
            if found:
                return found
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (left, right) in enumerate(zip(old, new, strict=True)):
            found = difference(left, right, f"{path}[{index}]")
            if found:
                return found
        return None
    return None if old == new else (path, old, new)


def short(value: Any) -> str:
    """Write a value for an error message, cut to 80 characters."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
