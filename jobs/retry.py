"""Retry the quarantined rows of a finished stage.

    python -m jobs.retry out/mine candidates
    python -m jobs.retry s3://bucket/run candidates augment.placement.batch_tokens=16384

Rows that succeed now leave quarantine; the others stay there. The configuration is that of the run's last submission;
keys given here may replace settings that do not change what is computed (placements).

A stage that another stage has started to read is not changed: the job names the readers and exits 2. Runs that reuse
the stage are not known here, so retry before you share it.
"""

import argparse
import sys

from humpback_ray import storage
from humpback_ray.config import ConfigError, configured
from humpback_ray.run import finished_stages, latest_submission, refuse_read
from humpback_ray.runconfig import RunConfig
from humpback_ray.stages.manifest import Manifest
from jobs.console import guarded, opened, say, worked

SHOWN = 5
"""Number of rows still in quarantine that are listed."""


def main(argv: list[str] | None = None) -> int:
    """Retry the quarantined rows of STAGE in the run at ROOT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="directory or s3:// URI of a run")
    parser.add_argument("stage", help="a finished stage, such as segments, candidates or round-1/scores")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys that replace settings")
    found = parser.parse_args(argv)
    return guarded(lambda: work(found.root, found.stage, found.overrides))


def work(root: str, stage: str, overrides: list[str]) -> int:
    """Do the work of `main`."""
    root = storage.located(root)
    before = finished(root, stage)
    if not before.quarantined:
        say(f"{stage} of {root} has no rows in quarantine")
        return 0
    refuse_read(root, before)
    _, record = latest_submission(root)
    config = configured(RunConfig, {**record["config"], "root": root}, overrides)
    run = opened(config, stage)
    run.retrying = stage
    after = worked(run, stage)[-1]
    say(f"{stage}: {before.quarantined - after.quarantined:,} of {before.quarantined:,} quarantined rows succeeded")
    for row in after.quarantine().slice(0, SHOWN).to_pylist():
        say(f"still in quarantine: {row['id']} (shard {row['shard']}): {row['error']}")
    return 0


def finished(root: str, stage: str) -> Manifest:
    """Return the manifest of a finished stage of a run.

    Raises:
        ConfigError: the root is not a run, or the stage is unfinished or belongs to another run.
    """
    if not storage.exists(storage.join(root, "run.json")):
        raise ConfigError(f"{root} is not a run: it has no run.json")
    stages = finished_stages(root)
    if stage not in stages:
        raise ConfigError(f"{root} has no finished stage {stage}; finished stages: {', '.join(stages) or 'none'}")
    manifest = stages[stage]
    if manifest.uri != storage.join(root, stage):
        home = manifest.uri.removesuffix(f"/{stage}")
        raise ConfigError(
            f"{stage} of {root} belongs to another run; retry it there: python -m jobs.retry {home} {stage}"
        )
    return manifest


if __name__ == "__main__":
    sys.exit(main())
