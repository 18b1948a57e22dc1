"""Thirty-two writers on one shard, round after round, while storage fails and writers die: one commit, nothing lost.

`HUMPBACK_RACE_ROUNDS` sets the number of rounds; `make chaos` runs 200.
"""

import errno
import os
import random
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from humpback_ray import storage
from humpback_ray.records import PAIR
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.ledger import Attempt, Ledger
from humpback_ray.storage import steps
from tests.conftest import storage_at

WRITERS = 32
ROUNDS = int(os.environ.get("HUMPBACK_RACE_ROUNDS", "3"))
FAULTS_SHARE = 0.05


class Death(BaseException):
    """A writer's process ends here; nothing of it runs afterward."""


@pytest.fixture(scope="module")
def faulty_endpoint(s3_server: str, s3_bucket: str) -> Iterator[str]:
    """A proxy in its own process, so it does not compete with the writers for one interpreter."""
    command = [sys.executable, "-m", "tests.faults.proxy", "--target", s3_server]
    command += ["--share", str(FAULTS_SHARE), "--slow-s", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout
        endpoint = process.stdout.readline().strip()
        with storage_at(endpoint):
            yield endpoint
        process.terminate()


def rows_of(shard: str, attempt: int) -> pa.Table:
    row = {"id": f"{shard} by {attempt}", "instruction": "x", "response": "y", "source": "seed"}
    return pa.Table.from_pylist([{**row, "score": None, "drop_reason": None}], schema=PAIR)


def begun(ledger: Ledger, shard: str, number: int) -> Attempt:
    """An attempt begun without faults: the race is about its end, and 32 starts cost more than all the rest."""
    return Attempt(ledger, shard, number).__enter__()


def race(ledger: Ledger, shard: str, pool: ThreadPoolExecutor) -> list[Commit]:
    """Let all writers write one shard at once; return the commits that the surviving writers got back."""
    together = threading.Barrier(WRITERS)

    def write(number: int) -> Commit | None:
        attempt, rows = begun(ledger, shard, number), rows_of(shard, number)
        together.wait(60)
        try:
            return attempt.write(rows)
        except (Death, OSError):
            return None

    return [told for told in pool.map(write, range(1, WRITERS + 1)) if told]


def run_rounds(ledger: Ledger) -> list[int]:
    """Race `ROUNDS` times, check what readers see, and return how many writers survived each round."""
    shards = [f"{number:06d}" for number in range(ROUNDS)]
    with ThreadPoolExecutor(WRITERS) as pool:
        told = {shard: race(ledger, shard, pool) for shard in shards}
        commits = dict(zip(shards, pool.map(ledger.commit_of, shards), strict=True))
    assert ledger.committed() == set(shards)
    stored = {file.name: file.bytes for file in storage.listing(ledger.uri)}
    for shard, commit in commits.items():
        assert commit is not None
        assert all(view == commit for view in told[shard]), f"shard {shard}: writers were told of different commits"
        [file] = commit.files
        assert stored.get(file.name) == file.bytes, f"shard {shard}: the file that its commit names is lost"
        assert storage.read_table(ledger.at(file.name)).equals(rows_of(shard, commit.attempt))
    return [len(views) for views in told.values()]


@pytest.mark.s3
@pytest.mark.timeout(1800)
def test_on_s3_with_faults_all_writers_survive_and_agree_and_only_the_winners_file_stays(
    faulty_endpoint: str, s3_bucket: str
) -> None:
    ledger = Ledger(storage.join(s3_bucket, uuid.uuid4().hex), "race")
    assert run_rounds(ledger) == [WRITERS] * ROUNDS
    assert len(storage.list_names(ledger.at("data"))) == ROUNDS


def test_on_a_local_disk_with_faults_and_deaths_the_survivors_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "hook", dies_sometimes)
    monkeypatch.setattr(os, "link", fails_sometimes(os.link))
    ledger = Ledger(str(tmp_path), "race")
    living = run_rounds(ledger)
    assert 0 < sum(living) < WRITERS * ROUNDS, "some died and some survived"


def dies_sometimes(step: str) -> None:
    if random.random() < FAULTS_SHARE:
        raise Death(step)


def fails_sometimes(link: Callable[[str, str], None]) -> Callable[[str, str], None]:
    """`link` as on a network file system: the reply is lost before the link is made, or after."""

    def failing(source: str, target: str) -> None:
        chance = random.random()
        if chance < FAULTS_SHARE / 2:
            raise OSError(errno.EIO, "not made")
        link(source, target)
        if chance < FAULTS_SHARE:
            raise OSError(errno.EIO, "made, though")

    return failing


@pytest.mark.parametrize("where", ["local", pytest.param("s3", marks=pytest.mark.s3)])
def test_attempts_that_begin_at_once_have_different_numbers(
    request: pytest.FixtureRequest, tmp_path: Path, where: str
) -> None:
    root = str(tmp_path)
    if where == "s3":
        request.getfixturevalue("faulty_endpoint")
        root = storage.join(request.getfixturevalue("s3_bucket"), uuid.uuid4().hex)
    ledger = Ledger(root, "race")
    with ThreadPoolExecutor(8) as pool:
        numbers = [attempt.number for attempt in pool.map(lambda _: ledger.begin("000000"), range(8))]
    assert sorted(numbers) == list(range(1, 9))
    assert ledger.attempts_made() == {"000000": 8}
