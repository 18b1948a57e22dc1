"""The report of the check: JSON lines, the same on stdout and in a file; and the time that is left."""

import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
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
        gpu: whether there is a GPU; without one, goals are listed and none is missed.
    """

    def __init__(self, stream: TextIO, file: Path, budget_s: float, began: float, gpu: bool = False) -> None:
        self.stream, self.file, self.budget_s, self.began, self.gpu = stream, file, budget_s, began, gpu
        self.missed: list[str] = []
        """Lines with a problem."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self._before = file.stat().st_size if file.exists() else 0

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

    def judge(
        self, part: str, problems: Sequence[str], goals: Mapping[str, float] | None = None, **figures: Any
    ) -> None:
        """Write one line that says whether its figures are good, and what is wrong with them.

        Args:
            part: name of the line.
            problems: what is wrong; empty if nothing is.
            goals: least values of figures of speed, by figure; one that is missed is reported and no failure.
            figures: of the line.
        """
        if problems:
            self.missed.append(part)
        wrong = {"problems": problems} if problems else {}
        aims = {"goals": goals, "missed_goals": self._short_of(goals, figures)} if goals else {}
        self.say(part, ok=not problems, **wrong, **figures, **aims)

    def _short_of(self, goals: Mapping[str, float], figures: Mapping[str, Any]) -> list[str]:
        """Return the goals that figures do not reach."""
        short = {name: least for name, least in goals.items() if not (figures[name] or 0) >= least}
        return [f"{name} is {figures[name]}, the goal is {least:g}" for name, least in short.items()] * self.gpu

    def missed_goals(self) -> dict[str, list[str]]:
        """Return the goals that this check's lines in the file have missed, by line."""
        with self.file.open("rb") as file:
            file.seek(self._before)
            lines = [json.loads(line) for line in file]
        return {line["part"]: line["missed_goals"] for line in lines if line.get("missed_goals")}

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
