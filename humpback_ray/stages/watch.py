"""Watch a pass: which attempts are running, since when, and which of them take too long.

The watch lists the attempts and times each from when it first saw it, so no clocks are compared. It knows the median
time per row (for files: per byte) from the shards that ended. It decides but does not act: it names the attempts that
are over their limit and, once actors have all open shards, the shards that take far longer than the median and should
be started a second time. passes.py acts on both.

A look lists the directory, so the pause before the next is at least ten times as long as the look took.
"""

import logging
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

from humpback_ray import storage
from humpback_ray.stages.flights import Flight, Flights
from humpback_ray.stages.ledger import AttemptRecord, Ledger
from humpback_ray.stages.pace import Pace
from humpback_ray.stages.shards import Shard

logger = logging.getLogger(__name__)

STUCK_AFTER_S = 600.0
"""Seconds after which the progress line names an attempt."""
LOOK_EVERY_S = 30.0
"""The longest pause between two looks, unless a look itself takes more than a tenth of it."""

_ATTEMPT = re.compile(r"([^/]+)/(\d+)(\.error)?\.json")
"""An attempt, or its error, in a listing; other files there are not ours."""


@dataclass(frozen=True)
class Overdue:
    """An attempt of ours that is over its limit, and why its process should be ended."""

    record: AttemptRecord
    why: str


@dataclass(frozen=True)
class Straggler:
    """A shard to start again, away from a node (its Ray id) if one is known."""

    shard: Shard
    away_from: str | None


class Watch:
    """Follow the shards of a pass. One thread looks; other threads report results and ask for `concern`.

    Args:
        name: of the stage.
        ledger: of the stage.
        shards: of the pass.
        pace: shared by the passes of a submission.
    """

    def __init__(self, name: str, ledger: Ledger, shards: Sequence[Shard], pace: Pace) -> None:
        self.name, self.ledger, self.pace = name, ledger, pace
        self.shards = {shard.name: shard for shard in shards}
        self.flights = Flights(self.shards)
        self._known = self._listed()
        self._tail = 0.0
        """When actors were first seen to have all open shards."""
        self._look_s = 0.0
        self._records: dict[Flight, AttemptRecord] = {}

    def committed(self, shard: str, seconds: float) -> bool:
        """Record that an actor committed a shard; return False if that was already known."""
        self.pace.ended(self.pace.weights[shard], seconds)
        return bool(self.flights.commit([shard]))

    def failed(self, shard: str, error: str) -> None:
        """Record that an actor ended a shard without a commit."""
        logger.warning("%s: shard %s failed: %s", self.name, shard, error)
        self.flights.close(shard)

    def left_to(self, shard: str, holder: str) -> None:
        """Record that an actor left a shard to another driver, which is working on it."""
        logger.info("%s: shard %s is left to submission %s, which is working on it", self.name, shard, holder)
        self.flights.close(shard)

    def concern(self) -> str:
        """Name the attempt that has run the longest, with its node, once it is older than `STUCK_AFTER_S`."""
        oldest = self.flights.oldest()
        if oldest is None or (age := time.monotonic() - oldest[1]) < STUCK_AFTER_S:
            return ""
        return f"; shard {oldest[0][0]} has run for {age:.0f} s on {self._record(oldest[0])['node']}"

    def pause_s(self) -> float:
        """Return the seconds until the next look."""
        return max(min(LOOK_EVERY_S, max(0.2, self.pace.placement.limit_floor_s / 20)), 10 * self._look_s)

    def look(self) -> list[str]:
        """List attempts and commits once; return the newly committed shards."""
        began = perf_counter()
        self._note_attempts()
        fresh = self.flights.commit(self.ledger.committed() & self.shards.keys())
        self._look_s = perf_counter() - began
        return fresh

    def _listed(self) -> set[str]:
        return set(storage.list_names(self.ledger.at("attempts")))

    def _note_attempts(self) -> None:
        names = self._listed()
        fresh, self._known = names - self._known, names
        begun, failed = list[Flight](), list[Flight]()
        for match in map(_ATTEMPT.fullmatch, sorted(fresh)):
            if match:
                (failed if match[3] else begun).append((match[1], int(match[2])))
        self.flights.note(begun, failed, time.monotonic())

    def overdue(self) -> Iterator[Overdue]:
        """Yield our attempts that are over their limit."""
        now = time.monotonic()
        for flight, seen in self.flights.on_their_way():
            age, limit = now - seen, self.pace.limit_s(self.pace.weights[flight[0]])
            if age > limit and self._is_ours(flight):
                why = f"still running after {age:.0f} s; the limit for this shard is {limit:.0f} s"
                yield Overdue(self._record(flight), why)

    def beside(self, record: AttemptRecord) -> list[AttemptRecord]:
        """Return the running attempts at other shards in the same process."""
        others = [self._record(flight) for flight, _ in self.flights.on_their_way()]
        return [one for one in others if one["shard"] != record["shard"] and _process(one) == _process(record)]

    def stragglers(self) -> Iterator[Straggler]:
        """Yield the shards that should be started again; a shard counts as started when it is yielded."""
        if self.flights.open_shards > self.pace.placement.most_shards_held:
            return  # some wait for an actor
        now = time.monotonic()
        self._tail = self._tail or now
        for shard, flight, seen in self.flights.candidates(self.pace.placement.most_shards_held):
            age = now - (self._tail if seen is None else seen)  # not seen: it waits inside an actor, behind a slow one
            if not self.pace.is_straggler(self.pace.weights[shard], age) or (flight and not self._is_ours(flight)):
                continue
            slow = self._record(flight) if flight else None
            where = slow["node"] if slow else "behind another one"
            logger.warning(
                "%s: shard %s has taken %.0f s (%s); starting it again", self.name, shard, age, where
            )  # fmt: skip
            self.flights.started_again(shard)
            yield Straggler(self.shards[shard], slow["node_id"] if slow else None)

    def _record(self, flight: Flight) -> AttemptRecord:
        if flight not in self._records:
            shard, number = flight
            self._records[flight] = storage.read_json(self.ledger.at("attempts", shard, f"{number:04d}.json"))
        return self._records[flight]

    def _is_ours(self, flight: Flight) -> bool:
        return self._record(flight)["submission"] == self.ledger.submission


def _process(record: AttemptRecord) -> tuple[str, int]:
    return record["node_id"], record["pid"]
