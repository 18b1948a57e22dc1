"""One file: a created file stays, a written file is read back, and a root that is not writable is named."""

import contextlib
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from humpback_ray import storage


def test_when_many_writers_create_one_name_exactly_one_succeeds_and_its_content_stays(root: str) -> None:
    uri = storage.join(root, "commit.json")
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda i: storage.create(uri, str(i).encode()), range(16)))
    assert sum(won) == 1
    assert storage.read_bytes(uri) == str(won.index(True)).encode()


def test_what_is_written_is_read_listed_found_and_deleted(root: str) -> None:
    storage.write_bytes(storage.join(root, "a/b.json"), b"old")
    storage.write_bytes(storage.join(root, "a/b.json"), b"new")
    storage.write_bytes(storage.join(root, "a/c/d.gz"), b"12345")
    assert storage.read_bytes(storage.join(root, "a/b.json")) == b"new"
    assert storage.list_names(root) == ["a/b.json", "a/c/d.gz"]
    assert storage.list_names(storage.join(root, "nothing")) == []
    assert [(file.name, file.bytes) for file in storage.find(storage.join(root, "a/*/*.gz"))] == [("c/d.gz", 5)]
    assert [file.name for file in storage.find(storage.join(root, "**/*.gz"))] == ["a/c/d.gz"]
    assert [file.name for file in storage.find(storage.join(root, "a/**/[bd].*"))] == ["b.json", "c/d.gz"]
    assert [file.name for file in storage.find(storage.join(root, "a"))] == ["b.json", "c/d.gz"]
    assert [file.name for file in storage.find(storage.join(root, "a/c/d.gz"))] == ["d.gz"]
    assert storage.find(storage.join(root, "a/*.warc")) == []
    storage.delete(storage.join(root, "a/b.json"))
    storage.delete(storage.join(root, "a/b.json"))
    assert not storage.exists(storage.join(root, "a/b.json"))
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(root, "a/b.json"))


def test_a_root_that_is_not_writable_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(storage.StorageError, match=r"cannot write to .*file"):
        storage.check_writable(str(tmp_path / "file"))


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EROFS"])
def test_a_full_root_is_named_and_the_failed_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    def fsync(descriptor: int) -> None:  # a file system that delays allocation answers here, and names no file
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    storage.check_room(str(tmp_path))
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(storage.StorageError) as refused:
        storage.check_writable(str(tmp_path))
    reason = os.strerror(getattr(errno, code))
    assert f"cannot write to {tmp_path}: [Errno" in storage.words(refused.value)
    assert f"{reason}: '{tmp_path}/probe-" in storage.words(refused.value)
    full = pytest.raises(storage.StorageError, match=f"{reason}; make room") if code != "EROFS" else None
    with full or contextlib.nullcontext():
        storage.check_room(str(tmp_path))
    assert not list(tmp_path.iterdir())
