"""Local files survive a power loss, faults of the file system and a writer that dies."""

import contextlib
import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from stat import S_ISDIR

import pyarrow as pa
import pytest

from humpback_ray import storage
from humpback_ray.stages.ledger import Ledger
from humpback_ray.storage import steps


@pytest.mark.parametrize(("fails_after", "made"), [(True, True), (False, False)])
def test_a_link_that_reports_an_error_is_judged_by_what_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_after: bool, made: bool
) -> None:
    link = os.link

    def failing(source: str, target: str) -> None:
        if fails_after:
            link(source, target)
        raise OSError(errno.EIO, "the reply was lost")

    monkeypatch.setattr(os, "link", failing)
    uri = str(tmp_path / "commit.json")
    with contextlib.nullcontext() if made else pytest.raises(OSError, match="reply was lost"):
        assert storage.create(uri, b"mine")
    assert storage.exists(uri) is made
    assert [file.name for file in storage.listing(str(tmp_path))] == ["commit.json"] * made, "no temporary file is left"


@pytest.mark.parametrize("code", ["EPERM", "ENOTSUP", "ENOSYS", "EINVAL", "EXDEV"])
def test_a_root_without_hard_links_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    def link(source: str, target: str) -> None:
        raise OSError(getattr(errno, code), "as FAT and FUSE answer", source, None, target)

    monkeypatch.setattr(os, "link", link)
    root = tmp_path / "root"
    with pytest.raises(storage.StorageError) as refused:
        storage.check_writable(str(root))
    said = storage.words(refused.value)
    assert re.fullmatch(
        rf"the file system of {root}/probe-\w+ does not support hard links \(.+; use a directory .+", said
    )
    assert not list(root.iterdir())


class Disk:
    """Knows what a power loss would leave: the files' contents and directory entries at their last fsync."""

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.top = top
        self.contents: set[int] = set()
        self.entries: dict[int, dict[str, int]] = {}
        self.linked: list[str] = []
        fsync, link = os.fsync, os.link

        def noted_fsync(descriptor: int) -> None:
            fsync(descriptor)
            stat = os.fstat(descriptor)
            if S_ISDIR(stat.st_mode):
                with os.scandir(descriptor) as entries:
                    self.entries[stat.st_ino] = {entry.name: entry.inode() for entry in entries}
            else:
                self.contents.add(stat.st_ino)

        def noted_link(source: str, target: str) -> None:
            assert os.stat(source).st_ino in self.contents, f"{target} may be seen empty"
            for path in self.top.rglob("data/*"):
                assert self.keeps(path), f"{target} may be there without {path}"
            link(source, target)
            self.linked.append(target)

        monkeypatch.setattr(os, "fsync", noted_fsync)
        monkeypatch.setattr(os, "link", noted_link)

    def keeps(self, path: Path) -> bool:
        above = (path, *path.parents)
        chain = above[: above.index(self.top)]
        return path.stat().st_ino in self.contents and all(
            self.entries.get(one.parent.stat().st_ino, {}).get(one.name) == one.stat().st_ino for one in chain
        )


def test_every_written_file_survives_a_power_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top, source = tmp_path / "top", tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"content")
    top.mkdir()
    disk, sha256 = Disk(top, monkeypatch), storage.sha256_of(str(source / "file"))
    written: dict[str, Callable[[str], object]] = {
        "write_bytes": lambda uri: storage.write_bytes(uri, b"content"),
        "create": lambda uri: storage.create(uri, b"content"),
        "upload_file": lambda uri: storage.upload_file(source / "file", uri),
        "copy_file": lambda uri: storage.copy_file(str(source / "file"), uri, sha256),
        "upload_directory/file": lambda uri: storage.upload_directory(source, os.path.dirname(uri)),
    }
    for name, write in written.items():
        path = top / "new/folders" / name
        write(str(path))
        assert path.read_bytes() == b"content"
        assert disk.keeps(path), name


def test_data_survives_a_power_loss_before_the_commit_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, ledger = Disk(tmp_path, monkeypatch), Ledger(str(tmp_path / "stage"), "s")
    with ledger.begin("000000") as attempt:
        attempt.write(pa.table({"id": ["1"], "drop_reason": pa.nulls(1, pa.string())}))
    assert [os.path.relpath(uri, ledger.uri) for uri in disk.linked] == [
        "attempts/000000/0001.json",
        "commits/000000.json",
    ]
    assert all(disk.keeps(path) for path in Path(ledger.uri).rglob("*") if path.is_file())
    assert len(list(Path(ledger.uri).rglob("*.parquet"))) == 1


def test_a_writer_that_dies_before_its_link_leaves_a_temporary_file_that_no_reader_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(step: str) -> None:
        raise KeyboardInterrupt(step)

    monkeypatch.setattr(steps, "hook", die)
    with pytest.raises(KeyboardInterrupt, match="8 temporary file written"):
        storage.create(str(tmp_path / "commit.json"), b"mine")
    assert storage.list_names(str(tmp_path)) == []
    assert [storage.is_temporary(file.name) for file in storage.listing(str(tmp_path))] == [True]
