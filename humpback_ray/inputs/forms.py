"""Forms of records in published data sets, and how to get the instruction and the response of each.

`auto` recognizes a form by the fields of the record itself, so one file may mix them:

    oasst          Open Assistant: a message tree (`prompt` with nested `replies`), or one message of such a tree as on
                   the Hub (`message_id`, `parent_id`, `text`, `role`)
    conversation   a list of turns: `conversations` of strings (LIMA) or of {from, value} (ShareGPT), `messages` of
                   {role, content}
    pair           two texts: instruction/output (Alpaca), instruction/response (Dolly), prompt/completion, ...

If there are several turns, only the first counts (Li et al. 2023, arXiv:2308.06259, section 3.1). The text that an
instruction is about (`input`, `context`, `instances[0].input`) follows it after a blank line. AlpacaEval's authors
joined the two in this way for its prompts from Self-Instruct; the training prompts of Alpaca and Dolly have the same
order, under their own headings. Field names are case-insensitive, and a null field counts as missing.

Limits: transcripts in one string ("### Human: ...") and tables with a column per key (pandas' default) are not read.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from humpback_ray.config import Config
from humpback_ray.inputs.turns import (
    CONVERSATIONS,
    RESPONSES,
    USERS,
    NoPair,
    Turn,
    Values,
    conversation,
    first,
    first_turn,
    lowered,
    messages,
    part_text,
    present,
    system_first,
    text,
)

UNKNOWN = "no_pair"
"""Drop reason of a record that no form fits."""


class PairForm(Config):
    """Two texts in two fields."""

    kind: Literal["pair"] = "pair"

    instruction: str
    """Field with the instruction."""

    response: str
    """Field with the response."""

    about: str | None = None
    """Field with the text that the instruction is about, appended to it if not empty; None: there is no such field."""

    def turn(self, values: Values) -> Turn | None:
        """Return the pair; None if a field is missing."""
        values = lowered(values)
        if self.instruction.lower() not in values or self.response.lower() not in values:
            return None
        about = text(values.get(self.about.lower())) if self.about else ""
        return Turn(joined(_asking(values[self.instruction.lower()]), about), text(values[self.response.lower()]))


class ConversationForm(Config):
    """Turns in one field."""

    kind: Literal["conversation"] = "conversation"

    field: str
    """The field with the list of turns."""

    def turn(self, values: Values) -> Turn | None:
        """Return the first turn; None if the field does not hold a list."""
        turns = messages(present(values).get(self.field.lower()))
        return None if turns is None else first_turn(turns)


class OasstForm(Config):
    """Open Assistant's messages: trees, or one message per record, which the file's reader joins to trees (seed.py)."""

    kind: Literal["oasst"] = "oasst"

    def turn(self, values: Values) -> Turn | None:
        """Return None: a record that is not a message gives no pair."""
        del values
        return None


class AutoForm(Config):
    """The form that the fields of each record suggest."""

    kind: Literal["auto"] = "auto"

    def turn(self, values: Values) -> Turn | None:
        """Return the first turn of a conversation or a pair; None if the record is neither."""
        named = lowered(values)
        values = present(values)
        said = first(values, SYSTEMS)
        system = said if isinstance(said, str) else ""
        if (turns := conversation(values)) is not None:
            turn = first_turn(turns)
            return turn if turn.system else replace(turn, system=system)
        asked, answer = question(values), first(values, RESPONSES)
        if answer is None:
            answer = _instance(values).get("output")
        if asked is None or answer is None:
            if any(values.get(name) == [] for name in CONVERSATIONS) or (
                named.keys() & set(INSTRUCTIONS) and named.keys() & set(RESPONSES)
            ):
                raise NoPair("empty")
            return None
        return Turn(asked, text(answer), system)


SeedForm = Annotated[AutoForm | OasstForm | ConversationForm | PairForm, Field(discriminator="kind")]

INSTRUCTIONS = ("instruction", "prompt", "question", "query", "inputs", "input", "problem", "human", "user")
ABOUTS = ("input", "context")
SYSTEMS = ("system", "system_prompt")
"""Names of fields, the usual ones first."""
WRAPPERS = ("data", "rows", "row", "records", "record", "examples", "example", "items", "item", "samples", "sample",
            "entries", "prompts", "questions", "instructions", "train")  # fmt: skip
"""Fields that hold one or more other records."""


def is_tree(values: Values) -> bool:
    """Tell whether a record is a message tree."""
    return isinstance(values.get("prompt"), dict)


def is_message(values: Values) -> bool:
    """Tell whether a record is one message of a tree."""
    return (
        bool(values.get("message_id")) and "text" in values and bool({"parent_id", "message_tree_id"} & values.keys())
    )


def joined(instruction: str, about: str) -> str:
    """Append the text that an instruction is about; if one of the two is blank, return the other.

    In Alpaca, `<noinput>` means that there is no such text.
    """
    if not about.strip() or about.strip().lower() == "<noinput>":
        return instruction
    return f"{instruction}\n\n{about}" if instruction.strip() else about


def question(values: Values) -> str | None:
    """Return the instruction of a record of single texts, with the text it is about; None if it has no instruction."""
    name = next((name for name in INSTRUCTIONS if name in values), None)
    if name is None:
        return None
    abouts = [text(values[about]) for about in ABOUTS if about in values and about != name]
    about = next((about for about in abouts if about.strip()), "") or text(_instance(values).get("input"))
    return joined(_asking(values[name]), about)


def _asking(value: object) -> str:
    """Return the text of an instruction; a number is not an instruction."""
    return "" if isinstance(value, int | float) else text(value)


def _instance(values: Values) -> Values:
    """Return the first instance of a Self-Instruct task."""
    instances = values.get("instances")
    return instances[0] if isinstance(instances, list) and instances and isinstance(instances[0], dict) else {}


def asked(values: Values) -> str | None:
    """Return the first instruction of a record of prompts, unchanged; None if no form fits.

    Raises:
        NoPair: the instruction is not text.
    """
    values = present(values)
    if isinstance(tree := values.get("prompt"), dict):
        return text(tree.get("text"))
    turns = values.get("turns")
    if isinstance(turns, list) and turns:  # FastChat's are the user's alone
        return text(part_text(turns[0]))
    if found := conversation(values):
        rest = system_first(found)[1]
        return text(rest[0][1]) if rest and rest[0][0] in USERS else None
    said = question(values)
    return text(values["text"]) if said is None and {"text", "question_id"} <= values.keys() else said


def unwrapped(value: object, fits: Callable[[Values], bool], depth: int = 4) -> list[object]:
    """Return the records that fit a form in a value that may wrap them (`{"data": [...]}`); [] if none does.

    If some elements of a list fit, the others are returned unchanged.
    """
    if isinstance(value, dict) and fits(value):
        return [value]
    if not depth or not isinstance(value, dict | list):
        return []
    if isinstance(value, dict):
        named = lowered(value)
        names = named if all(name.isdigit() for name in named) else WRAPPERS  # pandas numbers its records
        wrapped = [named[name] for name in names if name in named and not _is_strings(named[name])]
        return [record for inner in wrapped for record in unwrapped(inner, fits, depth - 1)]
    if messages(value):
        return [{"messages": value}] if fits({"messages": value}) else []
    found = [unwrapped(inner, fits, depth - 1) for inner in value]
    if not any(found):
        return []
    return [record for inner, records in zip(value, found, strict=True) for record in records or [inner]]


def _is_strings(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(inner, str) for inner in value)


def keys_of(value: object) -> str:
    """Return the names of a record's fields for a message, or its type if it is not an object."""
    if not isinstance(value, dict):
        return f"a {type(value).__name__}"
    names = ", ".join(str(name)[:40] for name in list(value)[:12])
    return f"{names}, ..." if len(value) > 12 else names or "none"
