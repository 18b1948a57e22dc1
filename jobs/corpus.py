"""Cut web pages into segments and remove duplicates; bring `<root>/segments` and `<root>/corpus` up to date.

    python -m jobs.corpus configs/demo.yaml 'corpus.recipe.inputs=[pages/*.warc.gz]'

Safe to submit again after a crash.
"""

import sys

from jobs.console import run_until

if __name__ == "__main__":
    sys.exit(run_until(None, str(__doc__), lambda found, config: "corpus"))
