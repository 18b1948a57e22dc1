"""The numbered steps from a recipe to a visible stage, and a hook where a test can interfere after each.

Code calls `reach` right after each step; normally that does nothing. A fault test sets `hook` to a function that kills
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
"""In the order of a stage. Step 7 occurs only for shards with quarantined rows, 8 only on local storage (before the
`link` of every created file), 11 only for global steps and training."""

hook: Callable[[str], None] | None = None


def reach(number: int) -> None:
    """Report that step `number` (from 1) is done."""
    if hook is not None:
        hook(STEPS[number - 1])
