"""Instructions that must be dropped, instructions that must stay, and their segments."""

import json
from pathlib import Path
from typing import Any, get_args

from humpback_ray.prompts.instructions import InstructionFilters, Reason

SEGMENT = (
    "A weir is a low dam built across a river to raise the level of the water upstream, or to measure how much of it "
    "flows past. Water runs over the top of a weir before it goes on downstream. The first ones were made of stakes "
    "and brushwood, to catch fish; most that are built today are made of concrete, and many have a ladder for fish."
)
GERMAN = (
    "Ein Wehr ist eine niedrige Staumauer, die quer durch einen Fluss gebaut wird, um den Wasserstand zu heben oder um "
    "zu messen, wie viel davon vorbeifließt. Das Wasser läuft über die Krone, bevor es weiter flussabwärts fließt. Die "
    "ersten waren aus Pfählen und Reisig und sollten Fische fangen; die meisten heutigen sind aus Beton."
)


def rows(name: str) -> list[Any]:
    """Read a file of this folder, one JSON value per line."""
    return [json.loads(line) for line in (Path(__file__).parent / name).read_text().splitlines()]


def without(reason: str) -> InstructionFilters:
    """Return the filters with one rule turned off."""
    return InstructionFilters(reasons=tuple(kept for kept in get_args(Reason) if kept != reason))
