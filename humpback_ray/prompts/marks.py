"""Fill a pair of texts into a template, between marks that neither of them can forge.

Web text is never expanded: placeholders are replaced in one pass, so a page that contains `{response}` is unchanged.
The marks hold a code that is derived from the pair and does not occur in it. Text that is the same for every pair
should precede the first mark, so engines can reuse its keys and values.
"""

import re
from collections.abc import Mapping

from humpback_ray.records import record_id

_PLACEHOLDER = re.compile(r"\{(instruction|response|code)\}")
_CODE_DIGITS = 12


def marked(name: str, placeholder: str) -> str:
    """Return the part of a template for one text: `<<< name code >>>`, the text, and the end mark."""
    return f"<<< {name} {{code}} >>>\n{{{placeholder}}}\n<<< end of {name} {{code}} >>>"


def fill(template: str, instruction: str, response: str) -> str:
    """Replace `{instruction}`, `{response}` and `{code}` by a pair and its code in one pass; other braces stay."""
    values: Mapping[str, str] = {
        "instruction": instruction, "response": response, "code": code_of(instruction, response)
    }  # fmt: skip
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)


def code_of(instruction: str, response: str) -> str:
    """Return 12 hex digits that depend only on the pair and that neither text contains, in either case.

    To forge a mark, the author of a page would have to know the instruction that a model will predict for it and put
    the hash of both into the page itself; even then, the pair would just get the next code.
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
