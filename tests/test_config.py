"""Configuration: one clear line for what is wrong, and a name for the field that differs."""

from pathlib import Path

import pytest

from humpback_ray.config import Config, ConfigError, difference, fingerprint, load


class Inner(Config):
    rows: int = 1
    names: tuple[str, ...] = ()


class Outer(Config):
    root: str = "here"
    inner: Inner = Inner()
    other: Inner | None = None


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
        ("inner.row=3", r"unknown key inner\.row"),
        ("inner.rows=many", r"inner\.rows: .*integer"),
        ("inner", "not key=value"),
        ("root.deep=1", "root is a value, not a section"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load(Outer, file, [override])
    assert "\n" not in str(error.value)


def test_a_missing_or_broken_file_is_said_so(tmp_path: Path) -> None:
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
