"""Collect the human-written seed pairs; bring `<root>/seed` up to date.

python -m jobs.seed configs/demo.yaml 'seed.recipe.inputs=[trees.jsonl]'
"""

import sys

from jobs.console import run_until

if __name__ == "__main__":
    sys.exit(run_until(None, str(__doc__), lambda found, config: "seed"))
