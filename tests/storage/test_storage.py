"""Storage: the same promises locally and on a real S3 server, and what it does about each fault of either."""

import contextlib
import errno
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_ISDIR

import pyarrow as pa
import pytest

from humpback_ray import storage
from humpback_ray.records import PAIR
from humpback_ray.stages.ledger import Ledger
from humpback_ray.storage import s3, steps
from humpback_ray.storage.inventory import Hashes, resolve, resolve_model
from tests.faults.proxy import FaultProxy


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path)
    return storage.join(request.getfixturevalue("s3_bucket"), uuid.uuid4().hex)


def test_of_many_writers_of_one_name_exactly_one_succeeds_and_its_content_stands(root: str) -> None:
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


def test_names_with_a_dot_are_left_out_unless_they_are_asked_for(root: str) -> None:
    for name in ("a.json", ".b.json", "deep/c.json", ".deep/d.json", "deep/.e/f.json", "_g.json"):
        storage.write_bytes(storage.join(root, "in", name), b"1")

    def found(pattern: str) -> list[str]:
        return [file.name for file in storage.find(storage.join(root, "in", pattern))]

    assert found("") == found("**") == found("**/*.json") == ["_g.json", "a.json", "deep/c.json"]
    assert found("*.json") == ["_g.json", "a.json"]
    assert found(".*") == found(".b.json") == [".b.json"]
    assert found(".deep/*") == ["d.json"]
    assert found(".d*/*") == [".deep/d.json"]
    assert found("*/c.json") == ["deep/c.json"]


def test_an_input_that_changed_is_refused_where_it_is_read(root: str) -> None:
    uri = storage.join(root, "a.jsonl")
    storage.write_bytes(uri, b"old")
    (file,) = resolve("inputs", [uri], Hashes(storage.join(root, "hashes.json"))).files
    with storage.reading(file) as stream:
        assert stream.read() == b"old"
    for content in (b"new", b"longer", b""):
        storage.write_bytes(uri, content)
        with pytest.raises(storage.InputChanged, match=r"a\.jsonl has changed since"), storage.reading(file) as stream:
            stream.read()
    storage.write_bytes(uri, b"old")
    with storage.reading(file) as stream:
        assert stream.read() == b"old"


def test_weights_that_changed_are_not_loaded(root: str) -> None:
    uri = storage.join(root, "model")
    for name in ("config.json", "model.safetensors"):
        storage.write_bytes(storage.join(uri, name), name.encode())
    found = resolve_model("base_model", uri, Hashes(storage.join(root, "hashes.json")))
    directory = storage.Directory(uri, found.files)
    storage.write_bytes(storage.join(uri, "notes.txt"), b"not of the inventory")
    assert (storage.local_directory(directory) / "model.safetensors").read_bytes() == b"model.safetensors"
    storage.write_bytes(storage.join(uri, "model.safetensors"), b"other.safetensors")
    if not storage.is_s3(root):  # a copy of the old version is still on this node
        with pytest.raises(storage.InputChanged, match=r"model\.safetensors has changed"):
            storage.local_directory(directory)
    storage.forget_old_copies(-1.0)
    with pytest.raises(storage.InputChanged, match=r"model\.safetensors has changed"):
        storage.local_directory(directory)


@pytest.mark.s3
def test_a_model_of_a_stage_is_held_against_its_hashes_when_it_is_fetched(s3_bucket: str) -> None:
    uri = storage.join(s3_bucket, uuid.uuid4().hex)
    storage.write_bytes(storage.join(uri, "config.json"), b"evil")
    sha256 = hashlib.sha256(b"good").hexdigest()
    file = storage.InputFile(storage.join(uri, "config.json"), "config.json", 4, f"sha256:{sha256}")
    with pytest.raises(storage.Damaged, match=rf"config.json has the SHA-256 .*, recorded is {sha256}"):
        storage.local_directory(storage.Directory(uri, (file,)))


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this user's copies are."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"humpback-ray-{os.getuid()}"


@pytest.mark.s3
def test_copies_that_another_user_can_write_to_are_not_used(s3_bucket: str, alone: Path, tmp_path: Path) -> None:
    uri = storage.join(s3_bucket, uuid.uuid4().hex)
    storage.write_bytes(storage.join(uri, "config.json"), b"{}")
    copy = storage.local_directory(uri)
    assert copy.parent == alone
    copy.chmod(0o777)
    with pytest.raises(storage.StorageError, match="should be a directory that user"):
        storage.local_directory(uri)
    copy.chmod(0o700)
    alone.chmod(0o777)
    with pytest.raises(storage.StorageError, match="drwxrwxrwx"):
        storage.local_directory(uri)
    alone.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").chmod(0o700)
    alone.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(storage.StorageError, match="lrwxrwxrwx"):
        storage.local_directory(uri)


def test_links_are_followed_and_what_cannot_be_listed_is_named(tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    (tmp_path / "else/b.json").write_text("1")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/linked").symlink_to(tmp_path / "else")
    for pattern in ("in", "in/**/*.json", "in/*/*.json"):
        assert [file.name for file in storage.find(str(tmp_path / pattern))] == ["linked/b.json"]
    assert storage.list_names(str(tmp_path / "in")) == ["linked/b.json"]
    (tmp_path / "in/gone").symlink_to(tmp_path / "nowhere")
    for look in (storage.find, storage.list_names, storage.listing):
        with pytest.raises(storage.StorageError, match=r"in/gone is a link to .*nowhere, which is not there"):
            look(str(tmp_path / "in"))
    (tmp_path / "in/gone").unlink()
    (tmp_path / "else/back").symlink_to(tmp_path / "in")
    with pytest.raises(storage.StorageError, match="is a link to a directory that it lies in"):
        storage.find(str(tmp_path / "in"))


def test_a_directory_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    locked = tmp_path / "in/locked"
    locked.mkdir(parents=True)
    (locked / "c.json").write_text("1")
    tmp_path.chmod(0o755)
    locked.chmod(0)
    code = f"""
import os, sys
from humpback_ray import storage
if os.getuid() == 0:
    os.setgid(65534), os.setuid(65534)
for look in (storage.find, storage.list_names, storage.listing):
    try:
        sys.exit(f"{{look.__name__}} returned {{look({str(tmp_path / "in")!r})}}")
    except PermissionError as error:
        assert "locked" in str(error), error
"""
    for parent in [*tmp_path.parents][:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    locked.chmod(0o700)
    assert done.returncode == 0, done.stderr


def test_kept_rows_are_counted_among_the_kept_and_read_across_row_groups(root: str) -> None:
    rows = [{"id": str(i), "drop_reason": "odd" if i % 2 else None} for i in range(100)]
    table = pa.Table.from_pylist(rows, schema=pa.schema([PAIR.field("id"), PAIR.field("drop_reason")]))
    uri = storage.join(root, "rows.parquet")
    storage.write_bytes(uri, storage.parquet_bytes(table, row_group_rows=7))
    assert storage.read_kept_rows(uri, 10, 15)["id"].to_pylist() == ["20", "22", "24", "26", "28"]
    assert storage.read_kept_rows(uri, 0, 1000)["id"].to_pylist() == [str(i) for i in range(0, 100, 2)]
    assert storage.read_kept_rows(uri, 50, 60).num_rows == 0


def test_a_directory_travels_there_and_back(root: str, tmp_path: Path) -> None:
    source = tmp_path / "model"
    (source / "deep").mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "deep/weights").write_bytes(b"\0" * 1000)
    entries = storage.upload_directory(source, storage.join(root, "there"))
    assert [(entry.name, entry.bytes) for entry in entries] == [("config.json", 2), ("deep/weights", 1000)]
    back = storage.local_directory(storage.join(root, "there"))
    assert (back / "deep/weights").read_bytes() == b"\0" * 1000
    assert entries[1].sha256 == storage.sha256_of(storage.join(root, "there/deep/weights"))


@pytest.mark.s3
def test_of_the_processes_of_a_node_that_need_a_model_at_once_one_fetches_it(s3_bucket: str) -> None:
    root = storage.join(s3_bucket, uuid.uuid4().hex)
    for name in ("config.json", "weights"):
        storage.write_bytes(storage.join(root, name), os.urandom(1 << 20))
    code = (
        "import sys; from humpback_ray import storage; sys.stdin.read(1)\n"
        "print(storage.local_directory(sys.argv[1]), storage.requests()['GetObject'])"
    )
    command, pipe = [sys.executable, "-c", code, root], subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("!")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0].split() for process in processes]
    assert len({path for path, _ in said}) == 1
    assert sorted(int(count) for _, count in said) == [0, 0, 2]
    assert (Path(said[0][0]) / "weights").read_bytes() == storage.read_bytes(storage.join(root, "weights"))


def test_a_root_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(storage.StorageError, match=r"cannot write to .*file"):
        storage.check_writable(str(tmp_path / "file"))


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
    assert re.fullmatch(rf"the file system of {root}/probe-\w+ makes no hard links \(.+; use a directory .+", said)
    assert not list(root.iterdir())


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EROFS"])
def test_a_root_that_is_full_is_said_so_with_its_name_and_leaves_nothing(
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


class Disk:
    """Knows what a loss of power would leave: contents of files and entries of directories at their last fsync."""

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


def test_whatever_is_written_outlives_a_loss_of_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_data_outlives_a_loss_of_power_before_the_commit_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def spent(before: Counter[str]) -> dict[str, int]:
    return dict(storage.requests() - before)


@pytest.mark.s3
def test_what_each_function_costs_in_requests(s3_bucket: str, tmp_path: Path) -> None:
    root = storage.join(s3_bucket, uuid.uuid4().hex)
    rows = [{"id": os.urandom(500).hex(), "drop_reason": "odd" if i % 2 else None} for i in range(2500)]
    table = pa.Table.from_pylist(rows, schema=pa.schema([PAIR.field("id"), PAIR.field("drop_reason")]))
    data, uri = storage.parquet_bytes(table), storage.join(root, "rows.parquet")
    assert len(data) > 1_000_000
    (tmp_path / "file").write_bytes(data)
    for call, cost in [
        (lambda: storage.write_bytes(uri, data), {"PutObject": 1}),
        (lambda: storage.upload_file(tmp_path / "file", uri), {"PutObject": 1}),
        (lambda: storage.create(uri, b""), {"PutObject": 1}),
        (lambda: storage.exists(uri), {"HeadObject": 1}),
        (lambda: storage.read_bytes(uri), {"GetObject": 1}),
        (lambda: storage.sha256_of(uri), {"GetObject": 1}),
        (lambda: storage.read_table(uri, ["id"]), {"GetObject": 1}),
        (lambda: storage.read_kept_rows(uri, 500, 1200), {"GetObject": 1}),
        (lambda: storage.list_names(root), {"ListObjectsV2": 1}),
        (lambda: storage.listing(root), {"ListObjectsV2": 1}),
        (lambda: storage.find(storage.join(root, "*.parquet")), {"ListObjectsV2": 1}),
        (lambda: storage.find(uri), {"ListObjectsV2": 1, "HeadObject": 1}),
        (lambda: storage.delete(uri), {"DeleteObject": 1}),
    ]:
        before = storage.requests()
        call()
        assert spent(before) == cost


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As small as S3 allows, so that 12 MiB are three parts."""
    monkeypatch.setattr(s3, "MULTIPART_BYTES", 5 << 20)
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)


@pytest.mark.s3
def test_an_object_larger_than_what_is_fetched_at_once_reads_the_same(
    s3_bucket: str, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "WHOLE_BYTES", 300_000)
    monkeypatch.setattr(s3, "BLOCK_BYTES", 100_000)
    root = storage.join(s3_bucket, uuid.uuid4().hex)
    ids = [os.urandom(300).hex() for _ in range(20_000)]
    table = pa.table({"id": ids, "drop_reason": pa.nulls(len(ids), pa.string())})
    data, uri = storage.parquet_bytes(table), storage.join(root, "rows.parquet")
    storage.write_bytes(uri, data)
    assert len(data) > s3.PART_BYTES
    assert storage.read_kept_rows(uri, 3500, 6100)["id"].to_pylist() == ids[3500:6100]
    assert storage.read_table(uri).equals(table)
    assert storage.sha256_of(uri) == hashlib.sha256(data).hexdigest()
    with storage.open_input(uri) as file:
        for start in (len(data) - 10, 299_990, 0, 400_000):
            file.seek(start)
            assert file.read(20) == data[start : start + 20]
    assert (storage.local_directory(root) / "rows.parquet").read_bytes() == data


FUNCTIONS: dict[str, tuple[str, Callable[[str, Path], object], object]] = {
    "write_bytes": ("PUT", lambda root, _: storage.write_bytes(f"{root}/b", b"new"), None),
    "upload_file": ("PUT", lambda root, local: storage.upload_file(local, f"{root}/b"), None),
    "read_bytes": ("GET", lambda root, _: storage.read_bytes(f"{root}/a"), b"content"),
    "open_input": ("GET", lambda root, _: storage.open_input(f"{root}/a").read(), b"content"),
    "local_directory": ("GET", lambda root, _: (storage.local_directory(root) / "a").read_bytes(), b"content"),
    "list_names": ("GET", lambda root, _: storage.list_names(root), ["a"]),
    "listing": ("GET", lambda root, _: [file.bytes for file in storage.listing(root)], [7]),
    "find": ("GET", lambda root, _: [file.name for file in storage.find(f"{root}/*")], ["a"]),
    "unfinished_uploads": ("GET", lambda root, _: storage.unfinished_uploads(root), []),
    "exists": ("HEAD", lambda root, _: (storage.exists(f"{root}/a"), storage.exists(f"{root}/c")), (True, False)),
    "delete": ("DELETE", lambda root, _: storage.delete(f"{root}/a"), None),
}


@pytest.mark.s3
@pytest.mark.parametrize("fault", ["503", "reset_before", "reset_after", "lost_reply", "slow", "torn"])
def test_every_function_lives_through_a_fault(
    fault_proxy: FaultProxy, s3_bucket: str, tmp_path: Path, fault: str
) -> None:
    fault_proxy.slow_s = 0.05
    (tmp_path / "local").write_bytes(b"new")
    for name, (method, function, expected) in FUNCTIONS.items():
        if fault == "torn" and method != "GET":
            continue
        root = storage.join(s3_bucket, uuid.uuid4().hex)
        storage.write_bytes(f"{root}/a", b"content")
        fault_proxy.clear()
        fault_proxy.rule(fault, method)
        assert function(root, tmp_path / "local") == expected, name
        assert fault_proxy.injected == {fault: 1}, name
        left = {"delete": [], "write_bytes": ["a", "b"], "upload_file": ["a", "b"]}.get(name, ["a"])
        assert storage.list_names(root) == left, name


@pytest.mark.s3
@pytest.mark.parametrize("fault", ["503", "409", "reset_before", "reset_after", "lost_reply"])
def test_a_create_that_met_faults_has_its_own_content_there_and_nobody_elses(
    fault_proxy: FaultProxy, s3_bucket: str, fault: str
) -> None:
    uri = storage.join(s3_bucket, uuid.uuid4().hex)
    fault_proxy.rule(fault, times=2)
    made = storage.create(uri, b"mine")
    assert storage.read_bytes(uri) == b"mine"
    assert made is (fault not in ("reset_after", "lost_reply")), "an earlier try had succeeded: the caller reads back"
    assert not storage.create(uri, b"another's")
    assert storage.read_bytes(uri) == b"mine"


@pytest.mark.s3
def test_an_error_after_the_last_try_names_file_operation_and_tries(
    fault_proxy: FaultProxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "TRIES", 3)
    uri = storage.join(s3_bucket, uuid.uuid4().hex)
    fault_proxy.rule("503", times=3)
    with pytest.raises(OSError, match=rf"{uri}: put_object was tried 3 times: SlowDown"):
        storage.write_bytes(uri, b"content")
    fault_proxy.rule("reset_before", "GET", times=6)  # aiohttp asks once more by itself on a connection it knows
    with pytest.raises(OSError, match=rf"{uri}: get_object was tried 3 times: .*[Cc]onnection"):
        storage.read_bytes(uri)
    with pytest.raises(FileNotFoundError, match=f"{uri}: get_object was tried once: NoSuchKey"):
        storage.read_bytes(uri)


@pytest.mark.s3
def test_a_patient_process_waits_for_a_store_that_is_away_and_says_so(
    fault_proxy: FaultProxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(s3, "TRIES", 2)
    monkeypatch.setattr(s3, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(s3, "SAY_EVERY_S", 0.0)
    uri = storage.join(s3_bucket, uuid.uuid4().hex)
    fault_proxy.rule("503", times=8)
    storage.be_patient(60)
    try:
        storage.write_bytes(uri, b"content")
    finally:
        storage.be_patient(0)
    assert storage.read_bytes(uri) == b"content"
    assert "put_object was tried 8 times: SlowDown" in capsys.readouterr().err


def test_an_empty_reply_is_believed_only_of_an_empty_file(fault_proxy: FaultProxy, s3_bucket: str) -> None:
    root = storage.join(s3_bucket, uuid.uuid4().hex)
    for content, tries in ((b"content", 2), (b"", 1)):
        storage.write_bytes(f"{root}/a", content)
        for read in (storage.read_bytes, lambda uri: storage.open_input(uri).read()):
            fault_proxy.rule("empty", "GET")
            before = storage.requests()
            assert read(f"{root}/a") == content
            assert spent(before) == {"GetObject": tries, "HeadObject": 1}
    fault_proxy.rule("empty", "GET")
    assert storage.list_names(root) == ["a"]


@pytest.mark.s3
def test_every_try_is_counted(fault_proxy: FaultProxy, s3_bucket: str) -> None:
    fault_proxy.rule("503", times=2)
    before = storage.requests()
    storage.write_bytes(storage.join(s3_bucket, uuid.uuid4().hex), b"content")
    assert spent(before) == {"PutObject": 3}


@pytest.mark.s3
@pytest.mark.parametrize(("fault", "times"), [("501", 1), ("ignore_condition", 2)])
def test_a_store_without_conditional_create_is_refused_with_the_way_out(
    fault_proxy: FaultProxy, s3_bucket: str, fault: str, times: int
) -> None:
    root = storage.join(s3_bucket, uuid.uuid4().hex)
    fault_proxy.rule(fault, times=times)
    with pytest.raises(storage.StorageError, match=rf"cannot write to {root}: .*If-None-Match.*use a store that can"):
        storage.check_writable(root)
    assert storage.list_names(root) == []
    storage.check_writable(root)


@pytest.mark.s3
@pytest.mark.parametrize(("fault", "method", "path"), [
    ("503", "POST", "uploads"), ("503", "PUT", "partNumber=2"), ("reset_after", "PUT", "partNumber=1"),
    ("lost_reply", "POST", "uploadId="), ("reset_before", "POST", "uploadId="),
])  # fmt: skip
def test_a_large_file_goes_up_in_parts_and_lives_through_a_fault(
    fault_proxy: FaultProxy, s3_bucket: str, tmp_path: Path, small_parts: None, fault: str, method: str, path: str
) -> None:
    root, data = storage.join(s3_bucket, uuid.uuid4().hex), os.urandom(12 << 20)
    (tmp_path / "file").write_bytes(data)
    fault_proxy.rule(fault, method, path)
    before = storage.requests()
    storage.upload_file(tmp_path / "file", f"{root}/weights")
    assert fault_proxy.injected == {fault: 1}
    assert storage.requests()["UploadPart"] - before["UploadPart"] in (3, 3 + (method == "PUT"))
    assert storage.read_bytes(f"{root}/weights") == data
    assert storage.unfinished_uploads(root) == []


@pytest.mark.s3
def test_an_upload_that_was_completed_by_a_request_whose_reply_was_lost_is_known_again(
    fault_proxy: FaultProxy, s3_bucket: str, small_parts: None
) -> None:
    root, data = storage.join(s3_bucket, uuid.uuid4().hex), os.urandom(6 << 20)
    fault_proxy.rule("lost_reply", "POST", "uploadId=")
    fault_proxy.rule("404", "POST", "uploadId=")
    storage.write_bytes(f"{root}/rows", data)
    assert storage.read_bytes(f"{root}/rows") == data
    fault_proxy.rule("404", "POST", "uploadId=")
    with pytest.raises(FileNotFoundError, match="complete_multipart_upload was tried once: NoSuchUpload"):
        storage.write_bytes(f"{root}/rows", data)
    assert storage.read_bytes(f"{root}/rows") == data, "the older file of that name is not taken for the new one"


@pytest.mark.s3
@pytest.mark.parametrize(("method", "path"), [("PUT", "partNumber=2"), ("POST", "uploadId=")])
def test_a_large_file_that_fails_shows_nothing_and_leaves_no_upload(
    fault_proxy: FaultProxy, s3_bucket: str, small_parts: None, method: str, path: str
) -> None:
    root = storage.join(s3_bucket, uuid.uuid4().hex)
    fault_proxy.rule("501", method, path)
    with pytest.raises(OSError, match=f"{root}/rows: .* was tried once: NotImplemented"):
        storage.write_bytes(f"{root}/rows", os.urandom(12 << 20))
    assert storage.list_names(root) == []
    assert storage.unfinished_uploads(root) == []


@pytest.mark.s3
def test_an_upload_that_nobody_ended_is_found_and_dropped(s3_bucket: str) -> None:
    root = storage.join(s3_bucket, uuid.uuid4().hex)
    begun = storage._s3().call("create_multipart_upload", f"{root}/data/rows")["UploadId"]
    [found] = storage.unfinished_uploads(root)
    assert (found.name, found.upload_id) == ("data/rows", begun)
    for _ in range(2):
        storage.abort_upload(storage.join(root, found.name), found.upload_id)
    assert storage.unfinished_uploads(root) == []
