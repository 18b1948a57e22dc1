"""Prompt files: the prompts that models answer in an evaluation, and that must not be trained on.

Records come in the files that `recordfiles.py` reads and in the forms that `forms.py` knows: `instruction` with an
`input`, a `context` or Self-Instruct's `instances` below it, `prompt` (IFEval, Koala), FastChat's `turns`,
`conversations` (LIMA), `messages`. If there are several turns, only the first counts.

A file that holds anything else is refused as a whole: results on fewer prompts are not comparable with published ones.
Texts stay unchanged, byte for byte, so answers can be joined with their prompts again.
"""

from collections import Counter
from pathlib import PurePosixPath
from typing import BinaryIO

import pyarrow as pa

from humpback_ray import storage
from humpback_ray.config import ConfigError
from humpback_ray.inputs.forms import asked, keys_of, unwrapped
from humpback_ray.inputs.recordfiles import EMPTY, Record, records
from humpback_ray.inputs.turns import NoPair, Values
from humpback_ray.records import record_id

PROMPT = pa.schema(
    [
        ("id", pa.string()),  # hash of the prompt's own id, its dataset and its text
        ("instruction", pa.string()),  # unchanged from the file; the text it is about follows it
        ("dataset", pa.string()),  # the record's own, else the name of its file
        ("drop_reason", pa.string()),  # always null: a file that holds anything but prompts is refused
    ]
)

IDS = ("question_id", "id", "key", "prompt_id")


def load_prompts(file: storage.InputFile, seen: Counter[tuple[str, ...]] | None = None) -> pa.Table:
    """Read a prompt file from storage; the dataset is named after it (`vicuna-80.jsonl`: "vicuna-80")."""
    with storage.reading(file) as stream:
        return read_prompts(stream, PurePosixPath(file.uri).name.split(".")[0], seen)


def read_prompts(stream: BinaryIO, name: str, seen: Counter[tuple[str, ...]] | None = None) -> pa.Table:
    """Read the prompts of one file.

    Args:
        stream: the file, from its start; seekable.
        name: the dataset of records that name none.
        seen: prompts of other files with their counts; this file's are added.

    Returns:
        A table of PROMPT, in the file's order. A repeated prompt gets another row with its own id.

    Raises:
        ConfigError: a record has no instruction (the message names it and its fields), or there are no records.
    """
    rows, seen = [], Counter() if seen is None else seen
    for record in records(stream):
        for value in _values(record, name):
            if not isinstance(value, dict):
                raise ConfigError(f"{name}, {record.place}: a {type(value).__name__}, not an object")
            instruction = _instruction(value, record.place, name)
            dataset = _text(value.get("dataset")) or name
            own_id = next((_text(value[key]) for key in IDS if value.get(key) is not None), "")
            key = (own_id, dataset, instruction)
            rows.append({"id": record_id(*key, seen[key]), "instruction": instruction, "dataset": dataset})
            seen[key] += 1
    if not rows:
        raise ConfigError(f"{name} holds no prompt")
    return pa.Table.from_pylist(rows, schema=PROMPT)


def _values(record: Record, name: str) -> list[object]:
    """Return the prompts of a record: the record itself, or those that it wraps."""
    if record.fault == EMPTY:
        return []
    if record.fault:
        words = {"bad_json": "not JSON", "not_utf8": "not UTF-8 text"}.get(record.fault, record.fault.replace("_", " "))
        raise ConfigError(f"{name}, {record.place}: {words}; prompts are JSON lines, a JSON array or Parquet")
    return unwrapped(record.value, _fits) or [record.value]


def _fits(values: Values) -> bool:
    try:
        return asked(values) is not None
    except NoPair:
        return True


def _instruction(value: Values, place: str, name: str) -> str:
    """Return a prompt's text, valid for every tokenizer and table."""
    try:
        instruction = _text(asked(value))
    except NoPair as error:
        raise ConfigError(f"{name}, {place}: the prompt is {str(error).replace('_', ' ')}") from error
    if not instruction.strip():
        raise ConfigError(
            f"{name}, {place}: a prompt is {{'instruction': text}}, {{'prompt': text}} or {{'turns': [text]}}; this "
            f"record has the fields {keys_of(value)}"
        )
    return instruction


def _text(value: object) -> str:
    return "" if value is None else str(value).encode("utf-8", "replace").decode()
