"""Write `docs/configuration.md`, the reference of every setting, from the docstrings of the configuration's fields.

    make docs

Each class that RunConfig reaches gets one section: its keys with what they take, their defaults and their docstrings.
A class that is used in several places is described once. The page depends on the code alone, so
`tests/docs/test_reference.py` can tell whether it is current.
"""

import json
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from humpback_ray.config import Config
from humpback_ray.runconfig import RunConfig

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
Model = type[Config]

INTRODUCTION = """# Configuration

<!-- `make docs` writes this file from the docstrings in the code. Edit those. -->

This page lists every key of a configuration file. `make docs` writes it from the docstrings in the code. Set a key in
YAML or, dotted, on the command line: `augment.placement.max_replicas=8`. An unknown key is an error that names the
nearest known one.

A **recipe** says what is computed. It is hashed into the fingerprint of each stage that depends on it, and a stage
refuses to resume under another recipe. A **placement** says where work runs. It is never hashed, so it may change
between two submissions of a run. Every section below says in italics whether it is hashed, and which of its keys are
not. `inputs` enter a fingerprint as the content of the files, wherever they lie. `version` is for those who change the
code; leave it alone in a configuration.

Where a description says None, write `null`. Where a section has several kinds, write `kind` and the keys of that kind.
"""


@dataclass
class Section:
    """One configuration class on the page."""

    model: Model
    paths: list[str] = field(default_factory=list)
    """Where it is used: dotted keys, in the order of the fields."""

    @property
    def kind(self) -> str | None:
        """The value of `kind` that selects it."""
        found = self.model.model_fields.get("kind")
        return str(found.default) if found else None

    @property
    def heading(self) -> str:
        """The key of a class that is used once, else what names the class wherever it is used."""
        alone = len(self.paths) == 1
        if self.model is RunConfig:
            return "Top-level keys"
        if self.kind:
            return f"`{self.paths[0]}`, kind `{self.kind}`" if alone else f"kind `{self.kind}`"
        return f"`{self.paths[0]}`" if alone else self.model.__name__

    @property
    def anchor(self) -> str:
        """The fragment that GitHub makes of the heading."""
        return re.sub(r"[^\w\- ]", "", self.heading.lower()).replace(" ", "-")

    @property
    def link(self) -> str:
        """A Markdown link to the section."""
        return f"[{f'kind `{self.kind}`' if self.kind else self.heading}](#{self.anchor})"

    @property
    def hashed(self) -> str:
        """What enters fingerprints."""
        if self.model is RunConfig:
            return "Its sections say what is hashed; `reuse` and `base_model` count by the content that they name."
        if all(_never_hashed(path) for path in self.paths):
            return "Not hashed."
        exceptions = [f"`{name}`" for name, info in self.model.model_fields.items() if not _hashed(info)]
        return f"Hashed, except {_listed(exceptions, 'and')}." if exceptions else "Hashed."


def _never_hashed(path: str) -> bool:
    """Tell whether a key belongs to a placement, or to the figures of `jobs.plan`."""
    parts = path.split(".")
    return parts[0] == "plan" or any(part.endswith("placement") for part in parts)


def _hashed(info: FieldInfo) -> bool:
    return "not hashed" not in _text(info.description).lower() and not any(
        model.__name__.endswith("Placement") for model in _models(info.annotation)
    )


def sections() -> dict[Model, Section]:
    """Return every configuration class that a run reaches, in the order of the fields, depth first."""
    found: dict[Model, Section] = {}

    def visit(model: Model, path: str) -> None:
        known = found.setdefault(model, Section(model))
        if path in known.paths:
            return
        known.paths.append(path)
        for name, info in model.model_fields.items():
            for inner in _models(info.annotation):
                visit(inner, f"{path}.{name}".lstrip("."))

    visit(RunConfig, "")
    return found


def _models(annotation: Any) -> Iterator[Model]:
    """Yield the configuration classes that a type mentions."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def page() -> str:
    """Return the whole page."""
    known = sections()
    once = [section for section in known.values() if len(section.paths) == 1]
    shared = [section for section in known.values() if len(section.paths) > 1]
    contents = [f"- {section.link}{_summary(section)}" for section in once if "." not in section.paths[0]]
    contents += [f"- In several places: {', '.join(section.link for section in shared)}"]
    parts = [INTRODUCTION, "\n".join(contents) + "\n"]
    for section in (*once, *shared):
        level = "###" if len(section.paths) == 1 and "." in section.paths[0] else "##"
        parts.append(f"{level} {section.heading}\n\n{_about(section)}\n\n" + "\n".join(_keys(section, known)) + "\n")
    return "\n".join(parts)


def _summary(section: Section) -> str:
    first = _text(section.model.__doc__).partition(". ")[0].rstrip(".")
    return f": {first}" if first else ""


def _about(section: Section) -> str:
    """Say what a section is for, where it is used and whether it is hashed."""
    places = f" Used by {_listed([f'`{path}`' for path in section.paths], 'and')}." if len(section.paths) > 1 else ""
    return f"{_text(section.model.__doc__)}{places} *{section.hashed}*".strip()


def _keys(section: Section, known: Mapping[Model, Section]) -> Iterator[str]:
    """Yield a line per key."""
    for name, info in section.model.model_fields.items():
        if name != "kind":
            takes, default = _taken(info.annotation, info.metadata, known), _default(info)
            yield f"- **`{name}`**: {takes}; {default}. {_described(info)}".rstrip()
    if list(section.model.model_fields) == ["kind"]:
        yield "It has no keys but `kind`."


def _described(info: FieldInfo) -> str:
    """Return the docstring of a field; that of its class where the field itself has none."""
    models = list(_models(info.annotation))
    return _text(info.description) or (_text(models[0].__doc__) if len(models) == 1 else "")


def _taken(annotation: Any, metadata: list[Any], known: Mapping[Model, Section]) -> str:
    """Say in words what a key takes, with its bounds."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        meant = [item for extra in inner[1:] for item in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
        return _taken(inner[0], [*meant, *metadata], known)
    if origin in (Union, types.UnionType):
        return _listed([_taken(one, metadata, known) for one in inner], "or")
    if annotation is type(None):
        return "null"
    if origin is Literal:
        return _listed([_code(value) for value in inner], "or")
    if origin is tuple and Ellipsis not in inner:
        return f"list of {len(inner)} ({', '.join(_taken(one, [], known) for one in inner)})"
    if origin in (list, tuple):
        return f"list of {_taken(inner[0], [], known)}{_bounds(metadata)}"
    if origin is dict:
        key, value = (_taken(one, [], known) for one in inner)
        return f"mapping from {key} to {value}{_bounds(metadata)}"
    if annotation in known:
        return known[annotation].link
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}[annotation] + _bounds(metadata)


_BOUNDS = {
    "ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}",
    "min_length": "at least {} of them", "max_length": "at most {} of them", "pattern": "of the form `{}`",
}  # fmt: skip


def _bounds(metadata: list[Any]) -> str:
    """Say the limits that pydantic checks."""
    found = [
        words.format(bound if isinstance(bound, str) else f"{bound:,}")
        for item in metadata
        for name, words in _BOUNDS.items()
        if (bound := getattr(item, name, None)) is not None
    ]
    return f" ({', '.join(found)})" if found else ""


def _default(info: FieldInfo) -> str:
    """Say the default of a key. Sections are compared with their own class, which has the defaults in its place."""
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, Config):
        changes = _changes(value)
        if "kind" in type(value).model_fields:
            changes = {"kind": getattr(value, "kind"), **changes}  # noqa: B009
        return f"default {_code(changes)}" if changes else "default: see there"
    return f"default {_code(value)}"


def _changes(value: Config) -> dict[str, Any]:
    """Return where a section differs from the defaults of its class."""
    found: dict[str, Any] = {}
    for name, info in type(value).model_fields.items():
        own = getattr(value, name)
        usual = None if info.is_required() else info.get_default(call_default_factory=True, validated_data={})
        if own != usual:
            found[name] = own
    return found


def _plain(value: Any) -> Any:
    """Return a default as JSON holds it: sections as their differences from their classes."""
    if isinstance(value, Config):
        kind = {"kind": getattr(value, "kind")} if "kind" in type(value).model_fields else {}  # noqa: B009
        return kind | {name: _plain(inner) for name, inner in _changes(value).items()}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _code(value: Any) -> str:
    """Write a value as YAML takes it, cut where it is long."""
    text = json.dumps(_plain(value), ensure_ascii=False)
    text = re.sub(r"(?<![\w.\"])(\d+)e([-+]?\d+)", r"\1.0e\2", text)  # YAML here takes 1.0e-05, not 1e-05
    text = text if len(text) <= 120 else f"{text[:100].rstrip()}…"
    fence = "``" if "`" in text else "`"
    return f"{fence}{text}{fence}"


def _text(docstring: str | None) -> str:
    """Put a docstring on one line."""
    return " ".join((docstring or "").split())


def _listed(words: list[str], joint: str) -> str:
    """Join words as a sentence does."""
    words = list(dict.fromkeys(words))
    return f" {joint} ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
