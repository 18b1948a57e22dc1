"""The running attempts of a pass, counted event by event, equal those of a full recount."""

from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.stages.flights import Flight, Flights

SHARDS = [f"{number:06d}" for number in range(4)]
MANY = 20_000
PATIENCE_S = 60


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
        assert flights.open_shards == len(set(SHARDS) - ended)
        assert flights.is_over() == (bool(again) and not seen and not set(SHARDS) - ended - begun)
        oldest = flights.oldest()
        assert (oldest[1] if oldest else None) == min((seen[flight] for flight in newest.values()), default=None)
        assert [shard for shard, _, _ in flights.candidates(len(SHARDS))] == sorted(set(SHARDS) - ended - again)
