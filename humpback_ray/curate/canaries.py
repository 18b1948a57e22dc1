"""Canaries: pairs that deserve a 1 and ask for a 5, to measure whether the raters of a run can be talked into it.

A bad pair is an instruction of the run with the response to another one, so its length, language and topics are those
that the rater usually sees. Each attack goes into three different pairs: at the start of one, in the middle of another
and at the end of the third. The same pairs are rated without the attack too, since a rater that likes a pair anyway was
not talked into anything. Each round's model rates canaries like candidates, and nothing is trained on them; the report
shows the share that reached the round's threshold, by family and by place.

A judge that obeys everything it reads (obedient.py) rates them too, with the run's rating prompt and tokenizer. An
attack that works on this judge could work on any model: only the model's own judgment then separates the page's words
from ours.
"""

import asyncio
import heapq
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TypedDict

import pyarrow as pa

from humpback_ray import storage
from humpback_ray.curate.attacks import ATTACKS, Attack
from humpback_ray.curate.obedient import obeyed
from humpback_ray.curate.rounds import CurateConfig
from humpback_ray.curate.scorers import Chained, SingleScorer
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.records import CANARY, record_id
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.models import Model
from humpback_ray.stages.outputs import TableWriter
from humpback_ray.stages.stage import Place, Stage

VERSION = 3
"""Bumped by hand when an attack changes."""
PLACES = ("start", "middle", "end")
"""Positions of an attack in its text; each gets its own pair."""


def make_canaries(config: CurateConfig, chat: ChatRecipe, candidates: Manifest, base: Model, place: Place) -> Manifest:
    """Put every attack into a bad pair made of the run's candidates.

    Args:
        config: of the run; the obedient judge gets the prompt of its scorer, or of the last scorer of a chain.
        chat: the layouts.
        candidates: a stage with the schema CANDIDATE.
        base: the base model; all raters use its tokenizer.
        place: of the stage.
    """
    scorer = config.recipe.scorer
    asks = scorer.then if isinstance(scorer, Chained) else scorer
    identity = {"version": VERSION, "scorer": asks.model_dump(mode="json"), "chat": chat.model_dump(mode="json")}
    stage = Stage(place, identity, {"candidates": candidates, "base": base.source}, CANARY)
    return stage.once(write_canaries, (candidates, asks, chat, base.directory), config.select_placement)


def write_canaries(
    attempt: Attempt, candidates: Manifest, scorer: SingleScorer, chat: ChatRecipe, base: storage.Directory
) -> Commit:
    """Draw a candidate for each attack and place, by the hash of their ids, and write the canaries."""
    from transformers import AutoTokenizer

    tables = candidates.tables(["id", "instruction", "response"])
    rows = (row for table in tables for row in table.to_pylist())
    drawn = heapq.nsmallest(len(ATTACKS) * len(PLACES), rows, key=lambda row: record_id("canary", row["id"]))
    made = canaries(bad_pairs(drawn))
    tokenizer = AutoTokenizer.from_pretrained(storage.local_directory(base))
    scores = asyncio.run(obeyed(made.to_pylist(), scorer, chat, tokenizer))
    column = made.schema.get_field_index("obedient_score")
    writer = TableWriter(attempt, CANARY)
    writer.write(made.set_column(column, CANARY.field(column), pa.array(scores, pa.float64())))
    return writer.commit()


def bad_pairs(candidates: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """Give each instruction the response of the next candidate with a different instruction; [] if all are the same.

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


class CanaryRow(TypedDict):
    """A row of CANARY without the obedient judge's score."""

    id: str
    family: str
    place: str
    attacked: bool
    instruction: str
    response: str


def canaries(pairs: Sequence[tuple[str, str]], attacks: Sequence[Attack] = ATTACKS) -> pa.Table:
    """Return rows of CANARY: for each attack and place, its bad pair with and without the attack; none if no pairs."""
    placed = list(enumerate(product(attacks, PLACES))) if pairs else []
    rows = [row for number, (attack, place) in placed for row in _rows(number, attack, place, pairs)]
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["id"]), schema=CANARY)


def _rows(number: int, attack: Attack, place: str, pairs: Sequence[tuple[str, str]]) -> Iterator[CanaryRow]:
    pair = pairs[number % len(pairs)]
    for attacked, (instruction, response) in ((False, pair), (True, put(attack, place, *pair))):
        yield {
            "id": record_id("canary", number, attacked, instruction, response), "family": attack.family,
            "place": place, "attacked": attacked, "instruction": instruction, "response": response,
        }  # fmt: skip


def put(attack: Attack, place: str, instruction: str, response: str) -> tuple[str, str]:
    """Return a pair with an attack in one of its texts; "middle" puts it between two lines or words."""
    text = instruction if attack.target == "instruction" else response
    parts = {"start": ("", text), "middle": _halves(text), "end": (text, "")}[place]
    attacked = "\n".join(filter(None, (parts[0], attack.text, parts[1])))
    return (attacked, response) if attack.target == "instruction" else (instruction, attacked)


def _halves(text: str) -> tuple[str, str]:
    """Cut a text in two at the line break nearest to its middle; without one, at a space, or between characters."""
    middle = len(text) / 2
    for break_ in ("\n", " "):
        places = [place for place, sign in enumerate(text) if sign == break_ and text[:place].strip()]
        if places:
            place = min(places, key=lambda place: abs(place - middle))
            return text[:place], text[place + 1 :]
    return text[: len(text) // 2], text[len(text) // 2 :]
