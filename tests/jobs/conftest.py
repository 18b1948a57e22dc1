"""Shared by the tests of jobs: a Ray head that asks for a token, a run that only needs `candidates`, its fates."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.jobs import prepared
from tests.jobs.heads import Cluster

HOOKS = Path(__file__).parent / "hooks"
ROWS, SHARDS = 160, 16
Fates = dict[str, tuple[object, ...]]


class Head(Cluster):
    """The shared head. A test that kills part of a cluster uses its own."""

    def __init__(self, folder: Path) -> None:
        self.hold = folder / "hold"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # `python` is this one
        code = f"{HOOKS}:{prepared.REPOSITORY}"
        super().__init__(4, {"HOLD_SHARDS": str(self.hold), "PYTHONPATH": code, "PATH": path})

    @contextlib.contextmanager
    def holding(self, shards: int) -> Iterator[None]:
        """Let each actor start at most this many shards during a block."""
        whole = self.hold.with_suffix(".part")
        whole.write_text(str(shards))
        whole.rename(self.hold)
        try:
            yield
        finally:
            self.hold.unlink()

    def driver(self, job: str, *arguments: str) -> prepared.Driver:
        """Start a job's driver on this machine that joins the head, as `ray job submit` does on the head's machine."""
        return prepared.Driver(job, *arguments, variables={**self.environment, "RAY_ADDRESS": self.address})


@pytest.fixture(scope="package")
def head(s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """One head for all tests; its workers have the keys of the S3 server."""
    with Head(tmp_path_factory.mktemp("head")) as head:
        yield head


@pytest.fixture(scope="package")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared.prepare(tmp_path_factory.mktemp("prepared"), ROWS)


def entrypoint(config: Path, root: "Path | str", *overrides: str) -> list[str]:
    return [sys.executable, "-m", "jobs.augment", str(config), f"root={root}", *overrides]


@pytest.fixture(scope="package")
def undisturbed(config: Path, head: Head) -> Fates:
    """The fates of an undisturbed run, submitted with the documented command."""
    stage = config.parent / "undisturbed/candidates"
    done = head.ray("job", "submit", "--submission-id", "first", "--no-wait", "--", *entrypoint(config, stage.parent))
    assert done.returncode == 0, done.stdout + done.stderr
    job = head.finish("first")
    assert (job["status"], job["driver_exit_code"]) == ("SUCCEEDED", 0), head.logs("first")
    found = prepared.fates(stage)
    assert len(found) == ROWS
    assert len(prepared.attempts(stage)) == SHARDS
    return found
