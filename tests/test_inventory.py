"""What identifies an input: content and relative name, not where it lies."""

import os
import shutil
from pathlib import Path

import pytest

from humpback_ray import storage
from humpback_ray.config import ConfigError
from humpback_ray.inventory import Hashes, resolve, resolve_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "web/deep").mkdir(parents=True)
    (tmp_path / "web/a.jsonl").write_text("1")
    (tmp_path / "web/deep/b.jsonl").write_text("2")
    return tmp_path


def digest(folder: Path, pattern: str) -> str:
    return resolve("corpus.recipe.inputs", [str(folder / pattern)], Hashes(str(folder / "hashes.json"))).digest


def test_a_moved_folder_is_the_same_input_and_a_changed_file_is_not(folder: Path) -> None:
    before = digest(folder, "web/**/*.jsonl")
    moved = folder / "elsewhere"
    shutil.copytree(folder / "web", moved / "web")
    assert digest(moved, "web/**/*.jsonl") == before
    (moved / "web/a.jsonl").write_text("3")
    assert digest(moved, "web/**/*.jsonl") != before
    (moved / "web/a.jsonl").write_text("1")
    assert digest(moved, "web/**/*.jsonl") == before
    (moved / "web/new.jsonl").write_text("1")
    assert digest(moved, "web/**/*.jsonl") != before


def test_a_file_that_two_patterns_name_is_read_once(folder: Path) -> None:
    patterns = [str(folder / "web"), str(folder / "web/a.jsonl"), str(folder / "web/*.jsonl")]
    found = resolve("inputs", patterns, Hashes(str(folder / "hashes.json")))
    assert [Path(file.uri).name for file in found.files] == ["a.jsonl", "b.jsonl"]


def test_an_unchanged_file_is_not_hashed_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(folder, "web")
    read = []
    original = storage.sha256_of
    monkeypatch.setattr(storage, "sha256_of", lambda uri: read.append(Path(uri).name) or original(uri))
    assert digest(folder, "web") == before
    assert read == []
    os.utime(folder / "web/a.jsonl", ns=(1, 1))
    assert digest(folder, "web") == before
    assert read == ["a.jsonl"]


def test_a_pattern_that_names_nothing_is_an_error_that_names_the_field(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"corpus\.recipe\.inputs: no file matches .*\.warc"):
        digest(folder, "web/*.warc")


def test_a_model_is_identified_by_its_weights(folder: Path) -> None:
    model = folder / "model"
    model.mkdir()
    hashes = Hashes(str(folder / "hashes.json"))
    with pytest.raises(ConfigError, match=r"no config\.json"):
        resolve_model("base_model", str(model), hashes)
    (model / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"no \.safetensors weights"):
        resolve_model("base_model", str(model), hashes)
    (model / "model.safetensors").write_bytes(b"12")
    (model / "README.md").write_text("notes do not count")
    before = resolve_model("base_model", str(model), hashes).digest
    (model / "README.md").write_text("other notes")
    assert resolve_model("base_model", str(model), hashes).digest == before
    (model / "model.safetensors").write_bytes(b"13")
    os.utime(model / "model.safetensors", ns=(2, 2))
    assert resolve_model("base_model", str(model), hashes).digest != before


def test_a_file_that_was_replaced_under_its_old_time_and_size_is_hashed_again(folder: Path) -> None:
    before, path = digest(folder, "web"), folder / "web/a.jsonl"
    stat = path.stat()
    path.write_text("3")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digest(folder, "web") != before
    path.unlink()
    path.write_text("1")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert digest(folder, "web") == before


@pytest.mark.parametrize("damaged", [b"{", b"[]", b'{"x": 3}', b"\xff"])
def test_a_damaged_memory_of_hashes_is_forgotten(folder: Path, damaged: bytes) -> None:
    before = digest(folder, "web")
    (folder / "hashes.json").write_bytes(damaged)
    assert digest(folder, "web") == before
