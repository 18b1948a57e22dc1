"""The tests' own Ray clusters: nodes from `ray start --block`, token authentication, the Jobs API.

Every port that could clash is a free one. All processes of a node descend from the one that is started here, so exactly
those are ended.
"""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tests.weed import free_port

RAY = str(Path(sys.executable).parent / "ray")
ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}
PATIENCE_S = 120
"""Time limit on a busy machine for something that usually takes seconds."""


class Node:
    """One raylet and its processes."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        command = [RAY, "start", "--block", "--disable-usage-stats", "--object-store-memory=100000000", *arguments]
        with log.open("w") as file:
            self.process = psutil.Popen(command, env=dict(environment), stdout=file, stderr=file)
        self.log = log

    def kill(self) -> None:
        """SIGKILL all of them at once, as if the machine were lost."""
        family = [*descendants(self.process), self.process]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=20)


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """All descendants of a process; none if it has ended."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


class Cluster:
    """A head, and more nodes on this machine, that ask for a token; used in a `with` block.

    Args:
        cpus: of the head.
        variables: for the environment of the nodes, and so of the drivers and workers.
    """

    def __init__(self, cpus: float, variables: Mapping[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short, because paths of sockets are limited
        self.token = secrets.token_hex(32)
        (self.folder / "token").write_text(self.token)
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.folder / "token")}
        self.environment = {**os.environ, **(variables or {}), **token}
        self.environment.pop("RAY_ADDRESS", None)
        port, dashboard = free_port(), free_port()
        self.address, self.api = f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
        self.nodes: list[Node] = []
        self._start(
            cpus, "--head", f"--port={port}", f"--ray-client-server-port={free_port()}",
            f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1",
        )  # fmt: skip

    def __enter__(self) -> Self:
        try:
            wait_for(self._answers, "the Jobs API", PATIENCE_S)
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def add(self, cpus: float) -> Node:
        """Start one more node and wait for it: two at once on one machine choose the same sockets.

        A node may fail to start, because a port is no longer free or a fault test kills its raylet before `ray start`
        has seen it. It is ended, its log is printed, and another one is tried.
        """
        for _ in range(3):
            node = self._start(cpus, f"--address={self.address}")
            deadline = time.monotonic() + PATIENCE_S / 2
            while node.process.is_running() and node.process.poll() is None and time.monotonic() < deadline:
                if "Ray runtime started" in node.log.read_text():
                    return node
                time.sleep(0.2)
            node.kill()
            print(f"node {node.log.name} did not start:\n{node.log.read_text()}")
        raise AssertionError("three nodes in a row did not start; their logs are printed above")

    def _start(self, cpus: float, *arguments: str) -> Node:
        ports = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
        mine = [f"--num-cpus={cpus:g}", f"--temp-dir={self.folder / 'tmp'}"]
        mine += [f"--{name}={free_port()}" for name in ports]
        log = self.folder / f"node-{len(self.nodes)}.log"
        self.nodes.append(Node([*mine, *arguments], self.environment, log))
        return self.nodes[-1]

    def end(self) -> None:
        """End all nodes, the head last."""
        for node in reversed(self.nodes):
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ray(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run the `ray` command against the Jobs API."""
        environment = {**self.environment, "RAY_API_SERVER_ADDRESS": self.api}
        command = [RAY, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S)

    def ask(self, path: str, body: Mapping[str, Any] | None = None, token: str | None = None) -> Any:
        """Send a request to the dashboard: GET without a body, POST with one; HTTPError if it refuses."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token or self.token}"}
        request = urllib.request.Request(f"{self.api}{path}", data, headers if token != "" else {})
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
            return json.loads(reply.read())

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            self.ask("/api/jobs/")
            return True
        return False

    def submit(self, entrypoint: str, submission: str) -> None:
        """Submit a job."""
        self.ask("/api/jobs/", {"entrypoint": entrypoint, "submission_id": submission})

    def job(self, submission: str) -> dict[str, Any]:
        """Return the Jobs API's record of a job."""
        return self.ask(f"/api/jobs/{submission}")

    def logs(self, submission: str) -> str:
        """Return the output of a job's driver."""
        return self.ask(f"/api/jobs/{submission}/logs")["logs"]

    def stop(self, submission: str) -> None:
        """Stop a job, as `ray job stop` does."""
        self.ask(f"/api/jobs/{submission}/stop", {})

    def finish(self, submission: str, timeout_s: float = 2 * PATIENCE_S) -> dict[str, Any]:
        """Wait until a job has ended and return its record."""
        wait_for(lambda: self.job(submission)["status"] in ENDED, f"the end of job {submission}", timeout_s)
        return self.job(submission)


def wait_for(condition: Callable[[], object], what: str, timeout_s: float) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {timeout_s:g} s"
        time.sleep(0.2)
