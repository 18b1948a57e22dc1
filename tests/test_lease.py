"""One driver at a time, a dead one is replaced, an overtaken one may not publish."""

import threading
import time
from pathlib import Path

import pytest

from humpback_ray.lease import Lease, LeaseHeld, LeaseLost


def lease(path: Path, who: str) -> Lease:
    return Lease(str(path), who, beat_s=0.1, stale_s=0.8)


def test_a_second_driver_is_told_who_holds_it(tmp_path: Path) -> None:
    with lease(tmp_path, "first"), pytest.raises(LeaseHeld, match="submission first"), lease(tmp_path, "second"):
        pass


def test_a_released_lease_is_taken_at_once(tmp_path: Path) -> None:
    with lease(tmp_path, "first"):
        pass
    since = time.monotonic()
    with lease(tmp_path, "second") as second:
        second.check()
    assert time.monotonic() - since < 0.8


def test_a_driver_that_stands_still_is_overtaken_and_may_not_publish(tmp_path: Path) -> None:
    still = lease(tmp_path, "first")
    still.__enter__()
    still._end.set()
    with lease(tmp_path, "second") as second:
        second.check()
        with pytest.raises(LeaseLost, match="epoch 1 was overtaken by epoch 2"):
            still.check()


def test_of_many_drivers_that_reach_for_a_dead_lease_one_gets_it(tmp_path: Path) -> None:
    dead = lease(tmp_path, "dead")
    dead.__enter__()
    dead._end.set()
    holding, most, told = 0, 0, []
    gate = threading.Lock()

    def work(name: str) -> None:
        nonlocal holding, most
        try:
            with lease(tmp_path, name):
                with gate:
                    holding += 1
                    most = max(most, holding)
                time.sleep(1.5)
                with gate:
                    holding -= 1
        except LeaseHeld:
            told.append(name)

    threads = [threading.Thread(target=work, args=(f"driver {i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert len(told) == 5
