"""Run everything that is not done yet: web corpus and seed pairs to M_2 and a report.

    python -m jobs.pipeline configs/demo.yaml root=out/mine
    ray job submit --working-dir . -- python -m jobs.pipeline configs/demo.yaml root=s3://bucket/run

Safe to submit again after a crash: finished stages cost one read, a stage in the middle goes on from its commits.
"""

import sys

from jobs.console import run_until

if __name__ == "__main__":
    sys.exit(run_until(None, str(__doc__), lambda found, config: None))
