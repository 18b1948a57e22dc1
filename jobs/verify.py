"""Prove from storage alone that a run lost no row, holds none twice, and that its files are what it recorded.

    python -m jobs.verify out/demo

Exits 1 at the first difference, naming it.
"""

import argparse
import sys

from humpback_ray.verify import Difference, verify
from jobs.console import console


def main(argv: list[str] | None = None) -> int:
    """Verify the run at ROOT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="directory or s3:// URI of a run")
    root = parser.parse_args(argv).root
    try:
        for line in verify(root):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    except Difference as difference:
        console.print(f"difference: {difference}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    console.print(f"verified: {root}", style="green", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
