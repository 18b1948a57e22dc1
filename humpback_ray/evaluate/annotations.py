"""Annotation files: what a judge said about pairs of outputs, in the form of AlpacaEval's `annotations.json`.

A row has `preference`, `generator_1`, `generator_2` and, where known, `instruction`, `output_1`, `output_2`, `dataset`,
`category`, `annotator`, `index` and `glm_preference`. Preferences are 1 (the first output wins) to 2 (the second one),
0 or 1.5 for a draw, null, NaN or −1 (in AlpacaEval's cache) without a verdict; numbers may be text. Any other value is
an error that names the file, the row, the field and the value. Files are JSON, JSON lines or Parquet, compressed or not
(`recordfiles.py`).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from humpback_ray import storage
from humpback_ray.config import ConfigError
from humpback_ray.inputs.forms import keys_of, unwrapped
from humpback_ray.inputs.recordfiles import EMPTY, Record, records
from humpback_ray.inputs.turns import Values

GROUPS = ("dataset", "category")
"""Fields by which win rates are also given."""
_MISSING = -1
"""What AlpacaEval stores where its judge gave no verdict."""
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


def files(argument: str) -> list[storage.InputFile]:
    """Return the files that an argument names; a ConfigError if there is none."""
    if not (found := storage.find(argument)):
        raise ConfigError(f"no file matches {argument}")
    return found


def read_rows(file: storage.InputFile) -> Iterator[Annotation]:
    """Read the rows of one file.

    Raises:
        ConfigError: a row that is no annotation.
    """
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
    index = value.get("index")
    return Annotation(
        generators=(
            _text(value, "generator_1", place),
            _text(value, "generator_2", place) or _text(value, "generator", place),
        ),
        annotator=_text(value, "annotator", place),
        prompt=f"{instruction}\n\n{about}" if about else instruction,
        preference=_preference(value, place),
        characters=(len(outputs[0]), len(outputs[1])),
        empty=(not outputs[0].strip(), not outputs[1].strip()),
        fitted=_number(value, "glm_preference", place, "0 to 1", lambda found: 0 <= found <= 1),
        position=index if isinstance(index, int) and not isinstance(index, bool) else None,
        groups={name: str(value[name]) for name in GROUPS if value.get(name) is not None},
    )


def _preference(value: Values, place: str) -> float:
    """Return a preference from 1 to 2; NaN without a verdict."""
    found = _number(value, "preference", place, "1 to 2, or 0 for a draw", lambda n: n in (0, _MISSING) or 1 <= n <= 2)
    return math.nan if found == _MISSING else found or 1.5


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
