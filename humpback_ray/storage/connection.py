"""This process's S3 client, created at the first use of an s3:// URI; it holds its patience and counts its requests.

Apart from `steps.hook`, this is the package's only mutable state. A forked process creates its own client. A run on
local paths creates none, so it never imports botocore.
"""

import functools
import os
import threading
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from humpback_ray.storage.s3 import S3

_requests: Counter[str] = Counter()
_lock = threading.RLock()


def s3() -> "S3":
    """Return the client of this process."""
    with _lock:
        return client_of(os.getpid())


@functools.cache
def client_of(_pid: int) -> "S3":
    """Make the client of a process; tests that change the endpoint clear the cache."""
    from humpback_ray.storage.s3 import S3

    return S3(_count)


def _count(operation: str) -> None:
    with _lock:
        _requests[operation] += 1


def requests() -> Counter[str]:
    """Return the number of requests this process has sent to S3 so far, by operation (PutObject); each try counts."""
    with _lock:
        return _requests.copy()


def be_patient(seconds: float) -> None:
    """Make this process retry every S3 request for at least `seconds` while it fails for a transient reason."""
    s3().patience_s = seconds
