"""The reference of settings is current, complete, and says truly what is hashed."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from humpback_ray import config
from humpback_ray.config import Config
from humpback_ray.runconfig import RunConfig
from tests.docs import reference

PACKAGE = Path(config.__file__).parent
HASHED_ELSEWHERE = {"inputs", "rounds", "sample_share"}
"""What a stage leaves out of its recipe and hashes all the same: as the content of files, in a stage of its own, or
where it is set."""


class Inner(Config):
    """An inner section."""

    rows: int = 1


class Outer(Config):
    """An outer section."""

    rate: float | None = Field(default=1e-5, gt=0, le=1)
    """How fast."""

    names: tuple[str, ...] = Field(default=("a",), min_length=1)
    pair: tuple[int, int] = (1, 2)
    mode: Literal["fast", "slow"] = "fast"
    inner: Inner = Inner(rows=3)
    needed: dict[str, bool]
    """Which ones. Not
    hashed."""


def test_the_page_is_current() -> None:
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), (
        "docs/configuration.md is not what the docstrings say now; run `make docs` and commit the file"
    )


def test_a_line_says_what_a_key_takes_and_its_default() -> None:
    places: tuple[tuple[reference.Model, str], ...] = ((Outer, "outer"), (Inner, "outer.inner"))
    known: dict[reference.Model, reference.Section] = {
        model: reference.Section(model, [name]) for model, name in places
    }
    assert list(reference._keys(known[Outer], known)) == [
        "- **`rate`**: number (above 0, at most 1) or null; default `1.0e-05`. How fast.",
        '- **`names`**: list of text (at least 1 of them); default `["a"]`.',
        "- **`pair`**: list of 2 (whole number, whole number); default `[1, 2]`.",
        '- **`mode`**: `"fast"` or `"slow"`; default `"fast"`.',
        '- **`inner`**: [`outer.inner`](#outerinner); default `{"rows": 3}`. An inner section.',
        "- **`needed`**: mapping from text to true or false; required. Which ones. Not hashed.",
    ]
    assert known[Outer].hashed == "Hashed, except `needed`."
    assert reference.Section(Outer, ["a.tokens_placement"]).hashed == "Not hashed."


def test_every_key_of_a_run_is_on_the_page_and_documented() -> None:
    text, known = reference.page(), reference.sections()
    there = set(config._keys(RunConfig))
    listed = {
        f"{path}.{name}".lstrip(".")
        for section in known.values()
        for path in section.paths
        for name in section.model.model_fields
    }
    assert there
    assert listed == there
    for section in known.values():
        body = text.partition(f"# {section.heading}\n")[2].partition("\n#")[0]
        for name, info in section.model.model_fields.items():
            assert name == "kind" or f"\n- **`{name}`**: " in body, f"{section.heading} lacks {name}"
            assert name == "kind" or reference._described(info), f"{section.model.__name__}.{name} has no docstring"


def test_every_link_of_the_page_leads_to_one_heading() -> None:
    text = reference.page()
    anchors = [section.anchor for section in reference.sections().values()]
    assert len(set(anchors)) == len(anchors) == text.count("\n## ") + text.count("\n### ")
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) == set(anchors)


def test_a_default_can_be_copied_into_a_configuration() -> None:
    """YAML takes `1e-05` for text; what the page shows must be read as the default itself."""
    read = 0
    for section in reference.sections().values():
        for name, info in section.model.model_fields.items():
            shown = re.fullmatch(r"default (`+)(.+)\1", reference._default(info))
            if shown and not shown[2].endswith("…"):
                default = info.get_default(call_default_factory=True, validated_data={})
                assert config._parse(shown[2]) == reference._plain(default), f"{section.heading} {name}"
                read += 1
    assert read > 200


def excluded() -> Iterator[tuple[Path, str]]:
    """Every field that a module leaves out when it dumps a recipe to be hashed."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "exclude":
                names = [leaf.value for leaf in ast.walk(node.value) if isinstance(leaf, ast.Constant) and leaf.value]
                yield from ((path, str(name)) for name in names)


EXCLUDED = tuple(excluded())


def says_not_hashed(path: Path, name: str) -> bool:
    """Whether a recipe that the module defines or imports says that a field of that name is not hashed."""
    words = path.read_text(encoding="utf-8")
    fields: list[Any] = [
        model.model_fields[name]
        for model in reference.sections()
        if name in model.model_fields and re.search(rf"\b{model.__name__}\b", words)
    ]
    return bool(fields) and not any(reference._hashed(info) for info in fields)


@pytest.mark.parametrize(("path", "name"), EXCLUDED, ids=lambda value: getattr(value, "stem", value))
def test_a_field_that_is_not_hashed_says_so(path: Path, name: str) -> None:
    assert name in HASHED_ELSEWHERE or says_not_hashed(path, name), (
        f"{path.name} leaves {name} out of a fingerprint; end its docstring with `Not hashed.`"
    )


def test_no_other_recipe_field_says_that_it_is_not_hashed() -> None:
    left_out = {name for _, name in EXCLUDED} | {"min_kept"}  # `min_kept` of the corpus is in no recipe that is dumped
    claimed = {
        name
        for section in reference.sections().values()
        for name, info in section.model.model_fields.items()
        if any("recipe" in path for path in section.paths) and not reference._hashed(info)
    }
    assert claimed <= left_out, f"{sorted(claimed - left_out)} say `Not hashed`, but no module leaves them out"
