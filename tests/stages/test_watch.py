"""The watch over a pass: what is on its way, counted event by event, the same at any number of shards."""

import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.placement import PoolPlacement
from humpback_ray.stages.ledger import Ledger
from humpback_ray.stages.shards import Shard
from humpback_ray.stages.watch import Flight, Flights, Pace, Watch
from tests.conftest import Said
from tests.jobs.heads import wait_for

SHARDS = [f"{number:06d}" for number in range(4)]
MANY = 20_000
PATIENCE_S = 60


def watch(folder: Path, count: int) -> Watch:
    shards = [Shard(f"{number:06d}", slices=(("f", 0, 10),)) for number in range(count)]
    placement = PoolPlacement(max_replicas=100, limit_floor_s=4)
    pace = Pace(placement, {shard.name: 10 for shard in shards})
    ledger = Ledger(str(folder), "first")
    return Watch("stage", ledger, shards, pace, lambda *_: None, lambda: None, lambda _: None)


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("note"), st.lists(st.tuples(st.sampled_from(SHARDS), st.integers(1, 3), st.booleans()))),
        st.tuples(st.sampled_from(["commit", "close", "again"]), st.sampled_from(SHARDS)),
    )
)


@given(EVENTS)
def test_flights_are_those_of_a_recount_after_every_event(events: list[tuple[str, object]]) -> None:
    flights = Flights(SHARDS)
    seen: dict[Flight, float] = {}
    known: set[Flight] = set()
    failed: set[Flight] = set()
    begun: set[str] = set()
    ended: set[str] = set()
    again: set[str] = set()
    for now, (kind, value) in enumerate(events, start=1):
        if isinstance(value, list):
            listed = {(shard, number) for shard, number, _ in value} - known
            broken = {(shard, number) for shard, number, fails in value if fails} - failed
            flights.note(sorted(listed), sorted(broken), float(now))
            known |= listed
            failed |= broken
            begun |= {shard for shard, _ in listed if shard not in ended}
            seen |= {flight: float(now) for flight in listed - failed if flight[0] not in ended}
            seen = {flight: since for flight, since in seen.items() if flight not in failed}
        elif kind == "again":
            flights.started_again(str(value))
            again.add(str(value))
        else:
            flights.commit([str(value)]) if kind == "commit" else flights.close(str(value))
            ended.add(str(value))
            seen = {flight: since for flight, since in seen.items() if flight[0] not in ended}
        newest = {shard: (shard, number) for shard, number in sorted(seen)}
        expected = {flight: since for flight, since in seen.items() if flight in newest.values() or flight[0] in again}
        assert dict(flights.on_their_way()) == expected
        assert flights.left == len(set(SHARDS) - ended)
        assert flights.is_over() == (bool(again) and not seen and not set(SHARDS) - ended - begun)
        oldest = flights.oldest()
        assert (oldest[1] if oldest else None) == min((seen[flight] for flight in newest.values()), default=None)
        assert [shard for shard, _, _ in flights.candidates(len(SHARDS))] == sorted(set(SHARDS) - ended - again)


def test_the_events_of_twenty_thousand_shards_cost_a_moment_each(tmp_path: Path) -> None:
    """Recounting at every event, they took minutes."""
    watched = watch(tmp_path, MANY)
    names = list(watched.shards)
    since = time.process_time()
    watched.flights.note([(name, 1) for name in names], [], (begun := time.monotonic()))
    for number, name in enumerate(names[: MANY - 300]):
        watched.ended(name, "", 5.0 + number % 7)
    for flight, seen in watched.flights.on_their_way():
        assert seen == begun
        assert watched.pace.limit_s(watched.pace.weights[flight[0]]) > 0
        watched.concern()
    assert watched.flights.left == 300
    assert time.process_time() - since < 10


def test_the_median_is_that_of_all_that_ended() -> None:
    pace = Pace(PoolPlacement(), {})
    assert pace.expected_s(1) is None
    for seconds, median in ((9, 9), (1, 5), (2, 2), (4, 3)):
        pace.ended(2, 2 * seconds)
        assert pace.expected_s(10) == 10 * median


def test_a_watch_outlives_stray_files_and_unexpected_errors(tmp_path: Path, said: Said) -> None:
    watched = watch(tmp_path, 2)
    with watched:
        (tmp_path / "attempts/000000").mkdir(parents=True)
        for name in (".nfs0000012", "notes.json", "1.tmp", "0001.json.swp"):
            (tmp_path / "attempts/000000" / name).write_text("")
        (tmp_path / "commits").mkdir()
        (tmp_path / "commits/.DS_Store").write_text("")
        watched._commit = None  # type: ignore[assignment] # pyright: ignore[reportAttributeAccessIssue]
        wait_for(lambda: said.records, "a complaint", PATIENCE_S)
        del watched._commit
        watched.ledger.begin("000001")
        wait_for(lambda: watched.flights.on_their_way(), "the attempt", PATIENCE_S)
        assert [flight for flight, _ in watched.flights.on_their_way()] == [("000001", 1)]
    assert "looking after the attempts failed and will be tried again" in said.records[0][1]
