"""The report of the check: JSON lines, the same on stdout and in a file; and the time that is left."""

import json
import time
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO, TypeVar

T = TypeVar("T")


class Report:
    """Writes lines and keeps the clock.

    Args:
        stream: receives the lines.
        file: also receives them; appended to, so it holds the lines of several calls.
        budget_s: seconds from `began` after which nothing new is started.
        began: when the check began, in seconds since the epoch; the processes of one check share it.
    """

    def __init__(self, stream: TextIO, file: Path, budget_s: float, began: float) -> None:
        self.stream, self.file, self.budget_s, self.began = stream, file, budget_s, began
        self.missed: list[str] = []
        """Lines with a problem."""
        file.parent.mkdir(parents=True, exist_ok=True)

    @property
    def at_s(self) -> float:
        """Seconds since the check began."""
        return time.time() - self.began

    @property
    def left_s(self) -> float:
        """Seconds left of the budget."""
        return self.budget_s - self.at_s

    def say(self, part: str, **figures: Any) -> None:
        """Write one line."""
        line = json.dumps({"part": part, "at_s": round(self.at_s, 1), **figures}, default=str)
        print(line, file=self.stream, flush=True)
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(line + "\n")

    def judge(self, part: str, problems: Sequence[str], **figures: Any) -> None:
        """Write one line that says whether its figures are good, and what is wrong with them."""
        if problems:
            self.missed.append(part)
        self.say(part, ok=not problems, **({"problems": problems} if problems else {}), **figures)

    def attempt(self, part: str, work: Callable[[], T]) -> T | None:
        """Return the result of `work`; if it raises, write a line and return None, so the rest still runs."""
        try:
            return work()
        except Exception as error:  # noqa: BLE001 a figure that fails must not stop the others
            self.judge(part, [f"{type(error).__name__}: {error}"[:500]], trace=traceback.format_exc()[-1500:])
        return None

    def fits(self, part: str, seconds: float) -> bool:
        """Return whether there is time for a part of `seconds`; if not, write a line that it is skipped."""
        if seconds <= self.left_s:
            return True
        self.say(part, skipped=f"no time left: it takes about {seconds:.0f} s of the {max(self.left_s, 0):.0f} left")
        return False


def installed(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
