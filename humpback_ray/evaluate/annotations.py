"""Annotation files: what a judge said about pairs of outputs, in the form of AlpacaEval's `annotations.json`.

A row has `preference`, `generator_1`, `generator_2` and, where known, `instruction`, `output_1`, `output_2`, `dataset`,
`category`, `annotator`, `index` and `glm_preference`. Preferences are 1 (the first output wins) to 2 (the second one),
0 or 1.5 for a draw, null or NaN without a verdict; numbers may be text. Any other value is an error that names the
file, the row, the field and the value. Files are JSON, JSON lines or Parquet, compressed or not (`recordfiles.py`).

In AlpacaEval the reference is `generator_1`. `references` also decides for rows of several models and for swapped
sides.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from humpback_ray import storage
from humpback_ray.config import ConfigError
from humpback_ray.inputs.forms import keys_of, unwrapped
from humpback_ray.inputs.recordfiles import EMPTY, Record, records
from humpback_ray.inputs.turns import Values

Floats = npt.NDArray[np.float64]

BASELINES = frozenset({"text_davinci_003", "gpt4_1106_preview", "gpt4_turbo"})
"""AlpacaEval's own references: version 1's, and version 2's under its two names."""
GROUPS = ("dataset", "category")
"""Fields by which win rates are also given."""
_NO_VERDICT = {"", "nan", "null", "none"}


class Annotation(NamedTuple):
    """One row of a file."""

    generators: tuple[str, str]
    annotator: str
    prompt: str | None
    preference: float
    """1 to 2, a draw is 1.5; NaN without a verdict."""
    characters: tuple[int, int]
    """Length of each output; 0 for one that is missing."""
    empty: tuple[bool, bool]
    """Outputs that are missing or blank."""
    fitted: float
    """AlpacaEval 2's `glm_preference`, 0 to 1; NaN without one."""
    position: int | None
    """The field `index`: the prompt's number in its collection."""
    groups: Mapping[str, str]


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
    rows_of = {argument: [row for file in _files(argument) for row in _rows(file)] for argument in arguments}
    there = {name for rows in rows_of.values() for row in rows for name in row.generators}
    if unknown := sorted(set(named) - there):
        raise ConfigError(f"the reference {unknown[0]} is in no row; the generators are {', '.join(sorted(there))}")
    return [judged for argument, rows in rows_of.items() for judged in _by_model(argument, rows, named)]


def _by_model(argument: str, rows: Sequence[Annotation], named: Collection[str]) -> Iterator[Judged]:
    sides = references(Counter(row.generators for row in rows), named)
    known = not all(all(row.empty) for row in rows)
    of: defaultdict[tuple[str, str, str], list[tuple[Annotation, int]]] = defaultdict(list)
    for row in rows:
        reference = sides[frozenset(row.generators)]
        mine = 0 if row.generators[1] == reference != row.generators[0] else 1
        of[row.generators[mine], reference, row.annotator].append((row, mine))
    for names, found in of.items():
        yield _judged(argument, names, found, known)


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


def _files(argument: str) -> list[storage.InputFile]:
    if not (found := storage.find(argument)):
        raise ConfigError(f"no file matches {argument}")
    return found


def _rows(file: storage.InputFile) -> Iterator[Annotation]:
    """Read the rows of one file."""
    found, fields = 0, ""
    with storage.reading(file) as stream:
        for record in records(stream):
            for value in _values(record, file.uri):
                place = f"{file.uri}, {record.place}"
                if not isinstance(value, dict):
                    raise ConfigError(f"{place}: a {type(value).__name__}, not an object with a preference")
                found += "preference" in value
                fields = fields or keys_of(value)
                yield _annotation(value, place)
    if not found:
        raise ConfigError(
            f"{file.uri} holds no annotations: no row has the field preference"
            + (f"; the first one has {fields}" if fields else "")
        )


def _values(record: Record, uri: str) -> list[object]:
    if record.fault == EMPTY:
        return []
    if record.fault:
        raise ConfigError(
            f"{uri}, {record.place}: {record.fault.replace('_', ' ')}; annotations are a JSON array, JSON lines or "
            "Parquet"
        )
    return unwrapped(record.value, lambda values: "preference" in values) or [record.value]


def _annotation(value: Values, place: str) -> Annotation:
    outputs = [_text(value, f"output_{side}", place) for side in (1, 2)]
    instruction, about = _text(value, "instruction", place), _text(value, "input", place)
    preference = _number(
        value, "preference", place, "1 to 2, or 0 for a draw", lambda found: found == 0 or 1 <= found <= 2
    )
    index = value.get("index")
    return Annotation(
        generators=(
            _text(value, "generator_1", place) or "reference",
            _text(value, "generator_2", place) or _text(value, "generator", place) or "model",
        ),
        annotator=_text(value, "annotator", place),
        prompt=f"{instruction}\n\n{about}" if about else instruction,
        preference=preference or 1.5,
        characters=(len(outputs[0]), len(outputs[1])),
        empty=(not outputs[0].strip(), not outputs[1].strip()),
        fitted=_number(value, "glm_preference", place, "0 to 1", lambda found: 0 <= found <= 1),
        position=index if isinstance(index, int) and not isinstance(index, bool) else None,
        groups={name: str(value[name]) for name in GROUPS if value.get(name) is not None},
    )


def _text(value: Values, field: str, place: str) -> str:
    """Return a field's text; "" if it is missing."""
    found = value.get(field)
    if found is None or (isinstance(found, float) and math.isnan(found)):
        return ""
    if not isinstance(found, str):
        raise ConfigError(f"{place}: {field} is {found!r:.60}, not text")
    return found


def _number(value: Values, field: str, place: str, range_: str, fits: Callable[[float], bool]) -> float:
    """Return a field's number, which may be written as text; NaN if it is missing."""
    found = value.get(field)
    if found is None or (isinstance(found, str) and found.strip().lower() in _NO_VERDICT):
        return math.nan
    try:
        number = math.inf if isinstance(found, bool) else float(found)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.inf
    if not (math.isnan(number) or fits(number)):
        raise ConfigError(f"{place}: {field} is {found!r:.60}; it must be a number from {range_}, or null")
    return number


def _judged(source: str, names: tuple[str, str, str], rows: Sequence[tuple[Annotation, int]], known: bool) -> Judged:
    """Lay out the rows of one model; each comes with the side that the model is on."""

    def column(of: Callable[[Annotation, int], float]) -> Floats:
        return np.array([of(row, mine) for row, mine in rows], dtype=np.float64)

    def turned(share: float, mine: int) -> float:
        return share if mine else 1 - share

    length = 1.0 if known else math.nan
    return Judged(
        *names,
        source,
        prompts=[row.prompt or f"row {number} of {source}" for number, (row, _) in enumerate(rows, 1)],
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
