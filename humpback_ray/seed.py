"""Seed pairs: instructions and responses that people wrote.

`recordfiles.py` reads the files in many formats; `forms.py` recognizes the form of a record by its fields. Humpback
takes only the first turn of a conversation; from Open Assistant, the first turn in English with the reply that people
ranked best (Li et al. 2023, arXiv:2308.06259, section 3.1). Trees and messages are selected as in the released "ready"
export: trees ready for export, and no deleted, synthetic or refused messages.

One row per record, kept or with its reason. Separate messages are assembled into trees first: a tree is one record, and
so is a message whose tree has no prompt in the file.

In Open Assistant's export, a reply without siblings has no rank, and neither do a few groups that nobody ranked. People
*chose* none of these, so none counts as rank 0. (95 non-synthetic first turns had one such group, of three replies; no
first turn had a single reply, while all 40 single replies deeper down are unranked.) `accept_unranked_only_reply`
accepts a single reply.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Literal

import pyarrow as pa
from pydantic import Field

from humpback_ray import storage
from humpback_ray.config import Config
from humpback_ray.inputs.contamination import NOTHING, HeldOut
from humpback_ray.inputs.forms import UNKNOWN, AutoForm, OasstForm, SeedForm, is_message, is_tree, keys_of, unwrapped
from humpback_ray.inputs.recordfiles import MAX_RECORD_BYTES, records
from humpback_ray.inputs.turns import NoPair, Turn, Values, is_none, text
from humpback_ray.placement import TaskPlacement
from humpback_ray.records import PAIR, PairRow, content_id, record_id
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.enough import UNKNOWN_KEYS, frequent, refuse_few
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.outputs import TableWriter
from humpback_ray.stages.stage import Place, Stage
from humpback_ray.storage import InputFile, reading
from humpback_ray.storage.inventory import Inventory
from humpback_ray.text.clean import clean


class SeedRecipe(Config):
    """Definition of a seed pair. Hashed into the manifest: a change here is another seed."""

    version: int = 2
    """Bumped by hand when the meaning of this module changes."""

    inputs: list[str] | None = None
    """Paths, globs or `s3://` URIs of JSON lines, JSON arrays or Parquet files, compressed or not; None: the sample's
    pairs. The fingerprint covers the content of the files, not their location."""

    form: SeedForm = AutoForm()
    """How a record holds its pair. `auto` decides by its fields; `{kind: pair, instruction: q, response: a, about: c}`
    and `{kind: conversation, field: turns}` name other fields; `oasst` takes only Open Assistant's messages."""

    system: Literal["leave_out", "prepend", "drop"] = "leave_out"
    """How to treat a system message before the first turn. `leave_out` omits it: an instruction is what the user asked,
    and most system messages are the same for every pair. `prepend` puts it before the instruction, with a blank line
    between. `drop` drops the pair as `system_message`. Ours."""

    language: str | None = "en"
    """Language of Open Assistant's prompts and replies, whatever the region (`en-US`); None: any. Messages that name no
    language, and pairs, are taken in any language."""

    tree_states: tuple[str, ...] | None = ("ready_for_export",)
    """States in which Open Assistant's trees are taken; None: any. A tree without a state is taken."""

    include_refused: bool = False
    """Use messages that failed their review (`review_result: false`)."""

    include_deleted: bool = False
    """Use deleted messages."""

    include_synthetic: bool = False
    """Use messages that a model wrote."""

    accept_unranked_only_reply: bool = False
    """Use a tree's only usable reply even if it has no rank."""

    min_kept: int = Field(default=1, ge=0)
    """Fewer kept pairs than this stop the run. Not hashed."""

    max_line_bytes: int = Field(default=MAX_RECORD_BYTES, ge=1)
    """A longer record is dropped as `too_large`."""


class SeedConfig(Config):
    """The `seed` stage. A few thousand pairs: one task reads them all."""

    recipe: SeedRecipe = Field(default_factory=SeedRecipe)
    placement: TaskPlacement = Field(default_factory=TaskPlacement)


def make_seed(config: SeedConfig, files: Inventory, place: Place, held_out: HeldOut = NOTHING) -> Manifest:
    """Read the seed files in the order of their names; keep a pair once if several files hold it.

    Args:
        config: what a pair is.
        files: the seed files.
        place: of the stage.
        held_out: prompts that no pair may contain.

    Raises:
        StageFailed: fewer pairs than `min_kept` were kept.
    """
    identity = {"seed": config.recipe.model_dump(mode="json", exclude={"inputs", "min_kept"}), **held_out.identity}
    stage = Stage(place, identity, {"files": files, **held_out.inputs}, PAIR)
    made = stage.once(collect, (config.recipe, files.files, held_out), config.placement)
    refuse_few(
        made, config.recipe.min_kept, "seed.recipe.min_kept", lambda: frequent(made.extra.get(UNKNOWN_KEYS) or {})
    )
    return made


def collect(attempt: Attempt, recipe: SeedRecipe, files: Sequence[InputFile], held_out: HeldOut) -> Commit:
    """Write one table of pairs per file; ids are unique across all files."""
    writer, seen, unknown = TableWriter(attempt, PAIR), Counter[str](), Counter[str]()
    overlap = held_out.overlap()
    for file in files:
        with reading(file) as stream:
            table = seed_file(stream, file.uri, recipe, seen, unknown)
        writer.write(overlap.without(table))
    return writer.commit(extra={UNKNOWN_KEYS: dict(unknown.most_common(MOST_KEYS))} if unknown else None)


MOST_KEYS = 10
"""Number of unknown sets of fields that the commit records, most frequent first."""


def seed_file(
    stream: BinaryIO,
    name: str,
    recipe: SeedRecipe,
    seen: Counter[str] | None = None,
    unknown: Counter[str] | None = None,
) -> pa.Table:
    """Return the pairs of one file, schema PAIR; ids are unique within the table.

    The first copy of a repeated pair is kept; the others are dropped as `repeated_record`. The last row of a damaged
    file is `archive_truncated` or `archive_corrupt`, the only row of an empty one `archive_empty`.

    Args:
        stream: the file, from its start; seekable.
        name: of the file, for errors only; ids are hashes of content.
        recipe: what a seed pair is.
        seen: how often each id occurred in other files; this file's ids are added.
        unknown: receives the fields of records that fit no form.
    """
    del name
    seen = Counter() if seen is None else seen
    rows = []
    for row in _rows(stream, recipe, Counter() if unknown is None else unknown):
        copies = seen[row["id"]]
        seen[row["id"]] += 1
        if copies:
            row = _row(record_id(row["id"], "copy", copies), reason="repeated_record")
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=PAIR)


def _rows(stream: BinaryIO, recipe: SeedRecipe, unknown: Counter[str]) -> Iterator[PairRow]:
    trail, messages = b"", list[Values]()
    for record in records(stream, recipe.max_line_bytes):
        trail = content_id(trail, record.raw).encode()
        if record.fault:
            named = (record.raw,) if record.raw else (b"archive", trail, record.fault.encode())
            yield _row(content_id(*named), reason=record.fault)
            continue
        found = unwrapped(record.value, lambda values: _fits(values, recipe.form)) or [record.value]
        for value in found:
            if _reads_messages(recipe.form) and isinstance(value, dict) and is_message(value):
                messages.append(value)
            else:
                yield _pair_row(value, record.raw if value is record.value else _json(value), recipe, unknown)
    for tree in _trees(messages):
        yield _pair_row(tree, _json(tree), recipe, unknown)


def _row(row_id: str, instruction: str = "", response: str = "", reason: str | None = None) -> PairRow:
    return {
        "id": row_id, "instruction": instruction, "response": response, "source": "seed", "score": None,
        "drop_reason": reason,
    }  # fmt: skip


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()


def _reads_messages(form: SeedForm) -> bool:
    return isinstance(form, AutoForm | OasstForm)


def _fits(values: Values, form: SeedForm) -> bool:
    try:
        is_one = _reads_messages(form) and (is_tree(values) or is_message(values))
        return is_one or form.turn(values) is not None
    except NoPair:
        return True


def _pair_row(value: object, raw: bytes, recipe: SeedRecipe, unknown: Counter[str]) -> PairRow:
    """Return the row of one record; the id of a dropped one is the hash of `raw`."""
    try:
        turn = _turn(value, recipe)
        instruction, response = clean(turn.instruction).strip(), clean(turn.response).strip()
        if not instruction or not response:
            raise NoPair("empty")
        if (system := clean(turn.system).strip()) and recipe.system != "leave_out":
            if recipe.system == "drop":
                raise NoPair("system_message")
            instruction = f"{system}\n\n{instruction}"
    except NoPair as none:
        if str(none) == UNKNOWN:
            unknown[clean(keys_of(value))] += 1
        return _row(content_id(raw), reason=str(none))
    return _row(record_id("seed", instruction, response), instruction, response)


def _turn(value: object, recipe: SeedRecipe) -> Turn:
    if not isinstance(value, dict):
        raise NoPair(UNKNOWN)
    if _reads_messages(recipe.form) and is_tree(value):
        return _best(value, recipe)
    if _reads_messages(recipe.form) and is_message(value):
        raise NoPair("no_prompt")
    turn = recipe.form.turn(value)
    if turn is None:
        raise NoPair(UNKNOWN)
    return turn


def _trees(messages: Sequence[Values]) -> Iterator[Values]:
    """Assemble messages into trees, in the order of their prompts; then yield those that belong to no prompt, alone."""
    replies = defaultdict[str, list[Values]](list)
    for message in messages:
        replies[_id(message.get("parent_id"))].append(message)
    reached = set[str]()
    for prompt in replies[""]:
        todo = [_id(prompt["message_id"])]
        while todo:
            reached.add(parent := todo.pop())
            todo += [name for reply in replies.get(parent, ()) if (name := _id(reply["message_id"])) not in reached]
        under = replies.get(_id(prompt["message_id"]), [])
        yield {"tree_state": prompt.get("tree_state"), "prompt": {**prompt, "replies": under}}
    yield from (message for message in messages if _id(message["message_id"]) not in reached)


def _id(value: object) -> str:
    return "" if is_none(value) else str(value)


def _best(tree: Values, recipe: SeedRecipe) -> Turn:
    """Return the first turn of a tree with the reply that people ranked best."""
    prompt, state = tree["prompt"], tree.get("tree_state")
    assert isinstance(prompt, dict)  # `is_tree` has checked it
    if recipe.tree_states is not None and state is not None and state not in recipe.tree_states:
        raise NoPair("tree_not_ready")
    _check(prompt, "prompter", recipe)
    children = prompt.get("replies")
    replies = [reply for reply in children if isinstance(reply, dict)] if isinstance(children, list) else []
    best = [reply for reply in replies if _rank(reply) == 0]
    if not best and recipe.accept_unranked_only_reply:
        usable = [reply for reply in replies if _flagged(reply, recipe) is None]
        best = usable if len(usable) == 1 and _rank(usable[0]) is None else []
    if not best:
        raise NoPair("no_rank_0_reply" if replies else "no_reply")
    _check(best[0], "assistant", recipe)
    return Turn(text(prompt.get("text")), text(best[0].get("text")))


def _rank(reply: Values) -> int | None:
    rank = reply.get("rank")
    return int(rank) if isinstance(rank, int | float) and not isinstance(rank, bool) and rank in range(1000) else None


def _check(message: Values, role: str, recipe: SeedRecipe) -> None:
    if reason := _flagged(message, recipe):
        raise NoPair(reason)
    if message.get("role", role) != role:
        raise NoPair("wrong_role")
    language = message.get("lang")
    if recipe.language and isinstance(language, str) and _without_region(language) != _without_region(recipe.language):
        raise NoPair("not_english" if _without_region(recipe.language) == "en" else "other_language")


def _flagged(message: Values, recipe: SeedRecipe) -> str | None:
    """Return why the recipe excludes a message; None if it does not."""
    if message.get("deleted") and not recipe.include_deleted:
        return "deleted"
    if message.get("synthetic") and not recipe.include_synthetic:
        return "synthetic"
    return "refused" if message.get("review_result") is False and not recipe.include_refused else None


def _without_region(language: str) -> str:
    return language.replace("_", "-").partition("-")[0].strip().lower()


def ids_again(manifest: Manifest, files: Sequence[InputFile]) -> Iterator[pa.ChunkedArray]:
    """Read the files of a stage again and yield the ids of their rows."""
    recipe, seen = SeedRecipe.model_validate(manifest.recipe["seed"]), Counter[str]()
    for file in files:
        with storage.reading(file) as stream:
            yield seed_file(stream, file.uri, recipe, seen)["id"]
