"""Write the report of a run's finished stages. Runs no stage, does not start Ray, and writes nothing but the page.

    python -m jobs.report configs/demo.yaml root=out/mine
    python -m jobs.report configs/demo.yaml root=s3://bucket/run out=report.html

Only the root of the configuration matters. `out` says where the page goes, <root>/report/index.html by default; set it
if the root is read-only.
"""

import sys

from humpback_ray import storage
from humpback_ray.config import ConfigError, load
from humpback_ray.report import write_report
from humpback_ray.run import finished_stages
from humpback_ray.runconfig import RunConfig
from jobs.console import arguments, guarded, say, table


def main() -> int:
    """Print the table of the finished stages and write the page."""
    found = arguments(None, str(__doc__), None, out="")
    try:
        root = storage.located(load(RunConfig, found.config, found.overrides).root)
        if not storage.exists(storage.join(root, "run.json")):
            raise ConfigError(f"{root} is not a run: it has no run.json")
        made = finished_stages(root)
    except OSError as error:
        raise ConfigError(f"cannot read the run: {error}") from error
    table(list(made.values()))
    try:
        uri = write_report(root, made, storage.located(found.out) if found.out else None)
    except OSError as error:
        raise ConfigError(f"cannot write the page: {error}; choose another place with out=FILE") from error
    say(f"report: {uri}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
