"""Seed pairs: instructions and responses that people wrote.

Two forms come in. Open Assistant trees (one message tree per line of JSONL, as exported): Humpback takes the first turn
alone, in English, with the reply that people ranked best (Li et al. 2023, arXiv:2308.06259, section 3.1); deleted and
synthetic messages fall. JSONL pairs: one pair per line under configurable names. A line with a `prompt` object is a
tree, any other is a pair, so both forms may stand in one file.

One row per tree or line, kept or with its reason. In Open Assistant's export replies without a rival carry no rank,
and so do a few groups that nobody ranked; neither was *chosen* by people, so neither counts as rank 0. (Of 95
non-synthetic first turns looked at, one is such a group, of three replies; no first turn had an only reply, while all
40 only replies deeper down are unranked.) `accept_unranked_only_reply` lets an only reply in.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
from pydantic import Field

from humpback_ray.config import Config
from humpback_ray.corpus.readers.base import Inflated, clean, content_id
from humpback_ray.corpus.readers.jsonl import json_object
from humpback_ray.inventory import Inventory
from humpback_ray.ledger import Attempt, Commit, Manifest
from humpback_ray.placement import TaskPlacement
from humpback_ray.records import PAIR, record_id
from humpback_ray.stage import Place, Stage, TableWriter
from humpback_ray.storage import InputFile, reading


class SeedRecipe(Config):
    """What a seed pair is. Hashed into the manifest: a change here is another seed."""

    version: int = 1
    """Raised by hand when the meaning of this module changes."""

    inputs: list[str] | None = None
    """Paths, globs or `s3://` URIs of JSONL(.gz) files; None: the sample's pairs. Enters the fingerprint as what the
    files hold, not as where they are."""

    language: str | None = "en"
    """Language of prompt and reply in trees; None: any. Pairs are taken as they come."""

    accept_unranked_only_reply: bool = False
    """Whether a tree's only usable reply counts without a rank."""

    instruction_field: str = "instruction"
    """Of JSONL pairs: what was asked."""

    input_field: str | None = "input"
    """Of JSONL pairs: what the instruction is about, set under it where it is not empty; None: never."""

    response_field: str = "output"
    """Of JSONL pairs: what was answered."""

    max_line_bytes: int = Field(default=20_000_000, ge=1)
    """A longer line is dropped as `too_large`."""


class SeedConfig(Config):
    """The `seed` stage. A few thousand pairs: one task reads them all."""

    recipe: SeedRecipe = Field(default_factory=SeedRecipe)
    placement: TaskPlacement = Field(default_factory=TaskPlacement)


def make_seed(config: SeedConfig, files: Inventory, place: Place) -> Manifest:
    """Read the seed files in the order of their names; a pair that several hold is kept once."""
    identity = config.recipe.model_dump(mode="json", exclude={"inputs"})
    stage = Stage(place, identity, {"files": files}, PAIR)
    return stage.once(collect, (config.recipe, files.files), config.placement)


def collect(attempt: Attempt, recipe: SeedRecipe, files: Sequence[InputFile]) -> Commit:
    """Write a table of pairs per file, ids unique over all of them."""
    writer, seen = TableWriter(attempt, PAIR), Counter[str]()
    for file in files:
        with reading(file) as stream:
            table = seed_file(stream, file.uri, recipe, seen)
        writer.write(table)
    return writer.commit()


class _Dropped(ValueError):
    """The line gives no pair; the argument is the reason."""


def seed_file(stream: BinaryIO, name: str, recipe: SeedRecipe, seen: Counter[str] | None = None) -> pa.Table:
    """Return the pairs of one file, schema PAIR; ids are unique within the table.

    A pair that the file holds twice is kept once; its copies are `repeated_record`. An unreadable gzip stream ends the
    file with `archive_truncated` or `archive_corrupt`, an empty file is `archive_empty`.

    Args:
        stream: the file, from its start.
        name: names the file in nothing but errors; ids are made of content.
        recipe: what a seed pair is.
        seen: ids of other files' rows, with how often they came; this file's are added.
    """
    del name
    seen = Counter() if seen is None else seen
    rows = []
    for row in _rows(stream, recipe):
        copies = seen[row["id"]]
        seen[row["id"]] += 1
        if copies:
            row = _row(record_id(row["id"], "copy", copies), reason="repeated_record")
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=PAIR)


def _rows(stream: BinaryIO, recipe: SeedRecipe) -> Iterator[dict[str, Any]]:
    source = Inflated(stream)
    trail = b""
    for line in source.lines(recipe.max_line_bytes):
        if not line.strip():
            continue
        trail = content_id(trail, line).encode()
        try:
            if len(line) > recipe.max_line_bytes:
                raise _Dropped("too_large")
            instruction, response = _pair(line, recipe)
        except _Dropped as dropped:
            yield _row(content_id(line), reason=str(dropped))
            continue
        yield _row(record_id("seed", instruction, response), instruction, response)
    fault = source.fault or ("empty" if source.tell() == 0 else None)
    if fault:
        yield _row(content_id(b"archive", trail, fault.encode()), reason=f"archive_{fault}")


def _row(row_id: str, instruction: str = "", response: str = "", reason: str | None = None) -> dict[str, Any]:
    pair = {"id": row_id, "instruction": instruction, "response": response}
    return {**pair, "source": "seed", "score": None, "drop_reason": reason}


def _pair(line: bytes, recipe: SeedRecipe) -> tuple[str, str]:
    values = json_object(line)
    if values is None:
        raise _Dropped("bad_json")
    prompt = values.get("prompt")
    if isinstance(prompt, dict):
        return _first_turn(prompt, recipe)
    instruction, response = _text(values, recipe.instruction_field), _text(values, recipe.response_field)
    if recipe.instruction_field not in values or recipe.response_field not in values:
        raise _Dropped("no_pair")
    about = _text(values, recipe.input_field) if recipe.input_field else ""
    if not instruction or not response:
        raise _Dropped("empty")
    return f"{instruction}\n\n{about}" if about else instruction, response


def _first_turn(prompt: dict[str, Any], recipe: SeedRecipe) -> tuple[str, str]:
    _check(prompt, "prompter", recipe)
    children = prompt.get("replies")
    replies = [reply for reply in children if isinstance(reply, dict)] if isinstance(children, list) else []
    best = [reply for reply in replies if _rank(reply) == 0]
    if not best and recipe.accept_unranked_only_reply and len(replies) == 1 and _rank(replies[0]) is None:
        best = replies
    if not best:
        raise _Dropped("no_rank_0_reply" if replies else "no_reply")
    _check(best[0], "assistant", recipe)
    return _text(prompt, "text"), _text(best[0], "text")


def _rank(reply: dict[str, Any]) -> int | None:
    rank = reply.get("rank")
    return int(rank) if isinstance(rank, int | float) and not isinstance(rank, bool) and rank in range(1000) else None


def _check(message: dict[str, Any], role: str, recipe: SeedRecipe) -> None:
    if message.get("deleted"):
        raise _Dropped("deleted")
    if message.get("synthetic"):
        raise _Dropped("synthetic")
    if message.get("role", role) != role:
        raise _Dropped("wrong_role")
    if recipe.language and message.get("lang") != recipe.language:
        raise _Dropped("not_english" if recipe.language == "en" else "other_language")
    if not _text(message, "text"):
        raise _Dropped("empty")


def _text(values: dict[str, Any], name: str) -> str:
    value = values.get(name)
    return clean(value).strip() if isinstance(value, str) else ""
