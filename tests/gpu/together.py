"""A worker of the pool in cluster.py, which waits until the other actor works too; it needs the pipeline's packages."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from humpback_ray.augment import Predictor

PATIENCE_S = 90.0
"""How long an actor waits for the other one."""


class Together(Predictor):
    """Predicts instructions once enough actors have a shard: else the first one up would do all of a small stage.

    Args:
        meeting: a directory where each actor leaves a file.
        actors: number of actors to wait for.
        arguments: of the `Predictor`.
    """

    def __init__(self, meeting: str, actors: int, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.meeting, self.actors = Path(meeting), actors

    async def __call__(self, segments: pa.Table) -> pa.Table:
        """Wait for the others, then predict."""
        self.meeting.mkdir(exist_ok=True)
        (self.meeting / str(os.getpid())).touch()
        until = time.monotonic() + PATIENCE_S
        while len(list(self.meeting.iterdir())) < self.actors and time.monotonic() < until:
            await asyncio.sleep(0.1)
        return await super().__call__(segments)
