"""The numbered steps from a recipe to a visible stage, and the place where a test can interfere at each.

`reach` is called when a step has just been done and does nothing. A fault test puts a function into `hook` that kills
the process, waits or raises, and so shows that nothing is lost between any two steps.
"""

from collections.abc import Callable

STEPS = (
    "1 recipe created",
    "2 plan created",
    "3 attempt recorded",
    "4 shard loaded",
    "5 rows made",
    "6 rows uploaded",
    "7 quarantine uploaded",
    "8 temporary file written",
    "9 commit created",
    "10 commit reported",
    "11 lease ended",
    "12 manifest created",
)
"""In the order of a stage. 7 is there for shards with quarantined rows, 8 on local storage (before the `link` of every
created file), 11 for global steps and training."""

hook: Callable[[str], None] | None = None


def reach(number: int) -> None:
    """Say that step `number` (from 1) has been done."""
    if hook is not None:
        hook(STEPS[number - 1])
