"""S3 as storage needs it: requests are counted and retried after transient errors; files appear whole or not at all.

Requests go through s3fs, which handles credentials, regions and endpoints. `S3.call` is the only place that retries,
for every operation and the body of its reply. The retries of s3fs and botocore are off, so tries do not multiply and
errors say how many there were (aiohttp itself repeats a request, once and uncounted, on a connection that was closed
while idle). A file above `MULTIPART_BYTES` is uploaded in parts; its name appears once the last part is there, and a
failure aborts the upload.

Limits: if the reply to "begin an upload" is lost, an upload is left that only `uploads` (and so `gc`) sees.
"""

import errno
import io
import itertools
import logging
import math
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import aiobotocore.session
import aiohttp
import botocore.exceptions as faults
import s3fs
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync

logger = logging.getLogger(__name__)

TRIES = 10
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
"""Upper bounds of the first and the longest pause. The bound doubles; each pause is drawn between 0 and it: 10 s in
all."""
SAY_EVERY_S = 30.0
"""Seconds between log lines about a request that is still being retried."""
MULTIPART_BYTES = 64 << 20
PART_BYTES, PARTS_AT_ONCE = 16 << 20, 4
"""Size and number of the parts that an upload or a download holds in memory at a time."""
MOST_PARTS = 10_000
"""S3's limit on parts; files above 160 GB get larger parts."""
WHOLE_BYTES, BLOCK_BYTES = 32 << 20, 8 << 20
"""Bytes that an open file fetches at first, and with each further request."""
CONNECTIONS = 64
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10, 60

_PASSING_STATUS = {408, 409, 429, 500, 502, 503, 504}
_PASSING_CODES = {
    "BadDigest", "ConditionalRequestConflict", "ExpiredToken", "ExpiredTokenException",
    "IncompleteBody", "InternalError", "OperationAborted",
    "RequestLimitExceeded", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException",
    "XAmzContentSHA256Mismatch",
}  # fmt: skip
_PASSING_FAULTS = (
    aiohttp.ClientError, faults.ChecksumError, faults.ConnectionError, faults.CredentialRetrievalError,
    faults.FlexibleChecksumError, faults.HTTPClientError, faults.IncompleteReadError, ResponseParserError, TimeoutError,
)  # fmt: skip
_ERRNO = {
    401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT, 412: errno.EEXIST, 416: errno.ERANGE, 501: errno.ENOTSUP,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """An object in a bucket; `modified` in seconds by the store's clock."""

    uri: str
    bytes: int
    etag: str
    modified: float


@dataclass(frozen=True)
class Piece:
    """Consecutive bytes of an object from `start` on, with the size and version of the whole."""

    data: bytes
    start: int
    total: int
    etag: str


@dataclass(frozen=True)
class Upload:
    """A multipart upload that was begun and neither completed nor aborted; `begun` in seconds by the store's clock."""

    uri: str
    id: str
    begun: float


class S3:
    """One client; its methods may be called from any thread and raise OSError.

    Args:
        count: called with the operation's name for every request sent.
    """

    def __init__(self, count: Callable[[str], None]) -> None:
        def sent(event_name: str, **_: Any) -> None:
            count(event_name.rsplit(".", 1)[-1])

        session = aiobotocore.session.get_session()
        session.register("before-send.s3", sent)
        config = {
            "retries": {"total_max_attempts": 1, "mode": "standard"}, "max_pool_connections": CONNECTIONS,
            "connect_timeout": CONNECT_TIMEOUT_S, "read_timeout": READ_TIMEOUT_S,
        }  # fmt: skip
        self._files = s3fs.S3FileSystem(session=session, config_kwargs=config, skip_instance_cache=True)
        self._files.retries = 1
        self.patience_s = 0.0
        """Minimum time to retry a request, in addition to its `TRIES`."""

    def call(self, operation: str, uri: str, **arguments: Any) -> Any:
        """Make one request, retry it after transient errors, and return the reply.

        Args:
            operation: name of a method of botocore's client.
            uri: its object, or its bucket (without a key).
            arguments: further arguments of the operation.

        Raises:
            OSError: with URI, operation and number of tries. FileNotFoundError, PermissionError, FileExistsError
                (a condition did not hold) and others by errno.
        """
        bucket, key = split(uri)
        named = {**arguments, "Bucket": bucket, **({"Key": key} if key else {})}
        began = said = time.monotonic()
        for number in itertools.count(1):
            try:
                return self._reply(operation, uri, named)
            except (OSError, faults.ClientError, faults.BotoCoreError, *_PASSING_FAULTS) as error:
                cause = error.__cause__ if isinstance(error.__cause__, faults.ClientError) else error
                now = time.monotonic()
                if not _passing(cause) or (number >= TRIES and now - began >= self.patience_s):
                    raise _described(cause, operation, uri, number) from error
                if now - said > SAY_EVERY_S:
                    said = now
                    left_s = self.patience_s - (now - began)
                    logger.warning("%s; trying for another %.0f s", _described(cause, operation, uri, number), left_s)
            time.sleep(random.uniform(0, min(FIRST_WAIT_S * 2 ** min(number - 1, 20), LONGEST_WAIT_S)))
        raise AssertionError("the last try returns or raises")

    def _reply(self, operation: str, uri: str, named: dict[str, Any]) -> Any:
        """Make one request; the body of its reply, if any, is read whole.

        A server that fails before the first byte may answer 200 with an empty body. So an empty body is accepted only
        if HEAD confirms it, and a listing only if it says whether it is the last page.
        """
        reply: Any = self._files.call_s3(operation, **named)
        if "Body" in reply:
            reply["Body"] = sync(self._files.loop, _read, reply["Body"])
            if not reply["Body"] and (stored := self.stat(uri)) and stored.bytes:
                raise faults.IncompleteReadError(actual_bytes=0, expected_bytes=stored.bytes)
        if operation.startswith("list_") and "IsTruncated" not in reply:
            raise ResponseParserError("a listing without IsTruncated")
        return reply

    def stat(self, uri: str) -> Stored | None:
        """Return the object stored under a name, or None; one HEAD."""
        head = self._head(uri)
        return head and Stored(uri, head["ContentLength"], head["ETag"], head["LastModified"].timestamp())

    def _head(self, uri: str) -> Any:
        try:
            return self.call("head_object", uri)
        except FileNotFoundError:
            return None

    def read(self, uri: str) -> bytes:
        """Return an object's content; one GET."""
        return self.call("get_object", uri)["Body"]

    def piece(self, uri: str, span: str, etag: str | None = None) -> Piece:
        """Return the bytes of an object in an HTTP range; with `etag`, only of that version.

        Raises:
            OSError: EEXIST, the object has changed.
        """
        try:
            reply = self.call("get_object", uri, Range=span, **({"IfMatch": etag} if etag else {}))
        except OSError as error:
            if error.errno != errno.ERANGE:
                raise
            return Piece(b"", 0, 0, "")  # no range of an empty object can be satisfied
        data = reply["Body"]
        found, total = reply.get("ContentRange", f"bytes 0-/{len(data)}").removeprefix("bytes ").split("/")
        return Piece(data, int(found.split("-")[0]), int(total), reply.get("ETag", ""))

    def open(self, uri: str, from_end: bool = False, etag: str | None = None) -> BinaryIO:
        """Open an object for reading, seekable; one GET for `WHOLE_BYTES` of its beginning, or of its end.

        A smaller object costs no further request, a larger one costs a request per `BLOCK_BYTES` of the rest. With
        `etag`, only that version is opened.

        Raises:
            FileExistsError: the object has changed.
        """
        held = self.piece(uri, f"bytes=-{WHOLE_BYTES}" if from_end else f"bytes=0-{WHOLE_BYTES - 1}", etag or None)
        if etag and not held.total:  # the range of an empty object fails before its condition is checked
            self.call("head_object", uri, IfMatch=etag)
        if len(held.data) == held.total:
            return io.BytesIO(held.data)
        return io.BufferedReader(_Reader(self, uri, held), BLOCK_BYTES)

    def download(self, stored: Stored, path: Path) -> None:
        """Copy an object to a new local file, several parts at a time."""

        def fetch(start: int) -> None:
            span = f"bytes={start}-{min(start + PART_BYTES, stored.bytes) - 1}"
            data = memoryview(self.piece(stored.uri, span, stored.etag).data)
            while data:  # on a full disk a write is short, and the next one raises
                written = os.pwrite(file.fileno(), data, start)
                data, start = data[written:], start + written

        with path.open("xb") as file, ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
            list(pool.map(fetch, range(0, stored.bytes, PART_BYTES)))

    def create(self, uri: str, data: bytes) -> bool:
        """Write an object if the name is unused; False may mean that an earlier try succeeded.

        Raises:
            OSError: ENOTSUP if the store has no conditional create.
        """
        try:
            self.call("put_object", uri, Body=data, IfNoneMatch="*")
        except FileExistsError:
            return False
        return True

    def write(self, uri: str, size_bytes: int, read: Callable[[int, int], bytes]) -> None:
        """Write a whole object; `read(start, stop)` returns its bytes, and several threads call it."""
        if size_bytes <= MULTIPART_BYTES:
            self.call("put_object", uri, Body=read(0, size_bytes))
            return
        mark = uuid.uuid4().hex
        upload = self.call("create_multipart_upload", uri, Metadata={"upload": mark})["UploadId"]
        try:
            parts = self._upload_parts(uri, upload, size_bytes, read)
            self._complete(uri, upload, parts, mark)
        except BaseException as error:
            try:
                self.abort(uri, upload)
            except OSError as left:
                error.add_note(f"the upload is left for gc: {left}")
            raise

    def _upload_parts(self, uri: str, upload: str, size: int, read: Callable[[int, int], bytes]) -> list[Any]:
        step = max(PART_BYTES, math.ceil(size / MOST_PARTS))

        def send(start: int) -> dict[str, Any]:
            number, data = start // step + 1, read(start, min(start + step, size))
            reply = self.call("upload_part", uri, UploadId=upload, PartNumber=number, Body=data)
            return {"PartNumber": number, "ETag": reply["ETag"]}

        with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
            return list(pool.map(send, range(0, size, step)))

    def _complete(self, uri: str, upload: str, parts: list[Any], mark: str) -> None:
        try:
            self.call("complete_multipart_upload", uri, UploadId=upload, MultipartUpload={"Parts": parts})
        except FileNotFoundError:  # no such upload: an earlier try may have completed it
            head = self._head(uri)
            if not head or head["Metadata"].get("upload") != mark:
                raise

    def delete(self, uri: str) -> None:
        """Delete an object; a missing one is not an error."""
        self.call("delete_object", uri)

    def objects(self, uri: str) -> Iterator[Stored]:
        """Yield the objects whose URI begins with this one, by name; one request per thousand."""
        bucket, prefix = split(uri)
        more: dict[str, Any] = {}
        while True:
            page = self.call("list_objects_v2", f"s3://{bucket}", Prefix=prefix, **more)
            for found in page.get("Contents", ()):
                name, modified = f"s3://{bucket}/{found['Key']}", found["LastModified"].timestamp()
                yield Stored(name, found["Size"], found["ETag"], modified)
            if not page["IsTruncated"]:
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def uploads(self, uri: str) -> Iterator[Upload]:
        """Yield the unfinished multipart uploads whose URI begins with this one."""
        bucket, prefix = split(uri)
        more: dict[str, Any] = {}
        while True:
            page = self.call("list_multipart_uploads", f"s3://{bucket}", Prefix=prefix, **more)
            for found in page.get("Uploads", ()):
                begun: datetime = found["Initiated"]
                yield Upload(f"s3://{bucket}/{found['Key']}", found["UploadId"], begun.timestamp())
            if not page["IsTruncated"]:
                return
            more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def abort(self, uri: str, upload: str) -> None:
        """Abort a multipart upload and drop its parts; a missing upload is not an error."""
        try:
            self.call("abort_multipart_upload", uri, UploadId=upload)
        except FileNotFoundError:
            return


class _Reader(io.RawIOBase):
    """An object as a seekable file: reads come from the held piece in memory, or else cost one GET each."""

    def __init__(self, s3: S3, uri: str, held: Piece) -> None:
        self._s3, self._uri, self._held, self._at = s3, uri, held, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._held.total}[whence] + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._bytes(self._at, min(self._at + len(buffer), self._held.total))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _bytes(self, start: int, stop: int) -> bytes:
        """Return bytes from `start` on, fewer than asked for if the held piece begins or ends in between."""
        if start >= stop:
            return b""
        first, last = self._held.start, self._held.start + len(self._held.data)
        if first <= start < last:
            return self._held.data[start - first : min(stop, last) - first]
        stop = min(stop, first) if start < first else stop
        return self._s3.piece(self._uri, f"bytes={start}-{stop - 1}", self._held.etag).data


def split(uri: str) -> tuple[str, str]:
    """Return bucket and key of an s3:// URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


async def _read(body: Any) -> bytes:
    async with body:
        return await body.read()


def _passing(error: Exception) -> bool:
    if isinstance(error, faults.ClientError):
        return _status(error) in _PASSING_STATUS or error.response["Error"].get("Code") in _PASSING_CODES
    return isinstance(error, _PASSING_FAULTS)


def _status(error: Exception) -> int:
    reply = error.response if isinstance(error, faults.ClientError) else {}
    return int(reply.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _described(error: Exception, operation: str, uri: str, tries: int) -> OSError:
    """Return an OSError, of the subclass for its errno, that says what failed."""
    reason = error.response["Error"] if isinstance(error, faults.ClientError) else {}
    words = f"{reason.get('Code', '')} {reason.get('Message', '')}".strip() or f"{type(error).__name__}: {error}"
    times = "once" if tries == 1 else f"{tries} times"
    return OSError(_ERRNO.get(_status(error), errno.EIO), f"{uri}: {operation} was tried {times}: {words}")
