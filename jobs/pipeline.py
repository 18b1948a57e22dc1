"""Run every stage that is not done yet: from web corpus and seed pairs to M_2 and a report.

    python -m jobs.pipeline configs/demo.yaml root=out/mine
    ray job submit --working-dir . -- python -m jobs.pipeline configs/demo.yaml root=s3://bucket/run

    python -m jobs.pipeline configs/llama-7b.yaml pilot=0.001          # a share of it, to measure rates for jobs.plan
    python -m jobs.pipeline configs/llama-7b.yaml max_dollars=4000     # stops there; a higher limit resumes it

Safe to submit again after a crash: a finished stage costs one read, an unfinished one resumes from its commits.
"""

import sys

from jobs.console import run_until

if __name__ == "__main__":
    sys.exit(run_until(None, str(__doc__), lambda found, config: None))
