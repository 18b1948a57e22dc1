"""An input is identified by content and relative name, not by location."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from humpback_ray.config import ConfigError
from humpback_ray.storage import inventory
from humpback_ray.storage.inventory import Hashes, resolve, resolve_model
from tests.conftest import Said


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
    original = inventory.sha256_of
    monkeypatch.setattr(inventory, "sha256_of", lambda uri: read.append(Path(uri).name) or original(uri))
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
def test_a_damaged_cache_of_hashes_is_ignored(folder: Path, damaged: bytes) -> None:
    before = digest(folder, "web")
    (folder / "hashes.json").write_bytes(damaged)
    assert digest(folder, "web") == before


def test_a_damaged_entry_in_the_cache_of_hashes_is_ignored(folder: Path) -> None:
    before, memory = digest(folder, "web"), folder / "hashes.json"
    known = json.loads(memory.read_bytes())
    for damaged in ([], [None], ["sha256:"], [f"sha256:{'0' * 64}", "more"]):
        memory.write_text(json.dumps({uri: entry[:2] + damaged for uri, entry in known.items()}))
        assert digest(folder, "web") == before


KILLED = """
import os, sys
from humpback_ray.storage import inventory
hash_it, hashed = inventory.sha256_of, []
def dies_in_the_third(uri):
    if len(hashed) == 2:
        os.kill(os.getpid(), 9)
    hashed.append(uri)
    return hash_it(uri)
inventory.sha256_of, inventory.SAVE_EVERY_S = dies_in_the_third, 0
inventory.resolve("inputs", [sys.argv[1]], inventory.Hashes(sys.argv[2]))
"""


def test_killed_hashing_resumes_where_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        (folder / f"web/{name}.jsonl").write_text(name)
    memory = str(folder / "hashes.json")
    repository = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", KILLED, str(folder / "web"), memory]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": repository}, check=False)
    assert ended.returncode == -9
    seen, hash_it = [], inventory.sha256_of
    monkeypatch.setattr(inventory, "sha256_of", lambda uri: seen.append(uri) or hash_it(uri))
    assert len(resolve("inputs", [str(folder / "web")], Hashes(memory)).files) == 4
    assert seen == [str(folder / f"web/{name}.jsonl") for name in ("c", "deep/b")]


def test_hashing_reports_progress_and_a_full_disk_hides_no_error(
    folder: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "SAY_EVERY_BYTES", 2)
    (folder / "web/a.jsonl").write_text("12")
    digest(folder, "web")
    assert [words for _, words in said.records if words.startswith("inputs: ")] == [
        f"inputs: 0 GB hashed, up to {folder}/web/a.jsonl"
    ]

    def gone(uri: str) -> str:
        raise PermissionError(13, "Permission denied", uri)

    def full(uri: str, data: bytes) -> None:
        raise OSError(28, "No space left on device", uri)

    hashes = Hashes(str(folder / "hashes.json"))
    hashes._changed = True
    (folder / "web/a.jsonl").write_text("123")
    monkeypatch.setattr(inventory, "sha256_of", gone)
    monkeypatch.setattr(inventory, "write_bytes", full)
    with pytest.raises(PermissionError):
        resolve("inputs", [str(folder / "web")], hashes)
