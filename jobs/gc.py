"""Find files that a run no longer needs; --delete deletes them. Safe while the run is active.

    python -m jobs.gc out/demo
    python -m jobs.gc s3://bucket/run --delete

These are files of attempts that lost, checkpoints of finished models, unfinished uploads, and temporary files of dead
processes. Unknown files are named and left alone. --delete also deletes copies of models on this machine that have not
been used for a week. Exits 0, or 2 if ROOT is not a run.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence

from humpback_ray import storage
from humpback_ray.config import ConfigError
from humpback_ray.operate.gc import Waste, delete, survey
from jobs.console import Table, console, guarded, say

COPIES_S = 7 * 86400.0
"""How long a copy of a model on this machine may stay unused."""


def main(argv: list[str] | None = None) -> int:
    """Survey the run at ROOT, and delete if told to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="directory or s3:// URI of a run")
    parser.add_argument("--delete", action="store_true", help="delete these files; without it nothing changes")
    parser.add_argument(
        "--older-than-hours", type=float, default=24, metavar="N", help="minimum age of temporary files to delete (24)"
    )
    arguments = parser.parse_args(argv)

    def work() -> int:
        hours = arguments.older_than_hours
        if not hours >= 1:
            raise ConfigError(f"--older-than-hours is {hours:g}; less than 1 would abort uploads of live workers")
        try:
            found = survey(storage.located(arguments.root), hours * 3600)
            waste = delete(found.waste) if arguments.delete else found.waste
        except OSError as error:
            raise ConfigError(f"cannot list {arguments.root}: {error}") from error
        if found.unknown:
            first = ", ".join(found.unknown[:3])
            say(f"unknown files, left alone: {len(found.unknown):,}; first: {first}", "yellow")
        show(waste)
        count, size = sum(len(group.files) for group in waste), sum(group.bytes for group in waste)
        done = "deleted" if arguments.delete else "not needed (--delete deletes them)"
        say(f"{done}: {count:,} files, {size:,} bytes")
        if arguments.delete:
            for copy in storage.forget_old_copies(COPIES_S):
                say(f"deleted: {copy}, a copy of a model that has not been used for a week")
        return 0

    return guarded(work)


def show(waste: Sequence[Waste]) -> None:
    """Print a line per stage and reason."""
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for group in waste:
        of = sums[group.stage or "(root)", group.reason]
        of[0] += len(group.files)
        of[1] += group.bytes
    if not sums:
        return
    out = Table("stage", "reason", "files", "bytes")
    for column in out.columns[2:]:
        column.justify = "right"
    for (stage, reason), (files, size) in sums.items():
        out.add_row(stage, reason, f"{files:,}", f"{size:,}")
    console.print(out)


if __name__ == "__main__":
    sys.exit(main())
