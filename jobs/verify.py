"""Prove from storage alone that a run lost no row, holds none twice, and that its files are what it recorded.

    python -m jobs.verify out/demo

Exits 1 at the first difference, naming it.
"""

import argparse
import sys

from humpback_ray import storage
from humpback_ray.verify import Difference, verify
from jobs.console import say


def main(argv: list[str] | None = None) -> int:
    """Verify the run at ROOT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="directory or s3:// URI of a run")
    try:
        root = storage.located(parser.parse_args(argv).root)
        for line in verify(root):
            say(line)
    except Difference as difference:
        say(f"difference: {difference}", "red")
        return 1
    except OSError as error:
        say(f"error: cannot read: {error}", "red")
        return 2
    say(f"verified: {root}", "green")
    return 0


if __name__ == "__main__":
    sys.exit(main())
