"""How long shards take, measured over the passes of a submission: the expected time and the limit."""

import bisect
import threading
from collections.abc import Mapping

from humpback_ray.placement import PoolPlacement


class Pace:
    """How long shards take: the median of seconds per unit of weight (a row, or a byte of a file)."""

    def __init__(self, placement: PoolPlacement, weights: Mapping[str, float]) -> None:
        self.placement, self.weights = placement, weights
        self._rates: list[float] = []
        """Seconds per unit of weight of each shard that ended, sorted."""
        self._lock = threading.Lock()

    def ended(self, weight: float, seconds: float) -> None:
        """Record that a shard, or a part of one, ended."""
        if weight > 0:
            with self._lock:
                bisect.insort(self._rates, seconds / weight)

    def expected_s(self, weight: float) -> float | None:
        """Return the expected seconds for this weight, by the median; None while nothing has ended."""
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
        """Tell whether a shard should be started again."""
        factor, expected = self.placement.straggler_factor, self.expected_s(weight)
        if factor is None or expected is None:
            return False
        return age_s > max(factor * expected, self.placement.limit_floor_s / 10)
