"""Write the report of what a run has finished so far; starts no stage and no Ray.

python -m jobs.report configs/demo.yaml root=out/mine
"""

import sys

from humpback_ray import pipeline
from humpback_ray.config import load
from humpback_ray.run import Run, RunConfig
from jobs.console import arguments, console, guarded, table


def main() -> int:
    """Print the table of the finished stages and write the page."""
    found = arguments(None, str(__doc__))
    run = Run(load(RunConfig, found.config, found.overrides))
    table(run.finished())
    console.print(f"report: {pipeline.write_report(run)}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
