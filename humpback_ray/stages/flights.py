"""The shards of a pass and the attempts at them: the only state that a pass's threads share, under one lock.

Each event updates only the counts it changes, so it costs as much in a pass over ten shards as in one over 100,000.
"""

import threading
from collections.abc import Iterable

Flight = tuple[str, int]
"""Shard and number of an attempt."""


class Flights:
    """The shards of a pass and the attempts at them, counted event by event; used by several threads.

    Args:
        shards: names of the shards of the pass.
    """

    def __init__(self, shards: Iterable[str]) -> None:
        self._lock = threading.Lock()
        self._open = set(shards)
        self._committed: set[str] = set()
        self._waiting = len(self._open)
        """Open shards that nobody has begun."""
        self._begun: set[str] = set()
        self._numbers: dict[str, dict[int, float]] = {}
        """The running attempts at each open shard, and when each was first seen."""
        self._latest: dict[Flight, None] = {}
        """The newest running attempt at each open shard that has one."""
        self._tried_twice: set[str] = set()

    def note(self, begun: Iterable[Flight], failed: Iterable[Flight], now: float) -> None:
        """Record attempts that are new in a listing: those that began and those that failed."""
        failed = set(failed)
        with self._lock:
            for shard, number in begun:
                if shard not in self._open:
                    continue
                if shard not in self._begun:
                    self._begun.add(shard)
                    self._waiting -= 1
                if (shard, number) not in failed:
                    self._drop_latest(shard)
                    self._numbers.setdefault(shard, {})[number] = now
                    self._keep_latest(shard)
            for shard, number in failed:
                if self._numbers.get(shard, {}).get(number) is not None:
                    self._drop_latest(shard)
                    del self._numbers[shard][number]
                    self._keep_latest(shard)

    def _drop_latest(self, shard: str) -> None:
        if numbers := self._numbers.get(shard):
            self._latest.pop((shard, max(numbers)), None)

    def _keep_latest(self, shard: str) -> None:
        if numbers := self._numbers.get(shard):
            self._latest[shard, max(numbers)] = None
        else:
            self._numbers.pop(shard, None)

    def commit(self, shards: Iterable[str]) -> list[str]:
        """Record commits; return the shards that were not known to be committed."""
        with self._lock:
            fresh = [shard for shard in shards if shard not in self._committed]
            self._committed.update(fresh)
            for shard in fresh:
                self._close(shard)
        return fresh

    def close(self, shard: str) -> None:
        """Record that an actor is done with a shard, successfully or not."""
        with self._lock:
            self._close(shard)

    def _close(self, shard: str) -> None:
        if shard not in self._open:
            return
        self._open.discard(shard)
        self._drop_latest(shard)
        self._numbers.pop(shard, None)
        if shard not in self._begun:
            self._waiting -= 1

    def started_again(self, shard: str) -> None:
        """Record that a shard was started a second time."""
        with self._lock:
            self._tried_twice.add(shard)

    def oldest(self) -> tuple[Flight, float] | None:
        """Return the open shard's newest attempt that was first seen earliest, and when that was."""
        with self._lock:
            seen = [(flight, self._numbers[flight[0]][flight[1]]) for flight in self._latest]
        return min(seen, key=lambda found: found[1], default=None)

    def on_their_way(self) -> list[tuple[Flight, float]]:
        """Return the running attempts at open shards, each with the time when it was first seen."""
        with self._lock:
            found = [(flight, self._numbers[flight[0]][flight[1]]) for flight in self._latest]
            for shard in self._tried_twice:
                numbers = self._numbers.get(shard, {})
                found += [((shard, number), seen) for number, seen in numbers.items() if number != max(numbers)]
        return found

    def candidates(self, most: int) -> list[tuple[str, Flight | None, float | None]]:
        """Return the open shards not started twice, each with its newest attempt and when that was first seen.

        Args:
            most: if more shards than this are open, some still wait for an actor, and the result is [].
        """
        with self._lock:
            if len(self._open) > most:
                return []
            found = []
            for shard in sorted(self._open - self._tried_twice):
                numbers = self._numbers.get(shard)
                number = max(numbers) if numbers else None
                found.append((shard, (shard, number), numbers[number]) if numbers and number else (shard, None, None))
        return found

    @property
    def open_shards(self) -> int:
        """Number of shards that no actor has finished."""
        return len(self._open)

    def is_over(self) -> bool:
        """Tell whether the pass waits only for the slower attempts at shards that were started twice."""
        with self._lock:
            return bool(self._tried_twice) and not self._waiting and not self._latest
