"""A pass under watch: which attempts are on their way, since when, and what is done about those that take too long.

The watch lists the attempts and takes the time from when it first saw one, so no clocks are compared. From the shards
that ended it knows the median time per row (of files: per byte). An attempt beyond its limit is failed and its process
ended; attempts of other shards in that process are written down as not charged. When all open shards are with actors,
one that takes far longer than the median is started a second time (`second`), and once all are committed `stop` ends
the pass.

What an event changes is counted when it comes (`Flights`), so it costs the same in a pass over 100,000 shards as in one
over ten. A look lists the directory, so the pauses between two are at least ten times as long as a look took.
"""

import bisect
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter
from types import TracebackType
from typing import Any

from humpback_ray import storage
from humpback_ray.placement import PoolPlacement
from humpback_ray.stages import processes
from humpback_ray.stages.background import repeat
from humpback_ray.stages.ledger import Ledger
from humpback_ray.stages.shards import Shard

logger = logging.getLogger(__name__)

STUCK_AFTER_S = 600.0
"""An attempt this old is named in the progress line."""
LOOK_EVERY_S = 30.0
"""The longest pause between two looks, unless a look itself takes more than a tenth of it."""

_ATTEMPT = re.compile(r"([^/]+)/(\d+)(\.error)?\.json")
"""An attempt, or its error, in a listing; what else lies there is not ours."""

Flight = tuple[str, int]
"""Shard and number of an attempt."""


class Pace:
    """How long shards take: the median of seconds per unit of weight (a row, or a byte of a file)."""

    def __init__(self, placement: PoolPlacement, weights: Mapping[str, float]) -> None:
        self.placement, self.weights = placement, weights
        self._rates: list[float] = []
        """Of all that ended, in order of size."""
        self._lock = threading.Lock()

    def ended(self, weight: float, seconds: float) -> None:
        """Take an ended shard, or a part of one, into account."""
        if weight > 0:
            with self._lock:
                bisect.insort(self._rates, seconds / weight)

    def expected_s(self, weight: float) -> float | None:
        """Return what so much takes, by the median; None while nothing has ended."""
        with self._lock:
            count, middle = len(self._rates), len(self._rates) // 2
            if not count:
                return None
            median = self._rates[middle] if count % 2 else (self._rates[middle - 1] + self._rates[middle]) / 2
        return median * weight

    def limit_s(self, weight: float) -> float:
        """Return how long a shard in a pool may take."""
        expected = self.expected_s(weight)
        if expected is None:
            return self.placement.limit_unmeasured_s
        return max(self.placement.limit_floor_s, self.placement.limit_factor * expected)

    def lone_limit_s(self, weight: float) -> float:
        """Return how long a part of a shard that runs alone may take."""
        expected = self.expected_s(weight)
        if expected is None:
            return min(self.placement.limit_floor_s, self.placement.limit_unmeasured_s)
        return max(self.placement.limit_floor_s / 10, self.placement.limit_factor * expected)

    def is_straggler(self, weight: float, age_s: float) -> bool:
        """Tell whether a shard should be started once more."""
        factor, expected = self.placement.straggler_factor, self.expected_s(weight)
        if factor is None or expected is None:
            return False
        return age_s > max(factor * expected, self.placement.limit_floor_s / 10)


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
        """Of each open shard that was begun: attempts without an end, and when each was seen first."""
        self._latest: dict[Flight, None] = {}
        """The newest of them, of every open shard that has one: as many as actors have shards at work."""
        self._seconds: set[str] = set()

    def note(self, begun: Iterable[Flight], failed: Iterable[Flight], now: float) -> None:
        """Take in attempts that are new in a listing: those that began, and those that somebody saw fail."""
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
        """Note commits; returns the shards that are news."""
        with self._lock:
            fresh = [shard for shard in shards if shard not in self._committed]
            self._committed.update(fresh)
            for shard in fresh:
                self._close(shard)
        return fresh

    def close(self, shard: str) -> None:
        """Note that an actor is done with a shard, whatever became of it."""
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
        """Note that a shard was started a second time."""
        with self._lock:
            self._seconds.add(shard)

    def oldest(self) -> tuple[Flight, float] | None:
        """Return the attempt that was seen first among the newest of each open shard, and when that was."""
        with self._lock:
            seen = [(flight, self._numbers[flight[0]][flight[1]]) for flight in self._latest]
        return min(seen, key=lambda found: found[1], default=None)

    def on_their_way(self) -> list[tuple[Flight, float]]:
        """Return the attempts on their way and since when: of each open shard the newest, and the one beside it."""
        with self._lock:
            found = [(flight, self._numbers[flight[0]][flight[1]]) for flight in self._latest]
            for shard in self._seconds:
                numbers = self._numbers.get(shard, {})
                found += [((shard, number), seen) for number, seen in numbers.items() if number != max(numbers)]
        return found

    def candidates(self, most: int) -> list[tuple[str, Flight | None, float | None]]:
        """Return the open shards that were not started twice, each with its newest attempt and since when.

        Args:
            most: if there are more open shards than these, some wait for an actor, and none is returned.
        """
        with self._lock:
            if len(self._open) > most:
                return []
            found = []
            for shard in sorted(self._open - self._seconds):
                numbers = self._numbers.get(shard)
                number = max(numbers) if numbers else None
                found.append((shard, (shard, number), numbers[number]) if numbers and number else (shard, None, None))
        return found

    @property
    def left(self) -> int:
        """Open shards."""
        return len(self._open)

    def is_over(self) -> bool:
        """Tell whether a straggler's other attempt is all that the pass still waits for."""
        with self._lock:
            return bool(self._seconds) and not self._waiting and not self._latest


class Watch:
    """Watch over the shards of a pass in a `with` block.

    Args:
        name: of the stage.
        ledger: of the stage.
        shards: of the pass.
        pace: shared by the passes of a submission.
        second: starts a shard once more, away from a node (its Ray id) if one is given, and does not wait for the end.
        stop: ends the pass at once, whatever is still on its way.
        news: told once about every shard that is committed.
    """

    def __init__(
        self,
        name: str,
        ledger: Ledger,
        shards: Sequence[Shard],
        pace: Pace,
        second: Callable[[Shard, str | None], None],
        stop: Callable[[], None],
        news: Callable[[str], None],
    ) -> None:
        self.name, self.ledger, self.pace = name, ledger, pace
        self.shards = {shard.name: shard for shard in shards}
        self.flights = Flights(self.shards)
        self._second, self._stop, self._news = second, stop, news
        self._known = self._names()
        self._tail = 0.0
        self._look_s = 0.0
        self._records: dict[Flight, dict[str, Any]] = {}
        self._end = threading.Event()

    def __enter__(self) -> "Watch":
        self._thread = repeat(f"{self.name}: looking after the attempts", self.look, self._pause_s, self._end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if kind is None:
            self._thread.join()

    def ended(self, shard: str, error: str, seconds: float) -> None:
        """Note that an actor came to an end with a shard, with an error or (where it is "") a commit."""
        if error:
            logger.warning("%s: shard %s failed: %s", self.name, shard, error)
            self.flights.close(shard)
        else:
            self.pace.ended(self.pace.weights[shard], seconds)
            self._commit([shard])
        self._stop_if_over()

    def left_to(self, shard: str, holder: str) -> None:
        """Note that an actor left a shard to another driver, which is at work on it."""
        logger.info("%s: shard %s is left to submission %s, which is at work on it", self.name, shard, holder)
        self.flights.close(shard)
        self._stop_if_over()

    def _commit(self, shards: Iterable[str]) -> None:
        for shard in self.flights.commit(shard for shard in shards if shard in self.shards):
            self._news(shard)

    def concern(self) -> str:
        """Name the attempt that has run for longest, with its node, once that is worth a word."""
        oldest = self.flights.oldest()
        if oldest is None or (age := time.monotonic() - oldest[1]) < STUCK_AFTER_S:
            return ""
        return f"; shard {oldest[0][0]} has run for {age:.0f} s on {self._record(oldest[0])['node']}"

    def _pause_s(self) -> float:
        return max(min(LOOK_EVERY_S, max(0.2, self.pace.placement.limit_floor_s / 20)), 10 * self._look_s)

    def look(self) -> None:
        """Look once after commits and attempts, and act on what takes too long."""
        began = perf_counter()
        self._note()
        self._look_s = perf_counter() - began
        self._end_overdue()
        self._repeat_stragglers()
        self._stop_if_over()

    def _names(self) -> set[str]:
        return set(storage.list_names(self.ledger.at("attempts")))

    def _note(self) -> None:
        self._commit(self.ledger.committed())
        names = self._names()
        fresh, self._known = names - self._known, names
        begun, failed = [], []
        for match in map(_ATTEMPT.fullmatch, sorted(fresh)):
            if match:
                (failed if match[3] else begun).append((match[1], int(match[2])))
        self.flights.note(begun, failed, time.monotonic())

    def _record(self, flight: Flight) -> dict[str, Any]:
        if flight not in self._records:
            shard, number = flight
            uri = self.ledger.at("attempts", shard, f"{number:04d}.json")
            self._records[flight] = json.loads(storage.read_bytes(uri))
        return self._records[flight]

    def _is_ours(self, flight: Flight) -> bool:
        return self._record(flight)["submission"] == self.ledger.submission

    def _end_overdue(self) -> None:
        now = time.monotonic()
        for flight, seen in self.flights.on_their_way():
            age, limit = now - seen, self.pace.limit_s(self.pace.weights[flight[0]])
            if age > limit and self._is_ours(flight):
                self._end_process(flight, f"no end after {age:.0f} s, the limit for this shard is {limit:.0f} s")

    def _end_process(self, flight: Flight, error: str) -> None:
        record = self._record(flight)
        logger.warning("%s: shard %s: %s; ending its process on %s", self.name, record["shard"], error, record["node"])
        self.ledger.fail(record, error)
        for other in [self._record(other) for other, _ in self.flights.on_their_way()]:
            if other["shard"] != record["shard"] and _process(other) == _process(record):
                self.ledger.fail(other, f"its process was ended because of shard {record['shard']}", charged=False)
        try:
            processes.end(record["node_id"], record["pid"], record["born"])
        except processes.NodeLost as lost:
            logger.warning("%s: %s", self.name, lost)

    def _repeat_stragglers(self) -> None:
        if self.flights.left > self.pace.placement.most_shards_held:
            return  # some wait for an actor
        now = time.monotonic()
        self._tail = self._tail or now
        for shard, flight, seen in self.flights.candidates(self.pace.placement.most_shards_held):
            age = now - (self._tail if seen is None else seen)  # one without waits inside an actor, behind a slow one
            if not self.pace.is_straggler(self.pace.weights[shard], age) or (flight and not self._is_ours(flight)):
                continue
            slow = self._record(flight) if flight else {}
            words = (self.name, shard, age, slow.get("node", "behind another one"))
            logger.warning("%s: shard %s has taken %.0f s (%s); starting it once more", *words)
            self.flights.started_again(shard)
            self._second(self.shards[shard], slow.get("node_id"))

    def _stop_if_over(self) -> None:
        """End the pass if a straggler's other attempt is all that it still waits for."""
        if self.flights.is_over():
            self._stop()


def _process(record: Mapping[str, Any]) -> tuple[str, int]:
    return record["node_id"], record["pid"]
