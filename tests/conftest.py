"""Fixtures that many test modules share: Ray, an S3 server, the folder of real input."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def real_data() -> Path:
    """The folder of real WARCs, trees and prompts; tests that need it are skipped where there is none."""
    folder = os.environ.get("HUMPBACK_REAL_DATA")
    if not folder:
        pytest.skip("HUMPBACK_REAL_DATA names no folder")
    return Path(folder)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of this test session's own."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
