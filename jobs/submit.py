"""Submit a run to a cluster, follow its log, and end with the exit code of the run.

    export RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265
    python -m jobs.submit configs/llama-7b.yaml root=s3://bucket/run train.placement.workers=8
    python -m jobs.submit --job curate --submission-id rated-1 --no-wait configs/llama-7b.yaml round=1

What `ray job submit --working-dir . -- python -m jobs.pipeline ...` does, and before it what costs seconds: the
configuration is read, the size of the upload counted as Ray counts it, the cluster asked for its version with our
token. What is wrong is one line and exit code 2, and nothing was submitted. Ctrl-C stops following; the run goes on.

Libraries are the cluster's business: they are named here, and the run looks for them before its first stage.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import re
import secrets
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from humpback_ray.config import ConfigError, load
from humpback_ray.graph import Graph
from humpback_ray.runconfig import RunConfig
from humpback_ray.stages import ray_internals
from jobs.cluster import api_of, ask_api, check_version, one_line
from jobs.console import guarded, say

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

JOBS = ("pipeline", "corpus", "seed", "train", "augment", "curate", "evaluate", "miniature")
"""Jobs that run stages, and so belong on a cluster."""

EXTRA_KEYS = {"train": ("model",), "curate": ("round",), "miniature": ("seeds", "arms")}
"""Keys that a job takes beside those of the configuration."""

LOST_S = 120.0
"""How long a cluster that answers no more is asked again while a run is followed."""


def main(argv: list[str] | None = None) -> int:
    """Submit CONFIG."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file below the working directory; see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys that replace values of CONFIG")
    parser.add_argument("--address", help="of the dashboard; default: RAY_API_SERVER_ADDRESS, then RAY_ADDRESS")
    parser.add_argument("--job", default="pipeline", choices=JOBS, help="what is run of CONFIG (pipeline)")
    parser.add_argument("--compare", action="store_true", help="for --job curate: rate one sample with several scorers")
    parser.add_argument("--submission-id", metavar="ID", help="default: made of CONFIG's name and the time")
    parser.add_argument("--working-dir", default=".", metavar="DIRECTORY", help="what is uploaded (.)")
    parser.add_argument("--no-wait", action="store_true", help="end once the run is submitted")
    found = parser.parse_intermixed_args(argv)
    return guarded(lambda: submit(found))


def submit(found: argparse.Namespace) -> int:
    """Check, submit and follow; returns the exit code."""
    api = api_of(found.address)
    directory = Path(found.working_dir)
    config = relative_to(directory, found.config)
    mine = EXTRA_KEYS.get(found.job, ())
    settings = [text for text in found.overrides if text.partition("=")[0] not in mine]
    graph = Graph(load(RunConfig, found.config, settings))
    identifier = found.submission_id or f"{Path(config).stem}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    if not found.submission_id:
        identifier += f"-{secrets.token_hex(3)}"
    elif not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,127}", identifier):
        raise ConfigError(f"--submission-id is {identifier!r}; it takes letters, digits, dots, dashes and underscores")
    size = check_size(directory, config)
    check_version(ask_api(api).get("ray_version", ""), f"the cluster at {api}")
    command = ["python", "-m", f"jobs.{found.job}", config, *found.overrides, *(["--compare"] if found.compare else [])]
    client = client_of(api)
    say(
        f"submitting {identifier} to {api}: {shlex.join(command)}, with {size / 2**20:.1f} MiB of {directory.resolve()}"
    )
    if needed := graph.packages(graph.until(None)):
        extras = dict.fromkeys(package.extra or package.project for _, package in needed if package.extra)
        if extras:
            say(f"its nodes need the extras {', '.join(extras)}, which the run looks for before its first stage")
    try:
        client.submit_job(
            entrypoint=shlex.join(command), submission_id=identifier, runtime_env={"working_dir": str(directory)}
        )
    except Exception as error:  # whatever Ray's client and HTTP come up with
        raise ConfigError(f"{api} did not take {identifier}: {one_line(_reason(error))}") from error
    if found.no_wait:
        say(f"submitted; ray job logs -f {identifier}; ray job stop {identifier}")
        return 0
    return follow(client, identifier)


def relative_to(directory: Path, config: str) -> str:
    """Return the path of CONFIG in the uploaded directory.

    Raises:
        ConfigError: there is no such directory, or CONFIG lies outside of it.
    """
    if not directory.is_dir():
        raise ConfigError(f"--working-dir is {directory}, which is no directory")
    if not Path(config).is_file():
        raise ConfigError(f"cannot read the configuration {config}: no such file")
    try:
        return str(Path(config).resolve().relative_to(directory.resolve()))
    except ValueError as error:
        raise ConfigError(
            f"{config} lies outside of {directory.resolve()}, which is what is uploaded; move it there, or name its "
            "folder as --working-dir"
        ) from error


def check_size(directory: Path, config: str) -> int:
    """Return how many bytes Ray would upload of a directory, by Ray's own rules of what stays at home.

    Raises:
        ConfigError: more than the dashboard takes, naming what is largest; or CONFIG stays at home.
    """
    sizes = uploaded(directory)
    total, limit = sum(sizes.values()), ray_internals.upload_limit_bytes()
    if total > limit:
        folders: Counter[str] = Counter()
        for name, size in sizes.items():
            folders["/".join(Path(name).parts[:2])] += size
        largest = ", ".join(f"{name} {size / 2**20:,.0f} MiB" for name, size in folders.most_common(3))
        raise ConfigError(
            f"{directory.resolve()} has {total / 2**20:,.0f} MiB to upload, and a cluster takes {limit / 2**20:,.0f}; "
            f"largest: {largest}; name in .gitignore or .rayignore what the run reads from elsewhere"
        )
    if config not in sizes:
        raise ConfigError(f"{config} would stay at home: .gitignore or .rayignore names it")
    return total


def uploaded(directory: Path) -> dict[str, int]:
    """Return name and bytes of each file that Ray would upload of a directory: what its ignore files leave."""
    root, sizes = directory.absolute(), {}

    def count(path: Path) -> None:
        if path.is_file():
            sizes[str(path.relative_to(root))] = path.stat().st_size

    ray_internals.walk_upload(root, count, os.environ, _silent())
    return sizes


def _silent() -> logging.Logger:
    logger = logging.getLogger("jobs.submit.ray")
    logger.disabled = True
    return logger


def client_of(api: str) -> "JobSubmissionClient":
    """Return Ray's client, whose requests end after a while, for an address that was asked before."""
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": 60.0, **more})

    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ["RAY_API_SERVER_ADDRESS"] = api  # which Ray puts before any address that it is given
    return Client(api)


def _reason(error: Exception) -> str:
    """Return what a refusal of the Jobs API says, without the traceback of the server that it carries."""
    said = str(error).strip()
    if "already exists" in said:
        return "a submission of this id exists already; ids are taken once, so choose another"
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1] if "Traceback" in said else (lines or [type(error).__name__])[0]


def follow(client: "JobSubmissionClient", identifier: str) -> int:
    """Print a run's log until the run ends; returns its exit code.

    Ctrl-C ends this process at once, with 130: it holds nothing, and Ray's client may take an interrupt for a lost
    connection, or wait for a server that is busy.
    """

    def leave(*_: object) -> None:
        say(f"no longer following; the run goes on: ray job logs -f {identifier}; ray job stop {identifier}")
        sys.stdout.flush()
        os._exit(130)

    signal.signal(signal.SIGINT, leave)
    shown = 0
    lost_since: float | None = None
    while True:
        try:
            shown = asyncio.run(_print_log(client, identifier, shown))
            info = client.get_job_info(identifier)
            lost_since = None
            if info.status.is_terminal():
                return ended(identifier, info.status.value, info.driver_exit_code, info.message)
        except Exception as error:  # noqa: BLE001  whatever Ray's client, HTTP and websockets come up with
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > LOST_S:
                say(
                    f"error: the cluster does not answer for {LOST_S:.0f} s ({one_line(error)}); {identifier} may go "
                    f"on: ray job logs -f {identifier}",
                    "red",
                )
                return 1
        time.sleep(1)


async def _print_log(client: "JobSubmissionClient", identifier: str, shown: int) -> int:
    """Print what is new of a log until its end or the loss of the connection; returns the characters printed so far."""
    seen = 0
    with contextlib.suppress(RuntimeError):  # the connection is lost; the log is asked for once more
        async for text in client.tail_job_logs(identifier):
            new = text[max(shown - seen, 0) :]
            seen += len(text)
            if new:
                print(new, end="", flush=True)
                shown = max(shown, seen)
    return shown


CODES: Mapping[str, int] = {"SUCCEEDED": 0, "STOPPED": 143}
"""Exit codes of runs whose driver left none, by Ray's word for how they ended."""


def ended(identifier: str, status: str, code: int | None, message: str | None) -> int:
    """Return the exit code of a run that has ended, and say why where its log may not."""
    if code is None or (status != "FAILED" and status in CODES):
        code = CODES.get(status, 1)
    if code < 0:  # ended by a signal
        code = 128 - code
    if status == "FAILED" and code not in range(1, 5):
        say(f"{identifier} failed: {one_line(message or 'Ray does not say why')}", "red")
    say(f"{identifier}: {status.lower()}, exit code {code}")
    return code


if __name__ == "__main__":
    import sys

    sys.exit(main())
