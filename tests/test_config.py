"""Configuration: one clear line per error, and the name of the field that differs."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from humpback_ray.config import Config, ConfigError, difference, fingerprint, load


class Inner(Config):
    rows: int = 1
    names: tuple[str, ...] = ()


class Cheap(Config):
    kind: Literal["cheap"] = "cheap"
    samples: int = 1


class Dear(Config):
    kind: Literal["dear"] = "dear"
    temperature: float = Field(default=0.0, ge=0)


class Outer(Config):
    root: str = "here"
    inner: Inner = Inner()
    other: Inner | None = None
    hours: float | None = Field(default=None, gt=0)
    workers: Annotated[int, Field(ge=1)] | tuple[int, int] = 1
    eager: bool = False
    stage: Literal[1, 2] = 1
    steps: dict[str, int] = Field(default_factory=dict)
    how: Annotated[Cheap | Dear, Field(discriminator="kind")] = Cheap()
    rules: tuple[Inner, ...] = Field(default=(Inner(),), min_length=1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("root: there\nother: null\n")
    return path


def test_overrides_are_yaml_and_make_sections(file: Path) -> None:
    found = load(Outer, file, ["inner.rows=3", "other.names=[a, b]"])
    assert found == Outer(root="there", inner=Inner(rows=3), other=Inner(names=("a", "b")))


def test_globs_in_a_list_need_no_quotes(file: Path) -> None:
    found = load(Outer, file, ["inner.names=[*.warc.gz, s3://bucket/*/x.jsonl]"])
    assert found.inner.names == ("*.warc.gz", "s3://bucket/*/x.jsonl")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner", "override 'inner' is not key=value"),
        ("root.deep=1", "override 'root.deep=1': root is a value, not a section"),
        ("inner.row=3", "unknown key inner.row; did you mean inner.rows?"),
        ("inne.rows=3", "unknown key inne; did you mean inner?"),
        ("rows=3", "unknown key rows; did you mean rules.rows or other.rows or inner.rows?"),
        ("how={kind: dear, temperatur: 1}", "unknown key how.temperatur; did you mean how.temperature?"),
        ("how={kind: cheap, temperature: 1}", "unknown key how.temperature; did you mean how.temperature?"),
        ("rules=[{name: [a]}]", "unknown key rules[0].name; did you mean rules[0].names?"),
        ("inner.rows=many", "inner.rows is 'many', but it takes a plain whole number"),
        ("inner.rows=2.5", "inner.rows is 2.5, but it takes a plain whole number"),
        ("workers=many", "workers is 'many', but it takes a plain whole number or a list"),
        ("workers=0", "workers is 0, but it takes a number of at least 1 or a list"),
        ("workers=[1]", "workers is [1], but it takes a plain whole number or a longer list"),
        ("stage=3", "stage is 3, but it takes 1 or 2"),
        ("eager=maybe", "eager is 'maybe', but it takes true or false"),
        ("inner=5", "inner is 5, but it takes a section of keys and values"),
        ("inner.names=a", "inner.names is 'a', but it takes a list"),
        ("root=12", "root is 12, but it takes text"),
        ("steps.m1=many", "steps.m1 is 'many', but it takes a plain whole number"),
        ("how={kind: best}", "how.kind is 'best', but it takes 'cheap' or 'dear'"),
        ("how={samples: 1}", 'how is {"samples": 1}, but it takes a section that has a kind'),
        ("rules=[]", "rules is [], but it takes at least 1 of them"),
        ("rules=[{rows: many}]", "rules[0].rows is 'many', but it takes a plain whole number"),
        ("hours=-1", "hours is -1, but it takes a number above 0"),
    ],
)
def test_an_error_is_one_line_in_our_own_words(file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(Outer, file, [override])
    assert str(error.value) == message


@pytest.mark.parametrize("value", ["1:30", "01:30", "1:30:00", "1:30.5", "0x10", "0b11", "yes", "true", ".inf", ".nan"])
@pytest.mark.parametrize("key", ["hours", "inner.rows", "workers"])
def test_a_number_is_a_plain_one_in_an_override_and_in_a_file(tmp_path: Path, key: str, value: str) -> None:
    section, _, field = key.rpartition(".")
    text = f"{section}: {{{field}: {value}}}" if section else f"{key}: {value}"
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "empty.yaml").write_text("")
    for path, overrides in ((tmp_path / "config.yaml", []), (tmp_path / "empty.yaml", [f"{key}={value}"])):
        with pytest.raises(ConfigError, match=f"{key} is .*, but it takes a plain ") as error:
            load(Outer, path, overrides)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("hours=1.5", "hours", 1.5),
        ("hours=2", "hours", 2.0),
        ("hours=1e-5", "hours", 1e-5),
        ("hours=.5", "hours", 0.5),
        ("hours=1_000", "hours", 1000.0),
        ("workers=[1, 2]", "workers", (1, 2)),
        ("steps.m1=010", "steps", {"m1": 10}),
        ("eager=on", "eager", True),
        ("eager=true", "eager", True),
        ("root=2026-11-28", "root", "2026-11-28"),
        ("root=no", "root", "no"),
        ("root=1:30", "root", "1:30"),
        ("hours=null", "hours", None),
    ],
)
def test_a_value_is_read_as_it_looks(file: Path, override: str, field: str, value: Any) -> None:
    found = getattr(load(Outer, file, [override]), field)
    assert (found, type(found)) == (value, type(value))


def test_a_key_occurs_once(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("inner: {rows: 1}\nroot: a\ninner: {rows: 2}\n")
    with pytest.raises(ConfigError, match="the key inner appears twice"):
        load(Outer, tmp_path / "twice.yaml")
    (tmp_path / "merged.yaml").write_text("inner: &inner {rows: 1}\nother: {<<: *inner, rows: 2}\n")
    assert load(Outer, tmp_path / "merged.yaml").other == Inner(rows=2)


def test_a_missing_or_broken_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load(Outer, tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is not YAML"):
        load(Outer, tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(ConfigError, match="holds a list"):
        load(Outer, tmp_path / "list.yaml")


def test_the_first_difference_is_named_by_its_path() -> None:
    assert difference({"a": 1, "b": {"c": [1, 2]}}, {"a": 1, "b": {"c": [1, 3]}}) == ("b.c[1]", 2, 3)
    assert difference({"a": 1}, {"a": 1, "b": None}) is None
    assert difference({"a": 1}, {"a": 1, "b": 2}) == ("b", None, 2)
    assert difference({"a": [1]}, {"a": [1, 2]}) == ("a", [1], [1, 2])


def test_a_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 2, "b": 1})
