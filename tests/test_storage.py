"""Storage, the same promises locally and on a real S3 server; the lost reply is injected by a proxy in front of it."""

import http.client
import http.server
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pytest

from humpback_ray import storage
from humpback_ray.ledger import Ledger
from humpback_ray.records import PAIR


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
    assert [file.name for file in storage.find(storage.join(root, "a"))] == ["b.json", "c/d.gz"]
    assert [file.name for file in storage.find(storage.join(root, "a/c/d.gz"))] == ["d.gz"]
    assert storage.find(storage.join(root, "a/*.warc")) == []
    storage.delete(storage.join(root, "a/b.json"))
    storage.delete(storage.join(root, "a/b.json"))
    assert not storage.exists(storage.join(root, "a/b.json"))
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(root, "a/b.json"))


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


def test_a_root_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(storage.StorageError, match=r"cannot write to .*file"):
        storage.check_writable(str(tmp_path / "file"))


class Proxy(http.server.BaseHTTPRequestHandler):
    """Passes requests on; the reply to the first PUT under `lose` is dropped after the server had done it."""

    protocol_version = "HTTP/1.1"
    target = lose = ""
    lost = 0

    def pass_on(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        server = http.client.HTTPConnection(urlsplit(Proxy.target).netloc, timeout=30)
        server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() != "expect":
                server.putheader(name, value)
        server.endheaders(body)
        reply = server.getresponse()
        content = reply.read()
        if self.command == "PUT" and Proxy.lose in self.path and not Proxy.lost:
            Proxy.lost += 1
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server", "content-length"):
                self.send_header(name, value)
        length = reply.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(content)

    do_PUT = do_GET = do_HEAD = do_DELETE = do_POST = pass_on

    def log_message(self, format: str, *args: object) -> None:
        """Keep test output clean."""


@pytest.fixture
def losing_proxy(s3_server: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    Proxy.target, Proxy.lose, Proxy.lost = s3_server, "/commits/", 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    storage._s3_of.cache_clear()
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    yield
    server.shutdown()
    storage._s3_of.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.s3
@pytest.mark.timeout(60)
def test_a_commit_whose_reply_was_lost_and_was_retried_is_not_lost(losing_proxy: None, s3_bucket: str) -> None:
    ledger = Ledger(storage.join(s3_bucket, uuid.uuid4().hex), "first")
    row = {"id": "1", "instruction": "x", "response": "y", "source": "seed", "score": None, "drop_reason": None}
    with ledger.begin("000000", 3) as attempt:
        commit = attempt.write(pa.Table.from_pylist([row], schema=PAIR))
    assert Proxy.lost == 1, "the proxy dropped the reply to the conditional create"
    assert commit.attempt == 1
    assert ledger.commit_of("000000") == commit
    assert storage.exists(ledger.at(commit.files[0].name)), "the file that the commit names was not deleted"
