"""Show how far a run is, from storage alone, even while it is active.

    python -m jobs.status out/demo
    python -m jobs.status s3://bucket/run --json

Exits 0, or 2 if ROOT is not a run.
"""

import argparse
import dataclasses
import json
import sys
import time

from humpback_ray import storage
from humpback_ray.config import ConfigError
from humpback_ray.operate.status import RunStatus, StageStatus, status
from humpback_ray.stages.progress import duration
from jobs.console import Table, console, guarded, say

COLUMNS = ("stage", "state", "done", "rate", "left", "attempts", "failed", "quarantined", "quiet", "requests")


def main(argv: list[str] | None = None) -> int:
    """Show the run at ROOT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="directory or s3:// URI of a run")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)

    def work() -> int:
        try:
            found = status(storage.located(arguments.root))
        except OSError as error:
            raise ConfigError(f"cannot read {arguments.root}: {error}") from error
        if arguments.json:
            say(json.dumps(dataclasses.asdict(found), indent=1))
        else:
            show(found)
        return 0

    return guarded(work)


def show(run: RunStatus) -> None:
    """Print a line for the submission and a line per stage."""
    age = f", {duration(max(time.time() - run.started, 0))} ago" if run.started else ""
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    say(f"{run.root}: submission {run.submission or 'unknown'}{age}; {versions or 'versions unknown'}")
    out = Table(*COLUMNS)
    for column in out.columns[2:]:
        column.justify = "right"
    for stage in run.stages:
        out.add_row(*cells(stage))
    console.print(out, markup=False)
    for stage in run.stages:
        said = [f"held by {stage.holder}" if stage.holder else "", stage.words, stage.waiting]
        if any(said):
            say(f"{stage.name}: {', '.join(words for words in said if words)}")


def cells(stage: StageStatus) -> list[str]:
    """Format a stage's figures for people; a missing figure is empty."""
    share = ""
    if stage.done is not None and stage.total is not None:
        of = "" if stage.state == "done" else f" of {stage.total:,}"
        part = f" ({stage.done / stage.total:.0%})" if of and stage.total else ""
        share = f"{stage.done:,}{of} {stage.unit}{part}"
    return [
        stage.name,
        "reused" if stage.reused else stage.state,
        share,
        f"{stage.per_s:.1f}/s" if stage.per_s else "",
        duration(stage.eta_s) if stage.eta_s is not None else "",
        f"{stage.attempts:,}{f' ({stage.again:,} again)' if stage.again else ''}" if stage.attempts else "",
        f"{stage.failed:,}" if stage.failed else "",
        f"{stage.quarantined:,}" if stage.quarantined else "",
        duration(stage.quiet_s) if stage.quiet_s is not None else "",
        f"{sum(stage.requests.values()):,}" if stage.requests else "",
    ]


if __name__ == "__main__":
    sys.exit(main())
