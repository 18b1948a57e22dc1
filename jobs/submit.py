"""Submit a run to a cluster, follow its log, and end with the exit code of the run.

    export RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265
    python -m jobs.submit configs/llama-7b.yaml root=s3://bucket/run train.placement.workers=8
    python -m jobs.submit --job curate --submission-id rated-1 --no-wait configs/llama-7b.yaml round=1

Does what `ray job submit --working-dir . -- python -m jobs.pipeline ...` does, after checks that take seconds: it reads
the configuration, counts the size of the upload as Ray does, and asks the cluster for its version with our token. If a
check fails, it prints one line, submits nothing and exits 2. Ctrl-C stops following; the run continues.

Libraries are not checked here: the required extras are printed, and the run checks for them before its first stage.
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
"""Jobs that run stages and so belong on a cluster."""

EXTRA_KEYS = {"train": ("model",), "curate": ("round",), "miniature": ("seeds", "arms")}
"""Keys that a job takes in addition to those of the configuration."""

LOST_S = 120.0
"""How long to retry while a cluster does not answer during following."""


def main(argv: list[str] | None = None) -> int:
    """Submit CONFIG."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file below the working directory; see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys that replace settings of CONFIG")
    parser.add_argument("--address", help="the dashboard's URL; default: RAY_API_SERVER_ADDRESS, then RAY_ADDRESS")
    parser.add_argument("--job", default="pipeline", choices=JOBS, help="the job to run with CONFIG (pipeline)")
    parser.add_argument("--compare", action="store_true", help="for --job curate: rate one sample with several scorers")
    parser.add_argument("--submission-id", metavar="ID", help="default: CONFIG's name, the time and six random digits")
    parser.add_argument("--working-dir", default=".", metavar="DIRECTORY", help="the directory to upload (.)")
    parser.add_argument("--no-wait", action="store_true", help="exit once the run is submitted")
    found = parser.parse_intermixed_args(argv)
    return guarded(lambda: submit(found))


def submit(found: argparse.Namespace) -> int:
    """Check, submit and follow; return the exit code."""
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
            say(f"its nodes need the extras {', '.join(extras)}; the run checks for them before its first stage")
    try:
        client.submit_job(
            entrypoint=shlex.join(command), submission_id=identifier, runtime_env={"working_dir": str(directory)}
        )
    except Exception as error:  # Ray's client and HTTP raise many kinds
        raise ConfigError(f"{api} did not accept {identifier}: {one_line(_reason(error))}") from error
    if found.no_wait:
        say(f"submitted; ray job logs -f {identifier}; ray job stop {identifier}")
        return 0
    return follow(client, identifier)


def relative_to(directory: Path, config: str) -> str:
    """Return the path of CONFIG in the uploaded directory.

    Raises:
        ConfigError: the directory does not exist, or CONFIG is outside of it.
    """
    if not directory.is_dir():
        raise ConfigError(f"--working-dir is {directory}, which is not a directory")
    if not Path(config).is_file():
        raise ConfigError(f"cannot read the configuration {config}: no such file")
    try:
        return str(Path(config).resolve().relative_to(directory.resolve()))
    except ValueError as error:
        raise ConfigError(
            f"{config} is outside of {directory.resolve()}, the directory to upload; move it there, or set "
            "--working-dir to its folder"
        ) from error


def check_size(directory: Path, config: str) -> int:
    """Return how many bytes of a directory Ray would upload, by Ray's own rules for ignored files.

    Raises:
        ConfigError: the upload is larger than the dashboard takes (the message names the largest parts), or CONFIG is
            ignored.
    """
    sizes = uploaded(directory)
    total, limit = sum(sizes.values()), ray_internals.upload_limit_bytes()
    if total > limit:
        folders: Counter[str] = Counter()
        for name, size in sizes.items():
            folders["/".join(Path(name).parts[:2])] += size
        largest = ", ".join(f"{name} {size / 2**20:,.0f} MiB" for name, size in folders.most_common(3))
        raise ConfigError(
            f"{directory.resolve()} has {total / 2**20:,.0f} MiB to upload, but a cluster takes {limit / 2**20:,.0f}; "
            f"largest: {largest}; add files that the run does not need to .gitignore or .rayignore"
        )
    if config not in sizes:
        raise ConfigError(f"{config} would not be uploaded: .gitignore or .rayignore names it")
    return total


def uploaded(directory: Path) -> dict[str, int]:
    """Return the name and bytes of each file of a directory that Ray would upload, by its ignore files."""
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
    """Return Ray's client, with a timeout on its requests, for an address that has answered before."""
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": 60.0, **more})

    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ["RAY_API_SERVER_ADDRESS"] = api  # Ray prefers it to the address that it is given
    return Client(api)


def _reason(error: Exception) -> str:
    """Return the message of a refusal by the Jobs API, without the server's traceback."""
    said = str(error).strip()
    if "already exists" in said:
        return "a submission with this id already exists; an id can be used once, so choose another"
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1] if "Traceback" in said else (lines or [type(error).__name__])[0]


def follow(client: "JobSubmissionClient", identifier: str) -> int:
    """Print a run's log until the run ends; return its exit code.

    Ctrl-C ends this process at once, with 130: it holds nothing, and Ray's client may treat an interrupt as a lost
    connection, or wait for a busy server.
    """

    def leave(*_: object) -> None:
        say(f"no longer following; the run continues: ray job logs -f {identifier}; ray job stop {identifier}")
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
        except Exception as error:  # noqa: BLE001  Ray's client, HTTP and websockets raise many kinds
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > LOST_S:
                say(
                    f"error: the cluster has not answered for {LOST_S:.0f} s ({one_line(error)}); {identifier} may "
                    f"still be running: ray job logs -f {identifier}",
                    "red",
                )
                return 1
        time.sleep(1)


async def _print_log(client: "JobSubmissionClient", identifier: str, shown: int) -> int:
    """Print a log's new text until it ends or the connection is lost; return the characters printed so far."""
    seen = 0
    with contextlib.suppress(RuntimeError):  # the connection is lost; the caller asks for the log again
        async for text in client.tail_job_logs(identifier):
            new = text[max(shown - seen, 0) :]
            seen += len(text)
            if new:
                print(new, end="", flush=True)
                shown = max(shown, seen)
    return shown


CODES: Mapping[str, int] = {"SUCCEEDED": 0, "STOPPED": 143}
"""Exit codes of runs whose driver left none, by Ray's status."""


def ended(identifier: str, status: str, code: int | None, message: str | None) -> int:
    """Return the exit code of a run that has ended; print why, if its log may not say."""
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
