"""An input that changed is refused where it is read."""

import pytest

from humpback_ray import storage
from humpback_ray.storage.inventory import Hashes, resolve


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
