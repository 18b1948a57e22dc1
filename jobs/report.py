"""Write the report of what a run has finished so far; starts no stage and no Ray.

python -m jobs.report configs/demo.yaml root=out/mine
"""

import sys

from humpback_ray import pipeline, storage
from humpback_ray.config import ConfigError, load
from humpback_ray.run import Run, RunConfig
from jobs.console import arguments, guarded, say, table


def main() -> int:
    """Print the table of the finished stages and write the page."""
    found = arguments(None, str(__doc__))
    config = load(RunConfig, found.config, found.overrides)
    if not storage.exists(storage.join(storage.located(config.root), "run.json")):
        raise ConfigError(f"{config.root} is no run: it has no run.json")
    run = Run(config)
    table(run.finished())
    say(f"report: {pipeline.write_report(run)}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
