"""Run the demo under faults: `make chaos`.

    python -m tests.chaos [--seed N] [--no-baseline] [key=value ...]

The demo runs as a job on three raylets that ask for a token. Its root is on an S3 server behind a proxy that fails 5 %
of all requests. Its driver is killed twice and a raylet once. Prints the injected faults and their cost in seconds.
"""

import argparse
import random
import signal
import sys
import tempfile
from pathlib import Path

from humpback_ray.config import load
from humpback_ray.graph import Graph
from humpback_ray.runconfig import RunConfig
from tests import weed
from tests.chaos.play import REPOSITORY, Play, account, fault_proxy, random_kills, verify

STAGES = Graph(load(RunConfig, REPOSITORY / "configs/demo.yaml", ())).until("models/m2")
"""Stages after which something may be killed, with enough work left."""


def main() -> int:
    """Run the demo undisturbed and disturbed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the kills and the faults")
    parser.add_argument("--share", type=float, default=0.05, help="of all requests that get a fault")
    parser.add_argument("--no-baseline", action="store_true", help="do not measure the undisturbed run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys that replace values of the demo")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the processes that were started
    with tempfile.TemporaryDirectory(prefix="chaos-") as name, weed.serving(Path(name)) as variables:
        weed.create_bucket(variables, "chaos")
        command = [sys.executable, "-m", "jobs.pipeline", str(REPOSITORY / "configs/demo.yaml"), *given.overrides]
        quiet_s = None
        if not given.no_baseline:
            quiet_s = Play([*command, "root=s3://chaos/quiet"], variables, say).run()
            say(f"undisturbed: {quiet_s:.0f} s")
        say(f"seed {given.seed}")
        with fault_proxy(variables["AWS_ENDPOINT_URL"], given.share, given.seed, Path(name)) as (endpoint, counts):
            play = Play([*command, "root=s3://chaos/run"], {**variables, "AWS_ENDPOINT_URL": endpoint}, say)
            seconds = play.run(random_kills(["driver", "driver", "raylet"], STAGES, given.seed))
        requests, injected = account(counts)
        verify("s3://chaos/run", variables)
    say(f"disturbed: {seconds:.0f} s, in {play.number} submissions")
    say(f"requests: {requests:,}, faults: {sum(injected.values()):,}")
    say("  " + ", ".join(f"{kind} {count:,}" for kind, count in sorted(injected.items())))
    if quiet_s:
        say(f"lost: {seconds - quiet_s:.0f} s")
    return 0


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
