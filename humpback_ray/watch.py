"""A pass under watch: which attempts are on their way, since when, and what is done about those that take too long.

The watch lists the attempts and takes the time from when it first saw one, so no clocks are compared. From the shards
that ended it knows the median time per row (of files: per byte). An attempt beyond its limit is failed and its process
ended; attempts of other shards in that process are written down as not charged. When all open shards are with actors,
one that takes far longer than the median is started a second time (`second`), and once all are committed `stop` ends
the pass.
"""

import json
import logging
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from humpback_ray import processes, storage
from humpback_ray.ledger import Ledger, Shard
from humpback_ray.placement import PoolPlacement

logger = logging.getLogger(__name__)

STUCK_AFTER_S = 600.0
"""An attempt this old is named in the progress line."""

Flight = tuple[str, int]
"""Shard and number of an attempt."""


class Pace:
    """How long shards take: the median of seconds per unit of weight (a row, or a byte of a file)."""

    def __init__(self, placement: PoolPlacement, weights: Mapping[str, float]) -> None:
        self.placement, self.weights = placement, weights
        self._rates: list[float] = []

    def ended(self, weight: float, seconds: float) -> None:
        """Take an ended shard, or a part of one, into account."""
        if weight > 0:
            self._rates.append(seconds / weight)

    def expected_s(self, weight: float) -> float | None:
        """Return what so much takes, by the median; None while nothing has ended."""
        return statistics.median(self._rates) * weight if self._rates else None

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
        self._second, self._stop, self._news = second, stop, news
        self._before = self._names()
        self._seen: dict[Flight, float] = {}
        self._begun: set[str] = set()
        self._tail = 0.0
        self._records: dict[Flight, dict[str, Any]] = {}
        self._committed: set[str] = set()
        self._failed: set[str] = set()
        self._seconds: set[str] = set()
        self._end = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> "Watch":
        self._thread = threading.Thread(target=self._look, name=f"watch-{self.name}", daemon=True)
        self._thread.start()
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
            self._failed.add(shard)
        else:
            self.pace.ended(self.pace.weights[shard], seconds)
            self._commit({shard})
        self._stop_if_over()

    def _commit(self, shards: set[str]) -> None:
        with self._lock:
            fresh = (shards & self.shards.keys()) - self._committed
            self._committed |= fresh
        for shard in fresh:
            self._news(shard)

    def concern(self) -> str:
        """Name the attempt that has run for longest, with its node, once that is worth a word."""
        flights = self._flights()
        oldest = min(flights, key=lambda flight: self._seen[flight], default=None)
        if oldest is None or (age := time.monotonic() - self._seen[oldest]) < STUCK_AFTER_S:
            return ""
        return f"; shard {oldest[0]} has run for {age:.0f} s on {self._record(oldest)['node']}"

    def _look(self) -> None:
        every_s = min(30.0, max(0.2, self.pace.placement.limit_floor_s / 20))
        while not self._end.wait(every_s):
            try:
                self._note()
                self._end_overdue()
                self._repeat_stragglers()
                self._stop_if_over()
            except OSError as error:
                logger.warning("%s: could not look after the attempts: %s", self.name, error)
            except processes.NodeLost as error:
                logger.warning("%s: %s", self.name, error)

    def _names(self) -> set[str]:
        return set(storage.list_names(self.ledger.at("attempts")))

    def _note(self) -> None:
        self._commit(self.ledger.committed())
        names, now = self._names() - self._before, time.monotonic()
        failed = {_flight(name.replace(".error", "")) for name in names if name.endswith(".error.json")}
        begun = {_flight(name) for name in names if not name.endswith(".error.json")}
        self._begun = {shard for shard, _ in begun}
        self._seen = {flight: self._seen.get(flight, now) for flight in begun - failed if flight[0] in self.shards}

    def _flights(self) -> list[Flight]:
        """Return the attempts on their way: of each shard that has not ended the newest, and the one beside it."""
        open_ = [flight for flight in self._seen if flight[0] not in self._committed | self._failed]
        latest = dict(sorted(open_))  # of a shard the highest number comes last
        return [flight for flight in open_ if flight[1] == latest[flight[0]] or flight[0] in self._seconds]

    def _record(self, flight: Flight) -> dict[str, Any]:
        if flight not in self._records:
            shard, number = flight
            uri = self.ledger.at("attempts", shard, f"{number:04d}.json")
            self._records[flight] = json.loads(storage.read_bytes(uri))
        return self._records[flight]

    def _end_overdue(self) -> None:
        now = time.monotonic()
        for flight in self._flights():
            age, limit = now - self._seen[flight], self.pace.limit_s(self.pace.weights[flight[0]])
            if age > limit:
                record = self._record(flight)
                if record["submission"] == self.ledger.submission:
                    self._end_process(record, f"no end after {age:.0f} s, the limit for this shard is {limit:.0f} s")

    def _end_process(self, record: Mapping[str, Any], error: str) -> None:
        logger.warning("%s: shard %s: %s; ending its process on %s", self.name, record["shard"], error, record["node"])
        self.ledger.fail(record, error)
        for other in map(self._record, self._flights()):
            if other["shard"] != record["shard"] and _process(other) == _process(record):
                self.ledger.fail(other, f"its process was ended because of shard {record['shard']}", charged=False)
        processes.end(record["node_id"], record["pid"], record["born"])

    def _repeat_stragglers(self) -> None:
        open_ = set(self.shards) - self._committed - self._failed
        if len(open_) > self.pace.placement.most_shards_held:
            return  # some wait for an actor
        now = time.monotonic()
        self._tail = self._tail or now
        newest = {shard: (shard, number) for shard, number in sorted(self._flights())}
        for shard in sorted(open_ - self._seconds):  # one that has not begun waits inside an actor, behind a slow one
            age = now - (self._seen[newest[shard]] if shard in newest else self._tail)
            if self.pace.is_straggler(self.pace.weights[shard], age):
                slow = self._record(newest[shard]) if shard in newest else {}
                words = (self.name, shard, age, slow.get("node", "behind another one"))
                logger.warning("%s: shard %s has taken %.0f s (%s); starting it once more", *words)
                self._seconds.add(shard)
                self._second(self.shards[shard], slow.get("node_id"))

    def _stop_if_over(self) -> None:
        """End the pass if a straggler's other attempt is all that it still waits for."""
        waiting = set(self.shards) - self._committed - self._failed - self._begun
        if self._seconds and not waiting and not self._flights():
            self._stop()


def _flight(name: str) -> Flight:
    shard, _, number = name.removesuffix(".json").partition("/")
    return shard, int(number)


def _process(record: Mapping[str, Any]) -> tuple[str, int]:
    return record["node_id"], record["pid"]
