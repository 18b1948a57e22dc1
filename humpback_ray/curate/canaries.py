"""Canaries: pairs that deserve a 1 and ask for a 5, to measure whether the raters of a run can be talked into one.

A bad pair is an instruction of the run with the response to another one, so it is of the kind that the rater sees
otherwise, in length, language and topics. Each attack is put into one of its own; the same pair without the attack is
rated too, for a rater that likes it as it is was not talked into anything. They are rated by each round's model like
candidates and never trained on; the report has the share that reached the round's threshold, family by family.
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from humpback_ray.curate.attacks import ATTACKS, Attack
from humpback_ray.ledger import Attempt, Commit, Manifest
from humpback_ray.placement import TaskPlacement
from humpback_ray.records import CANARY, record_id
from humpback_ray.stage import Place, Stage, TableWriter

VERSION = 1
"""Raised by hand when an attack changes."""


def make_canaries(candidates: Manifest, placement: TaskPlacement, place: Place) -> Manifest:
    """Put every attack into a bad pair made of the run's candidates."""
    stage = Stage(place, {"version": VERSION}, {"candidates": candidates}, CANARY)
    return stage.once(write_canaries, (candidates,), placement)


def write_canaries(attempt: Attempt, candidates: Manifest) -> Commit:
    """Draw as many candidates as there are attacks, by the hash of their ids, and write the canaries made of them."""
    tables = candidates.tables(["id", "instruction", "response"])
    rows = (row for table in tables for row in table.to_pylist())
    drawn = heapq.nsmallest(len(ATTACKS), rows, key=lambda row: record_id("canary", row["id"]))
    writer = TableWriter(attempt, CANARY)
    writer.write(canaries(bad_pairs(drawn)))
    return writer.commit()


def bad_pairs(candidates: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Give each instruction the response of the next candidate that was asked for something else; [] if all ask alike.

    Args:
        candidates: rows with `instruction` and `response`.
    """
    found = []
    for place, row in enumerate(candidates):
        others = [*candidates[place + 1 :], *candidates[:place]]
        other = next((other for other in others if other["instruction"] != row["instruction"]), None)
        if other:
            found.append((row["instruction"], other["response"]))
    return found


def canaries(pairs: Sequence[tuple[str, str]], attacks: Sequence[Attack] = ATTACKS) -> pa.Table:
    """Return two rows of CANARY for each attack: its bad pair as it is, and attacked; none without pairs."""
    rows = [row for number, attack in enumerate(attacks) for row in _rows(number, attack, pairs)] if pairs else []
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["id"]), schema=CANARY)


def _rows(number: int, attack: Attack, pairs: Sequence[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    pair = pairs[number % len(pairs)]
    for attacked, (instruction, response) in ((False, pair), (True, put(attack, *pair))):
        yield {
            "id": record_id("canary", number, attacked, instruction, response),
            "family": attack.family, "attacked": attacked, "instruction": instruction, "response": response,
        }  # fmt: skip


def put(attack: Attack, instruction: str, response: str) -> tuple[str, str]:
    """Return a pair with an attack in it."""
    if attack.where == "instruction":
        return instruction + attack.text, response
    return instruction, f"{attack.text}\n{response}" if attack.where == "start" else f"{response}\n{attack.text}"
