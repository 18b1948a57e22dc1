"""An HTTP/1.1 proxy in front of an S3 server that injects faults, by rule or into a share of all requests.

    503            S3's SlowDown; the server never saw the request
    409            ConditionalRequestConflict; the server never saw the request
    404            NoSuchUpload, as S3 answers for an upload that a lost request ended; the server never saw it
    501            NotImplemented, as a store without conditional create answers; the server never saw the request
    reset_before   the connection is reset; the server never saw the request
    reset_after    the server handled the request; the connection is reset without a reply
    lost_reply     the server handled the request; the connection is closed cleanly without a reply
    slow           the request waits `slow_s` before the server sees it
    empty          200 without a body, as from a server that failed before the first byte; it never saw the request
    torn           half of the reply's body, then a reset
    ignore_condition   the request is sent without its If-None-Match, signed again

Whole messages are held in memory, with bodies unchanged, so signatures stay valid. In a test:

    with FaultProxy("http://127.0.0.1:8333") as proxy:
        proxy.rule("lost_reply", method="PUT", path="/commits/")

and around a whole run: python -m tests.faults.proxy --target URL --share 0.05 --state FILE; its first line is the
endpoint, FILE holds what was injected, and SIGTERM ends it.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import unquote, urlsplit

BUFFER_BYTES = 1 << 20
ANSWERS = {
    "404": (404, "Not Found", "NoSuchUpload", "The specified upload does not exist."),
    "503": (503, "Slow Down", "SlowDown", "Please reduce your request rate."),
    "409": (409, "Conflict", "ConditionalRequestConflict", "A conflicting conditional operation is in progress."),
    "501": (501, "Not Implemented", "NotImplemented", "A header you provided implies functionality not implemented."),
}
AFTER = {"reset_after", "lost_reply", "torn"}
RULED = {*ANSWERS, *AFTER, "reset_before", "slow", "empty", "ignore_condition"}

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Message:
    """A request or a reply: its first line, its headers and its body with its original framing."""

    first: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    def without(self, *names: str) -> "Message":
        return Message(self.first, tuple(pair for pair in self.headers if pair[0].lower() not in names), self.body)

    @property
    def head(self) -> bytes:
        lines = [self.first, *(f"{name}: {value}" for name, value in self.headers), "", ""]
        return "\r\n".join(lines).encode("latin-1")

    @property
    def method(self) -> str:
        return self.first.split(" ")[0]

    @property
    def path(self) -> str:
        return unquote(self.first.split(" ")[1])

    @property
    def last(self) -> bool:
        return self.header("connection").lower() == "close"


@dataclass
class Rule:
    """Give `fault` to `times` requests of this method whose path contains `path`, after skipping `skip` of them."""

    fault: str
    method: str | None
    path: str
    times: int
    skip: int

    def takes(self, request: Message) -> bool:
        if not self.times or self.method not in (None, request.method) or self.path not in request.path:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


@dataclass
class FaultProxy:
    """A proxy in its own thread during a `with` block; `run` does the same on the caller's event loop.

    Args:
        target: the S3 server's endpoint.
        share: share of the requests without a matching rule that get a fault at random.
        seed: of the random choice.
        slow_s: how long "slow" waits.
        port: to listen on; 0 for any that is free.
    """

    target: str
    share: float = 0.0
    seed: int = 0
    slow_s: float = 1.0
    port: int = 0
    endpoint: str = field(default="", init=False)
    injected: Counter[str] = field(default_factory=Counter, init=False)
    requests: Counter[str] = field(default_factory=Counter, init=False)
    delayed_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._rules: list[Rule] = []
        self._idle: list[Connection] = []

    def rule(self, fault: str, method: str | None = "PUT", path: str = "", times: int = 1, skip: int = 0) -> None:
        """Give a fault to the next matching requests; method None matches any."""
        assert fault in RULED, f"{fault} is not one of {sorted(RULED)}"
        self._rules.append(Rule(fault, method, path, times, skip))

    def clear(self) -> None:
        """Forget all rules and counts."""
        self._rules.clear()
        self.injected.clear()
        self.requests.clear()

    def __enter__(self) -> "FaultProxy":
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self.run(ready.set)), name="proxy", daemon=True)
        self._thread.start()
        assert ready.wait(20), "the proxy did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self.end)
        self._thread.join(20)

    def end(self) -> None:
        """Make `run` return; called on its event loop."""
        self._ended.set()

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until `end` is called; `ready` is called once the endpoint is known."""
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=BUFFER_BYTES, backlog=512)
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready()
        await self._ended.wait()
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one client's requests one after another; a client that vanishes costs only its request."""
        broken = (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError)
        with contextlib.suppress(*broken):
            while request := await _read_request(reader, writer):
                if not await self._answer(request, writer) or request.last:
                    break
        with contextlib.suppress(OSError, RuntimeError):
            writer.close()

    async def _answer(self, request: Message, client: asyncio.StreamWriter) -> bool:
        """Pass a request on and its reply back, or inject a fault; return whether the connection stays open."""
        self.requests[request.method] += 1
        fault = self._fault(request)
        if fault:
            self.injected[fault] += 1
        if fault in ANSWERS:
            return await _send(client, _canned(request, *ANSWERS[fault]))
        if fault == "empty":
            return await _send(client, Message("HTTP/1.1 200 OK", (("Content-Length", "0"),)))
        if fault == "reset_before":
            return _reset(client)
        if fault == "slow":
            self.delayed_s += self.slow_s
            await asyncio.sleep(self.slow_s)
        if fault == "ignore_condition":
            request = _signed_anew(request.without("if-none-match"))
        reply = await self._exchange(request)
        if fault == "lost_reply":
            return False
        if fault == "reset_after":
            return _reset(client)
        if fault == "torn":
            client.write(reply.head + reply.body[: len(reply.body) // 2])
            await client.drain()
            await asyncio.sleep(0.01)  # a reset drops what has not left yet
            return _reset(client)
        return await _send(client, reply)

    def _fault(self, request: Message) -> str | None:
        for rule in self._rules:
            if rule.takes(request):
                return rule.fault
        if self._random.random() >= self.share:
            return None
        conditional = request.method == "PUT" and request.header("if-none-match")
        fitting = ["503", "reset_before", "reset_after", "lost_reply", "slow"]
        return self._random.choice(fitting + ["torn"] * (request.method == "GET") + ["409"] * bool(conditional))

    async def _exchange(self, request: Message) -> Message:
        """Send a request to the server over a persistent connection and return its reply."""
        while self._idle:
            connection = self._idle.pop()
            if connection[0].at_eof() or connection[1].is_closing():
                connection[1].close()
                continue
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):  # the server had closed it
                return await self._exchange_on(connection, request)
        address = urlsplit(self.target)
        fresh = await asyncio.open_connection(address.hostname, address.port, limit=BUFFER_BYTES)
        return await self._exchange_on(fresh, request)

    async def _exchange_on(self, connection: Connection, request: Message) -> Message:
        reader, writer = connection
        try:
            await _send(writer, request)
            reply = await _read_reply(reader, request.method)
        except BaseException:
            writer.close()
            raise
        if reply.last:
            writer.close()
        else:
            self._idle.append(connection)
        return reply


async def _send(writer: asyncio.StreamWriter, message: Message) -> bool:
    writer.write(message.head)
    if message.body:
        writer.write(message.body)
    await writer.drain()
    return not message.last


def _reset(writer: asyncio.StreamWriter) -> bool:
    """End a connection with RST; return False: it is not open."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Message | None:
    request = await _read_head(reader)
    if request is None:
        return None
    if request.header("expect"):
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return Message(request.first, request.without("expect").headers, await _read_body(reader, request))


async def _read_reply(reader: asyncio.StreamReader, method: str) -> Message:
    while True:
        reply = await _read_head(reader)
        if reply is None:
            raise ConnectionResetError("the server closed the connection without a reply")
        status = int(reply.first.split(" ")[1])
        if status >= 200:
            break
    if method == "HEAD" or status in (204, 304):
        return reply
    if not reply.header("content-length") and not reply.header("transfer-encoding"):
        body = await reader.read()
        return Message(reply.first, (*reply.without("connection").headers, ("Connection", "close")), body)
    return Message(reply.first, reply.headers, await _read_body(reader, reply))


async def _read_head(reader: asyncio.StreamReader) -> Message | None:
    """Read up to the empty line; None if the other side closed the connection between messages."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    first, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    if " " not in first:
        raise ValueError(f"not a first line of HTTP: {first[:100]!r}")
    return Message(first, tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines)))


async def _read_body(reader: asyncio.StreamReader, message: Message) -> bytes:
    if "chunked" not in message.header("transfer-encoding").lower():
        return await reader.readexactly(int(message.header("content-length") or 0))
    parts = []
    while True:
        parts.append(await reader.readuntil(b"\r\n"))
        size = int(parts[-1].split(b";")[0], 16)
        if not size:
            break
        parts.append(await reader.readexactly(size + 2))
    while parts[-1] != b"\r\n":  # trailers
        parts.append(await reader.readuntil(b"\r\n"))
    return b"".join(parts)


def _canned(request: Message, status: int, phrase: str, code: str, words: str) -> Message:
    text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{words}</Message></Error>'
    body = b"" if request.method == "HEAD" else text.encode()
    headers = (("Content-Type", "application/xml"), ("Content-Length", str(len(body))))
    return Message(f"HTTP/1.1 {status} {phrase}", headers, body)


def _signed_anew(request: Message) -> Message:
    """Sign a request that lacks a header now, with the keys of this process's environment."""
    import botocore.auth
    import botocore.awsrequest
    import botocore.session

    method, target, version = request.first.split(" ")
    kept = request.without("authorization", "x-amz-date", "content-length", "user-agent", "accept-encoding")
    url = f"http://{request.header('host')}{target}"
    signed = botocore.awsrequest.AWSRequest(method, url, headers=dict(kept.headers), data=request.body)
    keys = botocore.session.get_session().get_credentials()
    botocore.auth.S3SigV4Auth(keys, "s3", "us-east-1").add_auth(signed)
    headers = (
        *((name, str(value)) for name, value in signed.headers.items()),
        ("Content-Length", str(len(request.body))),
    )
    return Message(f"{method} {target} {version}", headers, request.body)


async def _serve_until_terminated(proxy: FaultProxy, state: str | None) -> None:
    def save() -> None:
        if state:
            value = {"injected": proxy.injected, "requests": proxy.requests, "delayed_s": round(proxy.delayed_s, 3)}
            with open(f"{state}.partial", "w") as file:
                json.dump(value, file)
            os.replace(f"{state}.partial", state)

    def ready() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, proxy.end)
        save()
        print(proxy.endpoint, flush=True)

    serving = asyncio.create_task(proxy.run(ready))
    while not serving.done():
        await asyncio.wait([serving], timeout=1)
        save()
    serving.result()


def main() -> None:
    """Serve as a process."""
    parser = argparse.ArgumentParser(description="A proxy in front of an S3 server that injects faults.")
    parser.add_argument("--target", required=True, help="the S3 server's endpoint")
    parser.add_argument("--share", type=float, default=0.0, help="of all requests that get a fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slow-s", type=float, default=1.0, help="how long a slow request waits")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--state", help="a file that holds what was injected, rewritten every second")
    given = parser.parse_args()
    proxy = FaultProxy(given.target, given.share, given.seed, given.slow_s, given.port)
    asyncio.run(_serve_until_terminated(proxy, given.state))


if __name__ == "__main__":
    main()
