"""Fixtures that many test modules share: Ray, an S3 server, the folder of real input."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from humpback_ray.storage import connection
from jobs.local import LOCAL_RAY
from tests import weed
from tests.faults.proxy import FaultProxy

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

# Every Ray of the tests is started as jobs start theirs, but that nodes of the tests may be drained.
for name in LOCAL_RAY.keys() - {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"}:
    os.environ.setdefault(name, LOCAL_RAY[name])

HEAD = {"num_cpus": 2, "include_dashboard": False}

# Models of tests are tiny. Torch's threads wait for each other by spinning, which a loaded machine turns into minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("quick", max_examples=40, deadline=None)  # a loaded machine is slow at times; that is no bug
settings.register_profile("thorough", max_examples=400, deadline=None)  # `make chaos`: --hypothesis-profile=thorough
settings.load_profile("quick")


def one_example_in(share: int) -> settings:
    """Settings of a property whose examples are expensive: it gets one for every `share` of the profile."""
    return settings(max_examples=settings().max_examples // share)


@pytest.fixture
def real_data() -> Path:
    """The folder of real WARCs, trees and prompts; tests that need it are skipped where there is none."""
    folder = os.environ.get("HUMPBACK_REAL_DATA")
    if not folder:
        pytest.skip("HUMPBACK_REAL_DATA names no folder")
    return Path(folder)


@pytest.fixture(scope="session")
def local_ray() -> "Iterator[Cluster]":
    """A Ray of this test session's own; whoever adds nodes to it removes them again."""
    import ray

    cluster = started_head()
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def started_head() -> "Cluster":
    """Start a Ray head; a busy machine gets a second and a third half minute, after which Ray gives it up."""
    from ray.cluster_utils import Cluster

    for _ in range(2):
        with contextlib.suppress(Exception):  # Ray raises no other kind
            return Cluster(initialize_head=True, head_node_args=HEAD)
    return Cluster(initialize_head=True, head_node_args=HEAD)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server on loopback, its address and keys in the environment; yields the endpoint."""
    with weed.serving(tmp_path_factory.mktemp("weed")) as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield variables["AWS_ENDPOINT_URL"]


@pytest.fixture(scope="session")
def s3_bucket(s3_server: str) -> str:
    """A bucket on the S3 server, as an s3:// URI."""
    weed.create_bucket(os.environ, "humpback-test")
    return "s3://humpback-test"


@pytest.fixture
def fault_proxy(s3_server: str, s3_bucket: str) -> Iterator[FaultProxy]:
    """A proxy in front of the S3 server that does nothing until it is given rules; storage talks to it."""
    with FaultProxy(s3_server) as proxy, storage_at(proxy.endpoint):
        yield proxy


class Said(logging.Handler):
    """Keeps what the package logs, from INFO on."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.records: list[tuple[str, str]] = []
        """(level, message) of each record."""

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append((record.levelname, record.getMessage()))


@pytest.fixture
def said() -> Iterator[Said]:
    """What the package says during a test."""
    logger, handler = logging.getLogger("humpback_ray"), Said()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(before)


@contextlib.contextmanager
def storage_at(endpoint: str) -> Iterator[None]:
    """Let storage, in this process and in those it starts, talk to another S3 endpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        connection.client_of.cache_clear()
        yield
    connection.client_of.cache_clear()
