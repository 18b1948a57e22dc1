"""A run as a job on three raylets, with drivers and a raylet killed on the way, and a count of storage faults.

The head takes no work and the two others have two CPUs each, so one of them is enough. A killed driver's job is
submitted again and a killed raylet is replaced. Everything that is started here is ended here.
"""

import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.jobs.heads import ENDED, Cluster, descendants

REPOSITORY = Path(__file__).parents[2]
CPUS = 2
LIMIT_S = 1800


@dataclass(frozen=True)
class Kill:
    """What to kill, and when."""

    what: str
    """driver or raylet"""
    after: str
    """The stage that the active driver must have finished."""
    wait_s: float = 0.0


def random_kills(what: Sequence[str], stages: Sequence[str], seed: int) -> list[Kill]:
    """Spread kills over a run: each near the beginning of a different stage."""
    chance = random.Random(seed)
    chosen = sorted(chance.sample(range(len(stages)), len(what)))
    shuffled = chance.sample(what, len(what))
    return [Kill(shuffled[i], stages[stage], chance.uniform(0, 10)) for i, stage in enumerate(chosen)]


class Play:
    """One run on its own cluster.

    Args:
        command: the job's entrypoint.
        variables: environment of the nodes.
        say: receives a line for every kill.
    """

    def __init__(
        self, command: Sequence[str], variables: Mapping[str, str], say: Callable[[str], None] = print
    ) -> None:
        self.command, self.variables, self.say = shlex.join(command), variables, say
        self.number = 0

    def run(self, kills: Sequence[Kill] = ()) -> float:
        """Submit it until it is done, with kills on the way; return its seconds.

        Raises:
            AssertionError: it failed, took too long, or finished before all kills.
        """
        with Cluster(cpus=0, variables=self.variables) as self.cluster:
            for _ in range(2):
                self.cluster.add(CPUS)
            self.since = time.monotonic()
            self._submit()
            for kill in kills:
                self._wait(lambda kill=kill: self._driver() and f"{kill.after}: done" in self._log())
                time.sleep(kill.wait_s)
                driver = self._driver()
                assert driver, f"it was done before the {kill.what} was killed\n{self._words()}"
                self.say(f"after {self._seconds():.0f} s: {kill.what} killed; it had said {self._words(1)[:100]}")
                self._lose_driver(driver) if kill.what == "driver" else self._lose_raylet()
            self._wait(lambda: False)
            assert self._job()["driver_exit_code"] == 0, self._words()
            return self._seconds()

    def _lose_driver(self, process: int) -> None:
        os.kill(process, signal.SIGKILL)
        self._wait(lambda: False)
        self._submit()

    def _lose_raylet(self) -> None:
        """Kill the raylet of the busier node, and add another."""
        busier = max(self.cluster.nodes[1:], key=lambda node: len(descendants(node.process)))
        next(process for process in descendants(busier.process) if process.name() == "raylet").kill()
        self.cluster.add(CPUS)

    def _submit(self) -> None:
        self.number += 1
        self.cluster.submit(self.command, f"chaos-{self.number}")

    def _job(self) -> dict[str, Any]:
        return self.cluster.job(f"chaos-{self.number}")

    def _driver(self) -> int | None:
        """Return the process id of the active driver, if any."""
        job = self._job()
        return int(job["driver_info"]["pid"]) if job["driver_info"] and job["status"] not in ENDED else None

    def _seconds(self) -> float:
        return time.monotonic() - self.since

    def _wait(self, until: Callable[[], object]) -> None:
        """Wait for a condition, or for the end of the job."""
        while self._job()["status"] not in ENDED and not until():
            assert self._seconds() < LIMIT_S, f"it is not done after {LIMIT_S} s\n{self._words()}"
            time.sleep(0.2)

    def _log(self) -> str:
        return self.cluster.logs(f"chaos-{self.number}")

    def _words(self, lines: int = 60) -> str:
        return "\n".join(self._log().splitlines()[-lines:])


@contextlib.contextmanager
def fault_proxy(target: str, share: float, seed: int, folder: Path) -> Iterator[tuple[str, Path]]:
    """Run the proxy; yield its endpoint and the file with its counts."""
    counts = folder / "faults.json"
    command = [sys.executable, "-m", "tests.faults.proxy", f"--target={target}", f"--share={share}", f"--seed={seed}"]
    with subprocess.Popen([*command, f"--state={counts}"], stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout
        try:
            yield proxy.stdout.readline().strip(), counts
        finally:
            proxy.terminate()


def verify(root: str, variables: Mapping[str, str]) -> None:
    """Run `jobs.verify` without the proxy."""
    command = [sys.executable, "-m", "jobs.verify", root]
    subprocess.run(command, env={**os.environ, **variables}, cwd=REPOSITORY, check=True)


def account(counts: Path) -> tuple[int, dict[str, int]]:
    """Return the number of requests to a proxy that has ended, and of each fault."""
    value = json.loads(counts.read_text())
    return sum(value["requests"].values()), value["injected"]
