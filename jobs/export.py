"""Copy a finished model out of its run and check every file; the copy is ready to serve. Does not start Ray.

    python -m jobs.export out/demo/models/m2 my-model
    python -m jobs.export s3://bucket/run/models/m2 s3://bucket/published/m2

Safe to repeat: correct files that are there already are left alone. Exits 0; 1 if a file differs from its commit; 2 if
the model is missing or the directory holds other files.
"""

import argparse
import sys

from humpback_ray import storage
from humpback_ray.config import ConfigError
from humpback_ray.operate.fetch import fetch_model
from jobs.console import guarded, say


def main(argv: list[str] | None = None) -> int:
    """Copy the model of the stage MODEL to DIRECTORY."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory or s3:// URI of a model's stage: ROOT/models/NAME")
    parser.add_argument("directory", help="target: an empty directory, or an s3:// URI")
    found = parser.parse_args(argv)

    def work() -> int:
        try:
            source, target = storage.located(found.model), storage.located(found.directory)
            for line in fetch_model(source, target):
                say(line)
        except storage.Damaged as damaged:
            say(f"difference: {damaged}", "red")
            return 1
        except OSError as error:
            raise ConfigError(f"cannot copy {found.model}: {error}") from error
        say(f"exported: {target}", "green")
        say(f"serve it: vllm serve {target}")
        return 0

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
