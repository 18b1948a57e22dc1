"""Fields, texts and turns of records as people publish them.

A conversation is a list of strings that alternate (LIMA), of objects with a role and a text (ShareGPT, OpenAI), of
objects with a question and its answer, or the columns of one of these; also as JSON in a string. Names are compared
without regard to case, and a null field is none.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Values = Mapping[str, object]
"""The fields of a record, whatever they hold."""


class NoPair(ValueError):
    """A record gives no pair; the argument is the drop reason."""


@dataclass(frozen=True)
class Turn:
    """The first turn of a record, as it stands there."""

    instruction: str
    response: str
    system: str = ""
    """What a system message before it says; "" without one."""


CONVERSATIONS = ("conversations", "conversation", "messages", "dialogue", "dialog", "chat", "data")
RESPONSES = (
    "output", "response", "completion", "answer", "targets", "target", "chosen", "reply", "solution", "assistant"
)  # fmt: skip
"""Names of fields, the usual ones first."""
USERS = frozenset({"user", "human", "prompter", "person", "usr"})
ASSISTANTS = frozenset({"assistant", "gpt", "model", "bot", "chatgpt", "ai", "bard", "bing"})
SYSTEM_ROLES = frozenset({"system", "developer"})
_ROLE_FIELDS, _TEXT_FIELDS = ("role", "from", "speaker", "author"), ("content", "value", "text", "message")


def lowered(values: Values) -> dict[str, object]:
    """Return the fields of a record by their names in lower case."""
    return {str(name).strip().lower(): value for name, value in values.items()}


def present(values: Values) -> dict[str, object]:
    """Return the fields that hold something, by their names in lower case."""
    return {name: value for name, value in lowered(values).items() if not is_none(value)}


def is_none(value: object) -> bool:
    """Tell whether a field holds nothing."""
    return value is None or (isinstance(value, float) and math.isnan(value))  # pandas writes NaN for null


def text(value: object) -> str:
    """Return the text of a field: a string, a number as it is written, or the parts of a message, one below the other.

    Raises:
        NoPair: `not_text`, where it is anything else, as an image among the parts.
    """
    if isinstance(value, list):
        return "\n".join(text(part_text(part)) for part in value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "" if is_none(value) else str(value)
    if value is None or isinstance(value, str):
        return value or ""
    raise NoPair("not_text")


def part_text(part: object) -> object:
    """Return what a part of a message says."""
    if isinstance(part, dict):
        part = next((part[name] for name in ("text", "content") if part.get(name) is not None), part)
    if part is None or isinstance(part, list):
        raise NoPair("not_text")
    return part


def first(values: Values, names: Sequence[str]) -> object:
    """Return the first field of some names, one that is not blank before the others."""
    found = [values[name] for name in names if name in values]
    return next((value for value in found if not isinstance(value, str) or value.strip()), found[0] if found else None)


Message = tuple[str, object]
"""Role, in lower case, and what is said."""


def messages(value: object) -> list[Message] | None:
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


def _transposed(columns: Values) -> list[object]:
    """Return the turns of which a record holds the columns, as `datasets` stores a sequence of objects."""
    lists = {name: column for name, column in columns.items() if isinstance(column, list)}
    if len(lists) < 2 or len(lists) < len(columns) or not {*_ROLE_FIELDS} & lists.keys():
        return []
    return [dict(zip(lists, turn, strict=True)) for turn in zip(*lists.values(), strict=False)]


def _messages_of(turn: object) -> list[Message]:
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
        answer = first(values, RESPONSES)
        replies: list[Message] = [("assistant", answer)] if isinstance(answer, str) else messages(answer) or []
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
    system, rest = system_first(turns)
    if not rest:
        raise NoPair("empty")
    if rest[0][0] not in USERS:
        raise NoPair("wrong_role")
    if len(rest) == 1:
        raise NoPair("no_reply")
    if rest[1][0] not in ASSISTANTS:
        raise NoPair("wrong_role")
    return Turn(text(rest[0][1]), text(rest[1][1]), system)


def system_first(turns: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    """Return what the system says before the first turn, and the turns from there on."""
    count = next((number for number, (role, _) in enumerate(turns) if role not in SYSTEM_ROLES), len(turns))
    return "\n\n".join(text(said) for _, said in turns[:count]), turns[count:]
