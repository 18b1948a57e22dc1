"""Fine-tune models and make the stages that they need; by default the two models that need only the seed.

    python -m jobs.train configs/demo.yaml                  models/backward and models/m0
    python -m jobs.train configs/demo.yaml model=m2         everything up to models/m2

Safe to submit again after a crash: training resumes from its last checkpoint.
"""

import sys

from jobs.console import run_until

if __name__ == "__main__":
    sys.exit(run_until(None, str(__doc__), lambda found, config: f"models/{found.model}", model="m0"))
