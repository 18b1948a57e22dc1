"""Configuration: frozen pydantic models, YAML with dotted overrides, fingerprints.

An unknown key is an error. `fingerprint` is the identity of what a stage computes; `difference` names the first
field in which two recipes part, so that a refusal can say it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

C = TypeVar("C", bound="Config")


class ConfigError(ValueError):
    """The user's configuration or input is unusable; the message is one line that says what to change."""


class Config(BaseModel):
    """Base of every configuration class: immutable, closed to unknown keys, fields documented by docstrings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


def load(kind: type[C], path: str | Path, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file and apply dotted overrides such as `augment.placement.max_replicas=16`.

    Values are YAML: numbers, booleans, `null`, `[a, b]`. A leading `[` that YAML cannot parse (globs may hold `*`)
    is split at commas.

    Raises:
        ConfigError: no such file, no YAML mapping, an override without `=`, an unknown key or a bad value.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read the configuration {path}: it is not UTF-8 ({error})") from error
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, not a mapping of stages")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r} is not key=value")
        _assign(values, key.split("."), _parse(value), override)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from error


def _parse(value: str) -> Any:
    try:
        return yaml.safe_load(value)
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


def _one_line(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            problems.append(f"unknown key {where}")
        else:
            message = " ".join(problem["msg"].removeprefix("Value error, ").split())
            problems.append(f"{where}: {message}" if where else message)
    return "; ".join(problems)


def fingerprint(value: Any) -> str:
    """Return the SHA-256, in hex, of a JSON value in canonical form (keys sorted, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def difference(old: Any, new: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """Return (dotted path, old value, new value) of the first place where two JSON values differ, or None."""
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
