"""What a record of somebody's data set asks and answers: the forms in which instructions and responses are published.

`auto` recognises a form by the fields of the record itself, so that one file may mix them:

    oasst          Open Assistant: a message tree (`prompt` with nested `replies`), or one message of such a tree as on
                   the Hub (`message_id`, `parent_id`, `text`, `role`)
    conversation   a list of turns: `conversations` of strings (LIMA) or of {from, value} (ShareGPT), `messages` of
                   {role, content}
    pair           two texts: instruction/output (Alpaca), instruction/response (Dolly), prompt/completion, ...

Of several turns the first one counts (Li et al. 2023, arXiv:2308.06259, section 3.1). What an instruction is about
(`input`, `context`, `instances[0].input`) stands under it after a blank line. AlpacaEval's authors joined the two in
this way for its prompts from Self-Instruct; the training prompts of Alpaca and Dolly have the same order, under
headings of their own. Field names are compared without regard to case, and a null field is none.

Given up: transcripts in one string ("### Human: ..."), tables with a column per key (pandas' default).
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from humpback_ray.config import Config

Values = Mapping[str, Any]


class NoPair(ValueError):
    """A record gives no pair; the argument is the drop reason."""


UNKNOWN = "no_pair"
"""Drop reason of a record that no form fits."""


@dataclass(frozen=True)
class Turn:
    """The first turn of a record, as it stands there."""

    instruction: str
    response: str
    system: str = ""
    """What a system message before it says; "" without one."""


class PairForm(Config):
    """Two texts in two fields."""

    kind: Literal["pair"] = "pair"

    instruction: str
    """Field of what was asked."""

    response: str
    """Field of what was answered."""

    about: str | None = None
    """Field of what the instruction is about, set under it where it is not empty; None: there is none."""

    def turn(self, values: Values) -> Turn | None:
        """Return the pair; None where a field is missing."""
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
        """Return the first turn; None where the field holds no list."""
        turns = messages(present(values).get(self.field.lower()))
        return None if turns is None else first_turn(turns)


class OasstForm(Config):
    """Open Assistant's messages: trees of them, or one a record. Whoever reads a file puts trees together (seed.py)."""

    kind: Literal["oasst"] = "oasst"

    def turn(self, values: Values) -> Turn | None:
        """Return None: what is no message is nothing."""
        del values
        return None


class AutoForm(Config):
    """Whatever the fields of each record say."""

    kind: Literal["auto"] = "auto"

    def turn(self, values: Values) -> Turn | None:
        """Return the first turn of a conversation or a pair; None where the record is neither."""
        named = lowered(values)
        values = present(values)
        system = text(_first(values, SYSTEMS))
        if (turns := conversation(values)) is not None:
            turn = first_turn(turns)
            return turn if turn.system else replace(turn, system=system)
        asked, answer = question(values), _first(values, RESPONSES)
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

CONVERSATIONS = ("conversations", "conversation", "messages", "dialogue", "dialog", "chat", "data")
INSTRUCTIONS = ("instruction", "prompt", "question", "query", "inputs", "input", "problem", "human", "user")
RESPONSES = (
    "output", "response", "completion", "answer", "targets", "target", "chosen", "reply", "solution", "assistant"
)  # fmt: skip
ABOUTS = ("input", "context")
SYSTEMS = ("system", "system_prompt")
"""Names of fields, the usual ones first."""
WRAPPERS = ("data", "rows", "row", "records", "record", "examples", "example", "items", "item", "samples", "sample",
            "entries", "prompts", "questions", "instructions", "train")  # fmt: skip
"""Fields that hold other records, or one."""

USERS = frozenset({"user", "human", "prompter", "person", "usr"})
ASSISTANTS = frozenset({"assistant", "gpt", "model", "bot", "chatgpt", "ai", "bard", "bing"})
SYSTEM_ROLES = frozenset({"system", "developer"})
_ROLE_FIELDS, _TEXT_FIELDS = ("role", "from", "speaker", "author"), ("content", "value", "text", "message")


def lowered(values: Values) -> dict[str, Any]:
    """Return the fields of a record by their names in lower case."""
    return {str(name).strip().lower(): value for name, value in values.items()}


def present(values: Values) -> dict[str, Any]:
    """Return the fields that hold something, by their names in lower case."""
    return {name: value for name, value in lowered(values).items() if not is_none(value)}


def is_none(value: Any) -> bool:
    """Tell whether a field holds nothing."""
    return value is None or (isinstance(value, float) and math.isnan(value))  # pandas writes NaN for null


def is_tree(values: Values) -> bool:
    """Tell whether a record is a message tree."""
    return isinstance(values.get("prompt"), dict)


def is_message(values: Values) -> bool:
    """Tell whether a record is one message of a tree."""
    return (
        bool(values.get("message_id")) and "text" in values and bool({"parent_id", "message_tree_id"} & values.keys())
    )


def text(value: Any) -> str:
    """Return the text of a field: a string, a number as it is written, or the parts of a message, one below the other.

    Raises:
        NoPair: `not_text`, where it is anything else, as an image among the parts.
    """
    if isinstance(value, list):
        return "\n".join(text(_part(part)) for part in value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "" if is_none(value) else str(value)
    if value is None or isinstance(value, str):
        return value or ""
    raise NoPair("not_text")


def _part(part: Any) -> Any:
    """Return what a part of a message says."""
    if isinstance(part, dict):
        part = next((part[name] for name in ("text", "content") if part.get(name) is not None), part)
    if part is None or isinstance(part, list):
        raise NoPair("not_text")
    return part


def joined(instruction: str, about: str) -> str:
    """Set what an instruction is about under it; nothing changes where one of them is blank.

    Alpaca's authors let `<noinput>` stand for nothing.
    """
    if not about.strip() or about.strip().lower() == "<noinput>":
        return instruction
    return f"{instruction}\n\n{about}" if instruction.strip() else about


def question(values: Values) -> str | None:
    """Return the instruction of a record of single texts and what it is about; None where it has none."""
    name = next((name for name in INSTRUCTIONS if name in values), None)
    if name is None:
        return None
    abouts = [text(values[about]) for about in ABOUTS if about in values and about != name]
    about = next((about for about in abouts if about.strip()), "") or text(_instance(values).get("input"))
    return joined(_asking(values[name]), about)


def _asking(value: Any) -> str:
    """Return the text of an instruction; a number asks nothing."""
    return "" if isinstance(value, int | float) else text(value)


def _first(values: Values, names: Sequence[str]) -> Any:
    """Return the first field of some names, one that is not blank before the others."""
    found = [values[name] for name in names if name in values]
    return next((value for value in found if not isinstance(value, str) or value.strip()), found[0] if found else None)


def _instance(values: Values) -> Values:
    """Return the first instance of a task of Self-Instruct."""
    instances = values.get("instances")
    return instances[0] if isinstance(instances, list) and instances and isinstance(instances[0], dict) else {}


Message = tuple[str, Any]
"""Role, in lower case, and what is said."""


def messages(value: Any) -> list[Message] | None:
    """Return the turns that a field holds, as a list or as JSON of one; None where it holds none."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if isinstance(value, dict):
        value = _transposed(value)
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(turn, str) for turn in value):
        return [("assistant" if number % 2 else "user", turn) for number, turn in enumerate(value)]
    found = [_messages_of(turn) for turn in value]
    return [message for turn in found for message in turn] if all(found) else None


def _transposed(columns: Values) -> list[Any]:
    """Return the turns of which a record holds the columns, as `datasets` stores a sequence of objects."""
    lists = {name: column for name, column in columns.items() if isinstance(column, list)}
    if len(lists) < 2 or len(lists) < len(columns) or not {*_ROLE_FIELDS} & lists.keys():
        return []
    return [dict(zip(lists, turn, strict=True)) for turn in zip(*lists.values(), strict=False)]


def _messages_of(turn: Any) -> list[Message]:
    """Return the message that an element of a conversation is, or the question and its answer; [] if it is neither."""
    if not isinstance(turn, dict):
        return []
    role = next((turn[name] for name in _ROLE_FIELDS if isinstance(turn.get(name), str)), None)
    said = [turn[name] for name in _TEXT_FIELDS if name in turn]
    if role is not None and said:
        return [(role.strip().lower(), said[0])]
    named = lowered(turn)
    both = [next((name for name in roles if name in named), None) for roles in (sorted(USERS), sorted(ASSISTANTS))]
    return [(name, named[name]) for name in both if name] if all(both) else []


def conversation(values: Values) -> list[Message] | None:
    """Return the turns of a record; None where no field holds any.

    A field of another name than the usual ones counts where its turns name their roles.
    """
    if (asked := messages(values.get("prompt"))) is not None and not isinstance(values["prompt"], dict):
        answer = _first(values, RESPONSES)
        replies = [("assistant", answer)] if isinstance(answer, str) else messages(answer) or []
        return asked + replies
    for name in CONVERSATIONS:
        if (turns := messages(values.get(name))) is not None:
            return turns
    if history := values.get("history"):  # of an Alpaca record: earlier turns, the first one first
        return messages(history[0]) if isinstance(history, list) else None
    for value in values.values():
        turns = messages(value) if isinstance(value, list) and value and isinstance(value[0], dict) else None
        if turns and {role for role, _ in turns} <= USERS | ASSISTANTS | SYSTEM_ROLES:
            return turns
    return None


def first_turn(turns: Sequence[Message]) -> Turn:
    """Return the first question and its answer.

    Raises:
        NoPair: `wrong_role`, where others speak; `no_reply`; `empty`, where only the system speaks.
    """
    system, rest = _system_first(turns)
    if not rest:
        raise NoPair("empty")
    if rest[0][0] not in USERS:
        raise NoPair("wrong_role")
    if len(rest) == 1:
        raise NoPair("no_reply")
    if rest[1][0] not in ASSISTANTS:
        raise NoPair("wrong_role")
    return Turn(text(rest[0][1]), text(rest[1][1]), system)


def _system_first(turns: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    count = next((number for number, (role, _) in enumerate(turns) if role not in SYSTEM_ROLES), len(turns))
    return "\n\n".join(text(said) for _, said in turns[:count]), turns[count:]


def asked(values: Values) -> str | None:
    """Return the first instruction of a record of prompts, as it stands there; None where no form fits.

    Raises:
        NoPair: it is no text.
    """
    values = present(values)
    if is_tree(values):
        return text(values["prompt"].get("text"))
    turns = values.get("turns")
    if isinstance(turns, list) and turns:  # FastChat's are the user's alone
        return text(_part(turns[0]))
    if found := conversation(values):
        rest = _system_first(found)[1]
        return text(rest[0][1]) if rest and rest[0][0] in USERS else None
    said = question(values)
    return text(values["text"]) if said is None and {"text", "question_id"} <= values.keys() else said


def unwrapped(value: Any, fits: Callable[[Values], bool], depth: int = 4) -> list[Any]:
    """Return the records that fit a form in a value that may only wrap them (`{"data": [...]}`); [] where none does.

    Of a list in which some fit, the others are returned as they are.
    """
    if isinstance(value, dict) and fits(value):
        return [value]
    if not depth or not isinstance(value, dict | list):
        return []
    if isinstance(value, dict):
        named = lowered(value)
        wrapped = [named[name] for name in WRAPPERS if name in named and not _is_strings(named[name])]
        return [record for inner in wrapped for record in unwrapped(inner, fits, depth - 1)]
    if messages(value):
        return [{"messages": value}] if fits({"messages": value}) else []
    found = [unwrapped(inner, fits, depth - 1) for inner in value]
    if not any(found):
        return []
    return [record for inner, records in zip(value, found, strict=True) for record in records or [inner]]


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(inner, str) for inner in value)


def keys_of(value: Any) -> str:
    """Return the names of a record's fields for a message, or what it is instead."""
    if not isinstance(value, dict):
        return f"a {type(value).__name__}"
    names = ", ".join(str(name)[:40] for name in list(value)[:12])
    return f"{names}, ..." if len(value) > 12 else names or "none"
