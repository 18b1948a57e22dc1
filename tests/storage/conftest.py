"""Roots for the tests of storage: a directory, and a bucket of a real S3 server."""

import uuid
from pathlib import Path

import pytest

from humpback_ray import storage
from humpback_ray.storage import s3


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path)
    return storage.join(request.getfixturevalue("s3_bucket"), uuid.uuid4().hex)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As small as S3 allows, so that 12 MiB are three parts."""
    monkeypatch.setattr(s3, "MULTIPART_BYTES", 5 << 20)
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
