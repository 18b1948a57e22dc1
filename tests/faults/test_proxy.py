"""Each fault does what it says, as seen by a client that does not retry."""

import contextlib
import http.client
import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from humpback_ray import storage
from tests.faults.proxy import FaultProxy

CONTENT = bytes(range(256)) * 400


class Store(http.server.BaseHTTPRequestHandler):
    """Stores objects in memory and returns them."""

    protocol_version = "HTTP/1.1"
    held: dict[str, bytes]

    def do_PUT(self) -> None:
        self.held[self.path] = self._chunked() if self.headers.get("Transfer-Encoding") else self._plain()
        self._reply(b"done")

    def do_GET(self) -> None:
        self._reply(self.held.get(self.path, b"nothing"))

    do_HEAD = do_GET

    def _plain(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _chunked(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size + 2)[:-2]
        self.rfile.readline()
        return data

    def _reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep test output clean."""


@pytest.fixture
def store() -> Iterator[http.server.ThreadingHTTPServer]:
    handler = type("FreshStore", (Store,), {"held": {"/there": CONTENT}})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def held(store: http.server.ThreadingHTTPServer) -> dict[str, bytes]:
    return store.RequestHandlerClass.held  # type: ignore[attr-defined]


@pytest.fixture
def proxy(store: http.server.ThreadingHTTPServer) -> Iterator[FaultProxy]:
    with FaultProxy(f"http://127.0.0.1:{store.server_port}", slow_s=0.3) as proxy:
        yield proxy


@contextlib.contextmanager
def connected(endpoint: str) -> Iterator[http.client.HTTPConnection]:
    client = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=20)
    yield client
    client.close()


def ask(client: http.client.HTTPConnection, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    client.request(method, path, body=body)  # type: ignore[arg-type]
    reply = client.getresponse()
    return reply.status, reply.read()


def test_without_a_fault_bodies_of_every_framing_pass_on_one_connection(
    proxy: FaultProxy, held: dict[str, bytes]
) -> None:
    large = CONTENT * 200
    with connected(proxy.endpoint) as client:
        assert ask(client, "PUT", "/plain", large) == (200, b"done")
        port = client.sock.getsockname()[1]
        assert ask(client, "PUT", "/chunked", iter([b"one,", b"two"])) == (200, b"done")
        assert ask(client, "GET", "/plain") == (200, large)
        assert ask(client, "HEAD", "/plain") == (200, b"")
        assert ask(client, "GET", "/there") == (200, CONTENT)
        assert client.sock.getsockname()[1] == port
    assert held["/chunked"] == b"one,two"
    assert proxy.requests == {"PUT": 2, "GET": 2, "HEAD": 1}
    assert not proxy.injected


def test_a_client_that_waits_for_100_continue_gets_it(proxy: FaultProxy, held: dict[str, bytes]) -> None:
    address = urlsplit(proxy.endpoint)
    with socket.create_connection((address.hostname, address.port), timeout=20) as client:
        client.sendall(b"PUT /waiting HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 100")
        client.sendall(b"body")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
    assert held["/waiting"] == b"body"


@pytest.mark.parametrize(("fault", "status", "code"), [
    ("503", 503, b"SlowDown"), ("409", 409, b"ConditionalRequestConflict"), ("501", 501, b"NotImplemented"),
])  # fmt: skip
def test_a_refused_request_never_reaches_the_server_and_the_connection_stays_open(
    proxy: FaultProxy, held: dict[str, bytes], fault: str, status: int, code: bytes
) -> None:
    proxy.rule(fault)
    with connected(proxy.endpoint) as client:
        refused, words = ask(client, "PUT", "/new", b"x")
        assert (refused, code in words) == (status, True)
        assert "/new" not in held
        assert ask(client, "PUT", "/new", b"x") == (200, b"done")
    assert proxy.injected == {fault: 1}


@pytest.mark.parametrize(("fault", "done", "said"), [
    ("reset_before", False, ConnectionResetError),
    ("reset_after", True, ConnectionResetError),
    ("lost_reply", True, http.client.RemoteDisconnected),
])  # fmt: skip
def test_a_broken_connection_leaves_the_work_done_or_not_as_its_name_says(
    proxy: FaultProxy, held: dict[str, bytes], fault: str, done: bool, said: type[Exception]
) -> None:
    proxy.rule(fault)
    with connected(proxy.endpoint) as client, pytest.raises(said) as raised:
        ask(client, "PUT", "/new", b"x")
    assert raised.type is said
    assert ("/new" in held) is done


def test_a_torn_reply_has_half_its_body(proxy: FaultProxy) -> None:
    proxy.rule("torn", method="GET")
    with connected(proxy.endpoint) as client:
        client.request("GET", "/there")
        reply = client.getresponse()
        assert reply.getheader("Content-Length") == str(len(CONTENT))
        with pytest.raises((ConnectionResetError, http.client.IncompleteRead)) as raised:
            reply.read()
    got = raised.value.partial if isinstance(raised.value, http.client.IncompleteRead) else b""
    assert CONTENT.startswith(got)
    assert len(got) <= len(CONTENT) // 2


def test_a_slow_request_waits_and_is_answered(proxy: FaultProxy) -> None:
    proxy.rule("slow", method=None)
    since = time.monotonic()
    with connected(proxy.endpoint) as client:
        assert ask(client, "GET", "/there") == (200, CONTENT)
    assert time.monotonic() - since >= 0.3
    assert proxy.delayed_s == 0.3


@pytest.mark.s3
def test_a_condition_can_be_ignored_though_it_was_signed(fault_proxy: FaultProxy, s3_bucket: str) -> None:
    uri = storage.join(s3_bucket, "ignored condition/once")
    fault_proxy.rule("ignore_condition")
    storage.write_bytes(uri, b"old")
    fault_proxy.rule("ignore_condition")
    assert storage.create(uri, b"new"), "the store did not look at the condition"
    assert storage.read_bytes(uri) == b"new"


def test_a_rule_applies_only_to_matching_requests_after_those_it_skips(proxy: FaultProxy) -> None:
    proxy.rule("503", method="PUT", path="/commits/", times=2, skip=1)
    with connected(proxy.endpoint) as client:
        statuses = [ask(client, "PUT", path, b"x")[0] for path in ["/data/1", *["/commits/1"] * 4]]
        assert ask(client, "GET", "/commits/1")[0] == 200
    assert statuses == [200, 200, 503, 503, 200]


def test_a_share_of_all_requests_gets_faults_and_the_same_seed_gives_the_same_faults(
    store: http.server.ThreadingHTTPServer,
) -> None:
    def injected() -> dict[str, int]:
        with FaultProxy(f"http://127.0.0.1:{store.server_port}", share=0.2, seed=7, slow_s=0.0) as proxy:
            for _ in range(200):
                with connected(proxy.endpoint) as client, contextlib.suppress(OSError, http.client.HTTPException):
                    ask(client, "GET", "/there")
            assert proxy.requests == {"GET": 200}
            return dict(proxy.injected)

    found = injected()
    assert found == injected()
    assert 20 <= sum(found.values()) <= 60
    assert set(found) == {"503", "reset_before", "reset_after", "lost_reply", "slow", "torn"}


def test_as_a_process_it_prints_its_endpoint_survives_vanishing_clients_and_saves_its_counts(
    store: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    state = tmp_path / "state.json"
    command = [sys.executable, "-m", "tests.faults.proxy", "--target", f"http://127.0.0.1:{store.server_port}"]
    with subprocess.Popen([*command, "--state", str(state)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            endpoint = process.stdout.readline().strip()
            address = urlsplit(endpoint)
            for words in (
                b"",
                b"PUT /x HTTP/1.1\r\n",
                b"PUT /x HTTP/1.1\r\nContent-Length: 99\r\n\r\nhalf",
                b"\r\n\r\n",
            ):
                with socket.create_connection((address.hostname, address.port)) as client:
                    client.sendall(words)
            with connected(endpoint) as client:
                assert ask(client, "GET", "/there") == (200, CONTENT)
                process.send_signal(signal.SIGTERM)
                assert process.wait(20) == 0
        finally:
            process.kill()
    assert json.loads(state.read_text()) == {"injected": {}, "requests": {"GET": 1}, "delayed_s": 0.0}
