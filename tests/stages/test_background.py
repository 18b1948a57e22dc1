"""Background loops continue after any error of a step, and log errors once a minute."""

import threading

from humpback_ray.stages import background
from humpback_ray.stages.background import repeat
from tests.conftest import Said

PATIENCE_S = 60


def test_a_loop_continues_after_any_error_and_logs_the_first_with_its_traceback(said: Said) -> None:
    calls, enough = [], threading.Event()

    def step() -> None:
        calls.append(len(calls))
        if len(calls) > 20:
            enough.set()
        raise KeyError(f"number {len(calls)}")

    loop = repeat("looking", step, lambda: 0.001)
    assert enough.wait(PATIENCE_S)
    loop.stop(PATIENCE_S)
    assert not loop.is_alive()
    [(level, message)] = said.records
    assert (level, message) == ("WARNING", "looking failed and will be tried again: 'number 1'")


def test_a_stopped_loop_takes_no_further_step_and_waits_as_long_as_asked_for_the_running_one() -> None:
    begun, let_go, calls = threading.Event(), threading.Event(), []

    def step() -> None:
        calls.append(len(calls))
        begun.set()
        let_go.wait(PATIENCE_S)

    loop = repeat("looking", step, lambda: 0.001)
    assert begun.wait(PATIENCE_S)
    loop.stop(0)
    assert loop.is_alive(), "the step on its way is not ended"
    let_go.set()
    loop.stop()
    assert not loop.is_alive()
    assert calls == [0]


def test_a_pause_ends_at_once_when_the_loop_is_stopped() -> None:
    loop = repeat("looking", lambda: None, lambda: 10 * PATIENCE_S)
    loop.stop(PATIENCE_S)
    assert not loop.is_alive()


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
