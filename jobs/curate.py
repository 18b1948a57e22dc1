"""Rate every candidate and keep the best, round by round; brings `<root>/round-*/curated` up to date.

With a `rewrite.model`, `<root>/round-*/rewritten` too.

    python -m jobs.curate configs/demo.yaml                 all rounds (training the models between them)
    python -m jobs.curate configs/demo.yaml round=1         the first round alone

Safe to submit again after a crash.
"""

import sys

from jobs.console import run_until

if __name__ == "__main__":
    sys.exit(
        run_until(
            None,
            str(__doc__),
            lambda found, config: (
                f"round-{found.round or len(config.curate.recipe.rounds)}/"
                + ("rewritten" if config.rewrite.model else "curated")
            ),
            round="",
        )
    )
