"""A cluster that cannot be reached or refuses the token or the submission: one line, exit code 2, within seconds.

The head is real. Cases with the same environment share a process, since Ray loads a token once.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.jobs import prepared
from tests.jobs.conftest import ROWS, Fates, Head
from tests.jobs.heads import wait_for
from tests.weed import free_port

pytestmark = pytest.mark.ray

RUN = """
import contextlib, io, json, os, runpy, sys, time
for variables, (job, *arguments) in json.loads(sys.argv[1]):
    os.environ.update(variables)
    sys.argv, begun, code = [job, *arguments], time.monotonic(), None
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try: runpy.run_module(f'jobs.{job}', run_name='__main__')
        except SystemExit as end: code = end.code
    print(json.dumps((code, time.monotonic() - begun, out.getvalue())), flush=True)
    for name in variables: del os.environ[name]
"""


class Case(NamedTuple):
    """A command and its expected output."""

    who: str
    """The environment: with the head's token, with another token, or without one."""
    job: str
    address: str
    said: str
    more: Sequence[str] = ()


DEAD = "127.0.0.1:{dead}"
CASES = {
    "a driver, a port without a server": Case("right", "pipeline", DEAD, "no Ray answers at " + DEAD),
    "a driver, an unknown host name": Case("right", "pipeline", "nobody.invalid:6379", "cannot be looked up"),
    "a driver, a dashboard": Case("right", "pipeline", "{api}", "a dashboard, but a driver joins HOST:6379"),
    "a driver, a dashboard's port": Case("right", "pipeline", "{api_port}", "no Ray answers at {api_port}"),
    "a driver, the Ray client": Case("right", "pipeline", "ray://127.0.0.1:10001", "python -m jobs.submit --address"),
    "a driver, no address at all": Case("right", "pipeline", "localhost", "which is not HOST:PORT"),
    "a driver, another token": Case("wrong", "pipeline", "{gcs}", "refuses our token"),
    "a driver, no token": Case("without", "pipeline", "{gcs}", "export RAY_AUTH_MODE=token"),
    "submit, a port without a server": Case("right", "submit", "http://" + DEAD, "no Ray answers at http://" + DEAD),
    "submit, a GCS": Case("right", "submit", "{gcs}", "but jobs are submitted to a dashboard: http://HOST:8265"),
    "submit, a GCS as a dashboard": Case("right", "submit", "http://{gcs}", "not like Ray's dashboard"),
    "submit, another token": Case("wrong", "submit", "{api}", "refuses our token; export RAY_AUTH_MODE=token"),
    "submit, no token": Case("without", "submit", "{api}", "asks for a token, but none was sent"),
    "submit, an unknown key": Case("right", "submit", "{api}", "did you mean augment?", ["augmnt.placement.x=1"]),
    "submit, an odd id": Case("right", "submit", "{api}", "it takes letters, digits", ["--submission-id", "a b"]),
    "submit, a configuration elsewhere": Case("right", "submit", "{api}", "is outside of", ["--working-dir", "jobs"]),
}


@pytest.fixture(scope="module")
def answers(head: Head, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, float, str, str, Path]]:
    """Exit code, seconds, output, expected output and root of every case."""
    places = {"gcs": head.address, "api": head.api, "api_port": head.api.removeprefix("http://"), "dead": free_port()}
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    whose = {"right": head.environment, "wrong": {**plain, **token}, "without": plain}
    found, folder = {}, tmp_path_factory.mktemp("reach")
    processes = {}
    for who, environment in whose.items():
        names = [name for name, case in CASES.items() if case.who == who]
        commands = []
        for name in names:
            case = CASES[name]
            variable = "RAY_API_SERVER_ADDRESS" if case.job == "submit" else "RAY_ADDRESS"
            command = [case.job, "configs/demo.yaml", f"root={folder / name}", *case.more]
            commands.append(({variable: case.address.format(**places)}, command))
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, json.dumps(commands)], cwd=prepared.REPOSITORY, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        processes[who] = names, process
    for names, process in processes.values():
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, out + errors
        assert not errors, errors
        for name, line in zip(names, out.splitlines(), strict=True):
            found[name] = (*json.loads(line), CASES[name].said.format(**places), folder / name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_an_unreachable_cluster_is_one_line_and_exit_code_2_within_seconds(
    answers: dict[str, tuple[int, float, str, str, Path]], name: str
) -> None:
    code, seconds, words, said, root = answers[name]
    assert code == 2, words
    assert words.startswith("error: ")
    assert words.count("\n") == 1
    assert said in words
    assert seconds < 30
    assert not root.exists(), "nothing was started"


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.chaos
def test_a_server_that_never_answers_is_given_up(head: Head, silent: str, tmp_path: Path) -> None:
    begun = time.monotonic()
    for variable, address, job in (
        ("RAY_ADDRESS", silent, "pipeline"), ("RAY_API_SERVER_ADDRESS", f"http://{silent}", "submit"),
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", f"jobs.{job}", "configs/demo.yaml", f"root={tmp_path}"], cwd=prepared.REPOSITORY,
            env={**head.environment, variable: address}, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 2, done.stdout + done.stderr
        assert f"no Ray answers at {address}" in done.stdout
        assert (done.stdout + done.stderr).count("\n") == 1
        assert time.monotonic() - begun < 30
        begun = time.monotonic()


@pytest.fixture(scope="module")
def uploaded(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory: the code, and the prepared configuration."""
    folder = tmp_path_factory.mktemp("uploaded")
    for name in ("humpback_ray", "jobs"):
        shutil.copytree(prepared.REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(config, folder / "mine.yaml")
    return folder


def submitted(head: Head, uploaded: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start `jobs.submit` of the prepared run."""
    command = [sys.executable, "-m", "jobs.submit", "--working-dir", str(uploaded), "--job", "augment"]
    return subprocess.Popen(
        [*command, "--address", head.api, str(uploaded / "mine.yaml"), *arguments], cwd=prepared.REPOSITORY,
        env=head.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_the_log_is_followed_and_the_exit_code_is_the_runs(config: Path, head: Head, uploaded: Path) -> None:
    head.submit("true", "taken")
    runs = {
        "refused": submitted(head, uploaded, f"root={config.parent}/refused", "reuse.corpus=/nowhere"),
        "taken": submitted(head, uploaded, "--submission-id", "taken", f"root={config.parent}/refused"),
    }
    said = {name: process.communicate(timeout=180)[0] for name, process in runs.items()}
    assert {name: process.returncode for name, process in runs.items()} == {"refused": 2, "taken": 2}, said
    assert "error: reuse.corpus: /nowhere is not a finished stage" in said["refused"]
    (identifier,) = {word for word in said["refused"].split() if word.startswith("mine-20")} & {
        job["submission_id"] for job in head.ask("/api/jobs/")
    }
    assert head.job(identifier)["driver_exit_code"] == 2
    assert "did not accept taken: a submission with this id already exists" in said["taken"]
    assert "Traceback" not in "".join(said.values())


@pytest.mark.slow
@pytest.mark.chaos
def test_a_finished_run_is_followed_to_exit_code_0(
    config: Path, head: Head, undisturbed: Fates, uploaded: Path
) -> None:
    assert len(undisturbed) == ROWS
    process = submitted(head, uploaded, "--submission-id", "finished", f"root={config.parent}/undisturbed")
    said = process.communicate(timeout=180)[0]
    assert process.returncode == 0, said
    assert "candidates" in said
    assert said.endswith("finished: succeeded, exit code 0\n")


@pytest.mark.slow
@pytest.mark.chaos
def test_exit_codes_that_need_a_person_stop_the_job_instead_of_a_costly_retry(config: Path, head: Head) -> None:
    """KubeRay creates a new cluster for a failed job, but not for a stopped one."""
    command = [sys.executable, "-m", "jobs.augment", str(config), "augment.recipe.engin=1"]
    body = {"entrypoint": " ".join(command), "submission_id": "for-a-person"}
    head.ask("/api/jobs/", {**body, "runtime_env": {"env_vars": {"HUMPBACK_STOP_CODES": "2,3,4"}}})
    job = head.finish("for-a-person")
    assert job["status"] == "STOPPED", job
    said = head.logs("for-a-person")
    assert "error: unknown key augment.recipe.engin; did you mean augment.recipe.engine?" in said
    assert "exit code 2 needs a person: for-a-person stops itself" in said
    assert "resumes from here" not in said


@pytest.mark.slow
@pytest.mark.chaos
def test_ctrl_c_stops_following_but_not_the_run_and_a_stopped_run_is_143(
    config: Path, head: Head, uploaded: Path
) -> None:
    stage = config.parent / "followed/candidates"
    with head.holding(3):
        first = submitted(head, uploaded, "--submission-id", "followed", f"root={stage.parent}")
        wait_for(lambda: prepared.commits(stage) == 3, "3 commits", 120)
        first.send_signal(2)
        said = first.communicate(timeout=30)[0]
        assert first.returncode == 130, said
        assert "no longer following; the run continues: ray job logs -f followed" in said
        assert head.job("followed")["status"] == "RUNNING"
        head.stop("followed")
        head.finish("followed")
    second = submitted(head, uploaded, "--submission-id", "followed-2", f"root={stage.parent}")
    said = second.communicate(timeout=180)[0]
    assert second.returncode == 0, said
    with head.holding(3):
        other = config.parent / "followed-3/candidates"
        third = submitted(head, uploaded, "--submission-id", "followed-3", f"root={other.parent}")
        wait_for(lambda: prepared.commits(other) == 3, "3 commits", 120)
        head.stop("followed-3")
        said = third.communicate(timeout=60)[0]
    assert third.returncode == 143, said
    assert "followed-3: stopped, exit code 143" in said
