"""What a stage waits for before it can work: a kind of node, room on busy nodes, or a constructor that does not return.

Every few seconds, a loop asks Ray which of the driver's workers are up, which are being built and where, and what the
nodes offer. The result goes into the progress line and into a file of the stage for `status`. If a placement sets a
limit (`give_up_waiting_minutes`), the stage ends there.

Times count from when this driver first saw the state.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from humpback_ray import storage
from humpback_ray.needs import Need, amounts
from humpback_ray.stages.background import repeat
from humpback_ray.stages.nodes import alive
from humpback_ray.stages.progress import duration
from humpback_ray.stages.ray_internals import ActorRow, actors_in, free_resources

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
NAMED_AFTER_S = 20.0
"""A wait this long is reported; since there is a line every 30 s, that is within a minute of its start."""
WRITE_EVERY_S = 60.0
"""Seconds between writes of the file for `status` while nothing changes."""
MOST_DEATHS = 3
"""The stage gives up once a worker's process died this often during construction and the worker never was up."""
MOST_KINDS = 5
"""Number of node kinds that a line names."""


@dataclass(frozen=True)
class Constructor:
    """A worker that is being built: its process runs, its constructor has not returned."""

    key: str
    node: str
    pid: int


@dataclass(frozen=True)
class Workers:
    """State of a stage's workers."""

    up: int = 0
    constructors: Sequence[Constructor] = ()
    deaths: int = 0
    """Deaths of the process of one worker that never was up; the maximum over workers."""


class Waiting:
    """Watch, in a `with` block, whether the workers of a stage come up.

    Args:
        name: of the stage.
        need: what its workers need.
        look: returns their state.
        limit_minutes: how long the stage may have no worker up; None: no limit.
        give_up: called once, from another thread, when the limit is reached; `gave_up` says why.
        note: URI of the file for `status`; "" for none.
    """

    def __init__(
        self,
        name: str,
        need: Need,
        look: Callable[[], Workers],
        limit_minutes: float | None = None,
        give_up: Callable[[], object] = lambda: None,
        note: str = "",
    ) -> None:
        self.name, self.need, self.limit_minutes = name, need, limit_minutes
        self.gave_up = ""
        """Why the wait was given up; "" if it was not."""
        self._workers, self._give_up, self._note = look, give_up, note
        self._idle_since: float | None = time.monotonic()
        self._since: dict[str, float] = {}
        self._what, self._began = "", 0.0
        self._written = ("", 0.0)

    def __enter__(self) -> "Waiting":
        self._loop = repeat(f"{self.name}: watching its workers", self.look, lambda: LOOK_EVERY_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.stop(LOOK_EVERY_S if kind is None else 0)
        self._what = ""
        if self._written[0]:
            try:
                storage.delete(self._note)
            except OSError as refused:  # the file is read only while the stage works
                logger.warning("%s could not be deleted: %s", self._note, refused)

    def words(self) -> str:
        """Return the addition to the progress line; "" while nothing takes long."""
        what, began = self._what, self._began
        return f"; waiting {duration(time.monotonic() - began)} for {what}" if what else ""

    def look(self) -> None:
        """Look once: update the words, write them to the file, and give up if the limit is reached."""
        workers, now = self._workers(), time.monotonic()
        self._idle_since = None if workers.up else self._idle_since or now
        self._since = {one.key: self._since.get(one.key, now) for one in workers.constructors}
        self._what, self._began = self._found(workers, now)
        self._write(now)
        self._judge(workers, now)

    def _found(self, workers: Workers, now: float) -> tuple[str, float]:
        oldest = min(workers.constructors, key=lambda one: self._since[one.key], default=None)
        if oldest is not None and now - self._since[oldest.key] >= NAMED_AFTER_S:
            more = f" and {len(workers.constructors) - 1} more" if len(workers.constructors) > 1 else ""
            return f"a constructor on node {oldest.node} (process {oldest.pid}){more}", self._since[oldest.key]
        if self._idle_since is not None and not workers.constructors and now - self._idle_since >= NAMED_AFTER_S:
            return place_words(self.need), self._idle_since
        return "", 0.0

    def _write(self, now: float) -> None:
        """Update the file for `status`: what the stage waits for, and how long it had waited at the time of writing."""
        what, written = self._written
        if not self._note or (not self._what and not what):
            return
        if not self._what:
            storage.delete(self._note)
            self._written = "", now
        elif self._what != what or now - written >= WRITE_EVERY_S:
            storage.write_bytes(self._note, json.dumps({"what": self._what, "waited_s": now - self._began}).encode())
            self._written = self._what, now

    def _judge(self, workers: Workers, now: float) -> None:
        if self.gave_up:
            return
        if workers.deaths >= MOST_DEATHS:
            self.gave_up = (
                f"{self.name}: the process of a worker died silently {workers.deaths} times during construction "
                "(killed, possibly for lack of memory)"
            )
        elif self._idle_since is not None and self.limit_minutes is not None:
            waited_s = now - self._idle_since
            if waited_s >= 60 * self.limit_minutes:
                self.gave_up = given_up(self.name, self.limit_minutes, self._what or place_words(self.need))
        if self.gave_up:
            self._give_up()


def given_up(name: str, limit_minutes: float, what: str) -> str:
    """Return the error message of a stage that waited too long."""
    return (
        f"{name}: no worker was up for {limit_minutes:g} minutes, the limit in placement.give_up_waiting_minutes; it "
        f"waited for {what}; add such nodes, ask for less, or wait longer, and run again"
    )


def place_words(need: Need) -> str:
    """Say where workers could run, and what the cluster offers."""
    nodes, free = alive(), free_resources()
    offers = offer_words(nodes, free)
    suited = [node for node in nodes if need.fits(node["Resources"], node["Labels"])]
    several = f" ({need.workers} of them)" if need.workers > 1 else ""
    if not suited:
        return f"a node with {need.words()}{several}; {offers}"
    room = [node for node in suited if need.fits(free.get(node["NodeID"], {}), node["Labels"])]
    where = f"{len(suited)} {'node' if len(suited) == 1 else 'nodes'}"
    if room and need.workers == 1:
        return f"its process to start, with {need.words()}, on {where} with room; {offers}"
    return f"room for {need.words()}{several} on {where}, which {'is' if len(suited) == 1 else 'are'} busy; {offers}"


def offer_words(nodes: Sequence[Mapping[str, Any]], free: Mapping[str, Mapping[str, float]]) -> str:
    """Say what the nodes of a cluster have, by kind, and how much of it is free."""
    kinds: Counter[str] = Counter()
    left: Counter[tuple[str, str]] = Counter()
    for node in nodes:
        types = [name.partition(":")[2] for name in node["Resources"] if name.startswith("accelerator_type:")]
        spot = [value for name, value in node["Labels"].items() if name == "ray.io/market-type"]
        have = {name: node["Resources"].get(name, 0.0) for name in ("CPU", "GPU")}
        kind = amounts(have) + (f" ({', '.join([*types, *spot])})" if types or spot else "")
        kinds[kind] += 1
        for name, amount in have.items():
            if amount:
                left[kind, name] += free.get(node["NodeID"], {}).get(name, 0.0)  # pyright: ignore[reportArgumentType]
    said = []
    for kind, count in kinds.most_common(MOST_KINDS):
        unused = " and ".join(f"{left[kind, name]:g} {name}s" for name in ("CPU", "GPU") if (kind, name) in left)
        said.append(f"{count} {'node' if count == 1 else 'nodes'} with {kind}{f', {unused} free' if unused else ''}")
    more = f", {len(kinds) - MOST_KINDS} other kinds" if len(kinds) > MOST_KINDS else ""
    return f"the cluster has {'; '.join(said) or 'no node'}{more}"


class Actors:
    """The state of this driver's actors of some classes; each call looks again.

    Args:
        kinds: parts of their class names, as Ray writes them.
    """

    def __init__(self, *kinds: str) -> None:
        self.kinds = kinds
        self._seen: dict[str, tuple[int, str, int]] = {}
        """For each actor that never was up: its restarts, its node, and how often its process died there."""

    def __call__(self) -> Workers:
        """Ask Ray's table of actors."""
        names = {node["NodeID"]: node["NodeManagerHostname"] for node in alive()}
        found = {state: self._in(state) for state in ("PENDING_CREATION", "RESTARTING", "ALIVE")}
        coming = [*found["PENDING_CREATION"], *found["RESTARTING"]]
        constructors = [
            Constructor(f"{one['ActorID']}-{one['Pid']}", names[one["Address"]["NodeID"]], one["Pid"])
            for one in coming
            if one["Pid"] and one["Address"]["NodeID"] in names
        ]
        deaths = self._deaths([one for one in coming if not one["StartTime"]], names)
        return Workers(len(found["ALIVE"]), constructors, deaths)

    def _in(self, state: str) -> list[ActorRow]:
        return [one for one in actors_in(state) if any(kind in one["ActorClassName"] for kind in self.kinds)]

    def _deaths(self, coming: Sequence[ActorRow], alive: Collection[str]) -> int:
        """Count the processes that died before their actor was up, without those of lost nodes."""
        last, self._seen = self._seen, {}
        for one in coming:
            restarts, node, deaths = last.get(one["ActorID"], (0, "", 0))
            if not node or node in alive:
                deaths += one["NumRestarts"] - restarts
            here = one["Address"]["NodeID"] if one["Pid"] else node
            self._seen[one["ActorID"]] = one["NumRestarts"], here, deaths
        return max((deaths for _, _, deaths in self._seen.values()), default=0)
