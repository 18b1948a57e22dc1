"""Predict an instruction for every corpus segment; bring `<root>/candidates` and the stages before it up to date.

    ray job submit --working-dir . -- python -m jobs.augment CONFIG augment.placement.max_replicas=16

Safe to submit again after a crash.
"""

import sys

from jobs.console import run_until

if __name__ == "__main__":
    sys.exit(run_until(None, str(__doc__), lambda found, config: "candidates"))
