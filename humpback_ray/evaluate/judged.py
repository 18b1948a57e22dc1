"""Judged: each model's annotations as columns, whichever side of a row the model is on.

In AlpacaEval the reference is `generator_1`. `references` also decides for rows of several models and for swapped
sides.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from humpback_ray.config import ConfigError
from humpback_ray.evaluate.annotations import GROUPS, Annotation, files, read_rows

Floats = npt.NDArray[np.float64]

BASELINES = frozenset({"text_davinci_003", "gpt4_1106_preview", "gpt4_turbo"})
"""AlpacaEval's own references: version 1's, and version 2's under its two names."""


@dataclass(frozen=True)
class Judged:
    """One model's rows against one reference by one judge, as columns in the order of the files."""

    model: str
    reference: str
    annotator: str
    source: str
    """The argument that named the files."""
    prompts: Sequence[str]
    values: Floats
    """v of each row: 1 if the model's output wins, 0 if the reference's does; NaN without a verdict."""
    characters: Floats
    """Length of the model's output; 0 if it is missing, NaN where the files hold no outputs."""
    reference_characters: Floats
    empty: npt.NDArray[np.bool_]
    """Rows whose output is missing or blank; never set where the files hold no outputs."""
    fitted: Floats
    indices: Sequence[int | None]
    groups: Mapping[str, Sequence[str]]
    swapped: int
    """Rows in which the model is `generator_1`."""


def read_all(arguments: Iterable[str], named: Collection[str] = ()) -> list[Judged]:
    """Read annotation files; the files of one argument count as one collection of rows.

    Args:
        arguments: each a path, directory, glob or s3:// URI, as in `storage.find`; repeated ones count once.
        named: generators that are references.

    Raises:
        ConfigError: no such file, a row that is no annotation, or a named reference that is in no row.
        OSError: storage cannot be read.
    """
    rows_of = {argument: [row for file in files(argument) for row in read_rows(file)] for argument in arguments}
    there = {name for rows in rows_of.values() for row in rows for name in row.generators}
    if unknown := sorted(set(named) - there):
        raise ConfigError(f"the reference {unknown[0]} is in no row; the generators are {', '.join(sorted(there))}")
    return [judged for argument, rows in rows_of.items() for judged in _by_model(argument, rows, named)]


def _by_model(argument: str, rows: Sequence[Annotation], named: Collection[str]) -> Iterator[Judged]:
    rows = _named(rows)
    sides = references(Counter(row.generators for row in rows), named)
    known = not all(all(row.empty) for row in rows)
    of: defaultdict[tuple[str, str, str], list[tuple[Annotation, int]]] = defaultdict(list)
    for row in rows:
        reference = sides[frozenset(row.generators)]
        mine = 0 if row.generators[1] == reference != row.generators[0] else 1
        of[row.generators[mine], reference, row.annotator].append((row, mine))
    for names, found in of.items():
        yield _judged(argument, names, found, known)


def _named(rows: Sequence[Annotation]) -> list[Annotation]:
    """Return rows in which every generator and, if one judged each pair of models, every annotator has a name.

    AlpacaEval leaves out the annotator of rows without a verdict.
    """
    first, second = (_only(row.generators[side] for row in rows) for side in (0, 1))
    rows = [
        row._replace(generators=(row.generators[0] or first or "reference", row.generators[1] or second or "model"))
        for row in rows
    ]
    annotators: defaultdict[frozenset[str], set[str]] = defaultdict(set)
    for row in rows:
        annotators[frozenset(row.generators)].add(row.annotator)
    return [row._replace(annotator=row.annotator or _only(annotators[frozenset(row.generators)])) for row in rows]


def _only(names: Iterable[str]) -> str:
    """Return the name that all have that have one; "" if there are several."""
    found = set(names) - {""}
    return found.pop() if len(found) == 1 else ""


def references(pairs: Counter[tuple[str, str]], named: Collection[str] = ()) -> dict[frozenset[str], str]:
    """Return the reference of each pair of generators.

    The first rule that leaves one generator of a pair decides: it is named; it is in every row and mostly
    `generator_1`; it is one of AlpacaEval's references; it is in every row; it is `generator_1` in most rows.

    Args:
        pairs: number of rows by (`generator_1`, `generator_2`).
        named: generators that the user calls references.

    Raises:
        ConfigError: none decides.
    """
    first, rows = Counter[str](), sum(pairs.values())
    for (one, _), count in pairs.items():
        first[one] += count
    common = set.intersection(*(set(pair) for pair in pairs)) if len({frozenset(pair) for pair in pairs}) > 1 else set()
    rules = (set(named), {name for name in common if 2 * first[name] > rows}, BASELINES, common)
    return {pair: _reference(pair, rules, pairs) for pair in {frozenset(pair) for pair in pairs}}


def _reference(pair: frozenset[str], rules: Iterable[Collection[str]], pairs: Counter[tuple[str, str]]) -> str:
    if len(pair) == 1:
        return next(iter(pair))
    for rule in rules:
        if len(found := pair & set(rule)) == 1:
            return next(iter(found))
    one, other = sorted(pair)
    if pairs[one, other] == pairs[other, one]:
        raise ConfigError(
            f"{one} and {other} are generator_1 in {pairs[one, other]} rows each, so nothing says which is the "
            f"reference; add --reference {one}, or --reference {other}"
        )
    return one if pairs[one, other] > pairs[other, one] else other


def _judged(source: str, names: tuple[str, str, str], rows: Sequence[tuple[Annotation, int]], known: bool) -> Judged:
    """Lay out the rows of one model; each comes with the side that the model is on."""

    def column(of: Callable[[Annotation, int], float]) -> Floats:
        return np.array([of(row, mine) for row, mine in rows], dtype=np.float64)

    def turned(share: float, mine: int) -> float:
        return share if mine else 1 - share

    length = 1.0 if known else np.nan
    return Judged(
        *names,
        source,
        prompts=[row.prompt or f"row {number} of {names[0]} in {source}" for number, (row, _) in enumerate(rows, 1)],
        values=column(lambda row, mine: turned(row.preference - 1, mine)),
        characters=column(lambda row, mine: row.characters[mine] * length),
        reference_characters=column(lambda row, mine: row.characters[1 - mine] * length),
        empty=np.array([known and row.empty[mine] for row, mine in rows], dtype=np.bool_),
        fitted=column(lambda row, mine: turned(row.fitted, mine)),
        indices=[row.position for row, _ in rows],
        groups={
            name: [row.groups.get(name, "(none)") for row, _ in rows]
            for name in GROUPS
            if any(name in row.groups for row, _ in rows)
        },
        swapped=sum(not mine for _, mine in rows),
    )
