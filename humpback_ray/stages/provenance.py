"""Where a commit was made: the machine, the libraries' versions, and the requests to storage that it took."""

import functools
import importlib.metadata
import platform
import socket
from collections import Counter

from humpback_ray import storage

_counted: Counter[str] = Counter()


def requests_since_last() -> dict[str, int]:
    """Return this process's requests to object storage since the last call, by operation."""
    global _counted
    now = storage.requests()
    made, _counted = now - _counted, now
    return dict(made)


def node() -> str:
    """Return the name of this machine."""
    return socket.gethostname()


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of the libraries that affect results, without importing them."""
    found = {"python": platform.python_version()}
    for name in ("humpback-ray", "ray", "torch", "transformers", "deepspeed", "pyarrow"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
