"""Prove from storage alone that a run lost no row, has no row twice, and that its files match its records.

    python -m jobs.verify out/demo

Exits 0 if everything was proven; 1 at the first difference, which it names; 2 if storage cannot be read; 5 if there is
no difference but some checks could not be made, because input files are missing or another version read them. It lists
those checks.
"""

import argparse
import sys

import pyarrow as pa

from humpback_ray import storage
from humpback_ray.operate.verify import Difference, verify
from jobs.console import say

UNPROVEN = 5


def main(argv: list[str] | None = None) -> int:
    """Verify the run at ROOT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="directory or s3:// URI of a run")
    pa.set_memory_pool(pa.system_memory_pool())  # returns more freed memory than Arrow's default pool does
    try:
        root = storage.located(parser.parse_args(argv).root)
        unproven: list[str] = []
        for line in verify(root, unproven):
            say(line)
    except Difference as difference:
        say(f"difference: {difference}", "red")
        return 1
    except OSError as error:
        say(f"error: cannot read: {error}", "red")
        return 2
    for line in unproven:
        say(f"not checked: {line}", "yellow")
    if unproven:
        say(f"no difference, but {len(unproven)} checks could not be made: {root}", "yellow")
        return UNPROVEN
    say(f"verified: {root}", "green")
    return 0


if __name__ == "__main__":
    sys.exit(main())
