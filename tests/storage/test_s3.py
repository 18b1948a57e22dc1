"""Storage on a real S3 server: the requests of each function, and how it handles each fault."""

import hashlib
import os
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from humpback_ray import storage
from humpback_ray.records import PAIR
from humpback_ray.storage import connection, s3
from tests.faults.proxy import FaultProxy


def spent(before: Counter[str]) -> dict[str, int]:
    return dict(storage.requests() - before)


@pytest.mark.s3
def test_each_function_costs_a_known_number_of_requests(s3_bucket: str, tmp_path: Path) -> None:
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
def test_every_function_survives_a_fault(fault_proxy: FaultProxy, s3_bucket: str, tmp_path: Path, fault: str) -> None:
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
    fault_proxy.rule("reset_before", "GET", times=6)  # aiohttp itself retries once on a connection it knows
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


def test_an_empty_reply_is_accepted_only_for_an_empty_file(fault_proxy: FaultProxy, s3_bucket: str) -> None:
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
def test_a_large_file_is_uploaded_in_parts_and_survives_a_fault(
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
def test_an_upload_whose_completion_lost_its_reply_counts_as_completed(
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
    begun = connection.s3().call("create_multipart_upload", f"{root}/data/rows")["UploadId"]
    [found] = storage.unfinished_uploads(root)
    assert (found.name, found.upload_id) == ("data/rows", begun)
    for _ in range(2):
        storage.abort_upload(storage.join(root, found.name), found.upload_id)
    assert storage.unfinished_uploads(root) == []
