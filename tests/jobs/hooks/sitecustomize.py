"""On PYTHONPATH of the head of tests/jobs: lets a test hold a stage in the middle.

While the file HOLD_SHARDS exists, an actor starts as many shards as it says, and waits before the next.
"""

import itertools
import os
import time
from pathlib import Path

from humpback_ray.storage import steps

HOLD = Path(os.environ["HOLD_SHARDS"])
begun = itertools.count(1)


def at(step: str) -> None:
    """Wait after an attempt is recorded, in the attempt's own thread: earlier shards continue."""
    if step == steps.STEPS[2]:
        number = next(begun)
        while HOLD.exists() and number > int(HOLD.read_text() or 0):
            time.sleep(0.02)


steps.hook = at
