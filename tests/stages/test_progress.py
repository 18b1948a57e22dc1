"""Progress: lines that say how much, how fast and how long, and that survive a failing look-up."""

import logging
import time
from collections.abc import Iterator

import pytest

from humpback_ray.stages import progress
from humpback_ray.stages.progress import Progress, duration


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def lines() -> Iterator[list[str]]:
    handler, logger = Kept(), logging.getLogger("humpback_ray.stages.progress")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler.lines
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_a_line_gives_share_rate_and_concern(lines: list[str]) -> None:
    with Progress("candidates", 1000, done=200, concern=lambda: "; shard 7 is stuck") as counted:
        counted.advance(300, tokens=6000)
        counted._since -= 60
        counted._emit(logging.INFO)
    assert lines[0].startswith(
        "candidates: 500 of 1,000 rows (50%), 1 min 00 s, 5.0 rows/s, 100 tokens/s, 1 min 40 s left"
    )
    assert lines[0].endswith("; shard 7 is stuck")
    assert "left" not in lines[-1]


def test_a_concern_that_cannot_be_looked_up_does_not_end_the_lines(lines: list[str]) -> None:
    def fails() -> str:
        raise OSError("503")

    with Progress("scores", 10, concern=fails) as counted:
        counted._emit(logging.INFO)
        assert counted._loop.is_alive()
    assert "could not look for stuck shards: OSError: 503" in lines[0]


def test_a_step_without_a_total_shows_its_own_report(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.5)
    with Progress("sample/base", None, concern=lambda: ", step 3 of 9"):
        time.sleep(1.5)
    assert lines[0] == "sample/base: at work, 1 s, step 3 of 9"


@pytest.mark.parametrize(("seconds", "words"), [(42.9, "42 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")])
def test_durations_are_written_as_people_read_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words
