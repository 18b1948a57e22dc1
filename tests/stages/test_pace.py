"""The median time of shards."""

from humpback_ray.placement import PoolPlacement
from humpback_ray.stages.pace import Pace

SHARDS = [f"{number:06d}" for number in range(4)]
MANY = 20_000
PATIENCE_S = 60


def test_the_median_is_over_all_shards_that_ended() -> None:
    pace = Pace(PoolPlacement(), {})
    assert pace.expected_s(1) is None
    for seconds, median in ((9, 9), (1, 5), (2, 2), (4, 3)):
        pace.ended(2, 2 * seconds)
        assert pace.expected_s(10) == 10 * median
