"""Fields, texts and turns of records as people publish them.

A conversation is a list of alternating strings (LIMA), of objects with a role and a text (ShareGPT, OpenAI), or of
objects with a question and its answer; or the columns of such a list; or any of these as JSON in a string. Names are
case-insensitive, and a null field counts as missing.
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
    """The first turn of a record, unchanged."""

    instruction: str
    response: str
    system: str = ""
    """Text of a system message before it; "" without one."""


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
    """Return the fields of a record with their names in lower case."""
    return {str(name).strip().lower(): value for name, value in values.items()}


def present(values: Values) -> dict[str, object]:
    """Return the fields that are not empty, with their names in lower case."""
    return {name: value for name, value in lowered(values).items() if not is_none(value)}


def is_none(value: object) -> bool:
    """Tell whether a field is empty: null or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))  # pandas writes NaN for null


def text(value: object) -> str:
    """Return the text of a field: a string, a number as written, or the parts of a message, one below the other.

    Raises:
        NoPair: `not_text`, for anything else, such as an image among the parts.
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
    """Return the content of a part of a message."""
    if isinstance(part, dict):
        part = next((part[name] for name in ("text", "content") if part.get(name) is not None), part)
    if part is None or isinstance(part, list):
        raise NoPair("not_text")
    return part


def first(values: Values, names: Sequence[str]) -> object:
    """Return the first of the named fields that is not blank; if all are blank, the first of them."""
    found = [values[name] for name in names if name in values]
    return next((value for value in found if not isinstance(value, str) or value.strip()), found[0] if found else None)


Message = tuple[str, object]
"""Role, in lower case, and content."""


def messages(value: object) -> list[Message] | None:
    """Return the turns that a field holds, as a list or as JSON of a list; None if it holds none."""
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
    """Turn columns into turns: `datasets` stores a sequence of objects as columns."""
    lists = {name: column for name, column in columns.items() if isinstance(column, list)}
    if len(lists) < 2 or len(lists) < len(columns) or not {*_ROLE_FIELDS} & lists.keys():
        return []
    return [dict(zip(lists, turn, strict=True)) for turn in zip(*lists.values(), strict=False)]


def _messages_of(turn: object) -> list[Message]:
    """Return an element of a conversation as one message, or as a question and its answer; [] if it is neither."""
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
    """Return the turns of a record; None if no field holds any.

    A field with an unusual name counts if its turns name their roles.
    """
    if (asked := messages(values.get("prompt"))) is not None and not isinstance(values["prompt"], dict):
        answer = first(values, RESPONSES)
        replies: list[Message] = [("assistant", answer)] if isinstance(answer, str) else messages(answer) or []
        return asked + replies
    for name in CONVERSATIONS:
        if (turns := messages(values.get(name))) is not None:
            return turns
    if history := values.get("history"):  # in an Alpaca record: earlier turns, oldest first
        return messages(history[0]) if isinstance(history, list) else None
    for value in values.values():
        turns = messages(value) if isinstance(value, list) and value and isinstance(value[0], dict) else None
        if turns and {role for role, _ in turns} <= USERS | ASSISTANTS | SYSTEM_ROLES:
            return turns
    return None


def first_turn(turns: Sequence[Message]) -> Turn:
    """Return the first question and its answer.

    Raises:
        NoPair: `wrong_role` if others speak; `no_reply`; `empty` if only the system speaks.
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
    """Return the system's text before the first turn, and the turns from there on."""
    count = next((number for number, (role, _) in enumerate(turns) if role not in SYSTEM_ROLES), len(turns))
    return "\n\n".join(text(said) for _, said in turns[:count]), turns[count:]
