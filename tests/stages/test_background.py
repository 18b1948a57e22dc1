"""Loops in the background go on whatever a step raises, and say so once a minute."""

import threading

from humpback_ray.stages import background
from humpback_ray.stages.background import repeat
from tests.conftest import Said

PATIENCE_S = 60


def test_a_loop_goes_on_after_any_error_and_logs_the_first_with_its_traceback(said: Said) -> None:
    calls, end, enough = [], threading.Event(), threading.Event()

    def step() -> None:
        calls.append(len(calls))
        if len(calls) > 20:
            enough.set()
        raise KeyError(f"number {len(calls)}")

    thread = repeat("looking", step, lambda: 0.001, end, first=True)
    assert enough.wait(PATIENCE_S)
    end.set()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    [(level, message)] = said.records
    assert (level, message) == ("WARNING", "looking failed and will be tried again: 'number 1'")


def test_after_a_minute_it_says_how_many_errors_it_did_not_log(said: Said) -> None:
    complaints = background.Complaints("counting")
    for number in range(5):
        complaints.note(OSError(f"refused {number}"))
    assert complaints._last is not None
    complaints._last -= background.COMPLAIN_EVERY_S
    complaints.note(OSError("refused 5"))
    assert [text for _, text in said.records] == [
        "counting failed and will be tried again: refused 0",
        "counting failed and will be tried again: refused 5 (4 more since the last time)",
    ]
