"""Putting a pair of texts into a template, between marks that neither of them can forge.

Web text is never expanded: placeholders are replaced in one pass, so a page that holds `{response}` stays as it is. The
marks hold a code that is made of the pair and does not occur in it. What is the same for every pair should come before
the first mark, so that engines can keep its keys and values.
"""

import re
from collections.abc import Mapping

from humpback_ray.records import record_id

_PLACEHOLDER = re.compile(r"\{(instruction|response|code)\}")
_CODE_DIGITS = 12


def marked(name: str, placeholder: str) -> str:
    """Return the part of a template that holds one text: `<<< name code >>>`, the text, and the mark of its end."""
    return f"<<< {name} {{code}} >>>\n{{{placeholder}}}\n<<< end of {name} {{code}} >>>"


def fill(template: str, instruction: str, response: str) -> str:
    """Put a pair, and its code, in place of `{instruction}`, `{response}`, `{code}` in one pass; other braces stay."""
    values: Mapping[str, str] = {
        "instruction": instruction, "response": response, "code": code_of(instruction, response)
    }  # fmt: skip
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)


def code_of(instruction: str, response: str) -> str:
    """Return 12 hex digits that depend on the pair alone and that neither of its texts contains, in either case.

    Who writes a page would have to know the instruction that a model will predict for it, and put its own hash into it;
    and one who managed to would only be given the next code.
    """
    taken = f"{instruction}\n{response}".lower()
    number = 0
    while (code := record_id("marks", number, instruction, response)[:_CODE_DIGITS]) in taken:
        number += 1
    return code


def missing_placeholders(template: str) -> list[str]:
    """Return the placeholders that a template lacks."""
    found = set(_PLACEHOLDER.findall(template))
    return [f"{{{name}}}" for name in ("instruction", "response") if name not in found]
