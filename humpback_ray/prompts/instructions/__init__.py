"""Filters of predicted instructions: rules with named drop reasons, without a model.

A backward model is a language model: it may continue its prompt, refuse, loop, answer its own question, or ask about
"the passage above", which a reader of the instruction alone cannot see. Each rule is a pure function of strings: `form`
judges the look of a text, `phrases`, `references` and `subjects` its content, `source` its overlap with the segment.
They prefer to miss a bad instruction rather than drop a good one. The phrases are English; the other rules do not
depend on the language. None of this is in the paper, which curates by rating alone (Li et al. 2023, arXiv:2308.06259).
"""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from pydantic import Field

from humpback_ray.config import Config
from humpback_ray.packages import LANGUAGE, Package
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.prompts.instructions.form import breaks_off, has_markup, is_mojibake, repeats_itself, says_too_little
from humpback_ray.prompts.instructions.phrases import is_meta, refuses
from humpback_ray.prompts.instructions.references import refers_to_text
from humpback_ray.prompts.instructions.source import copies, gives_answer, is_foreign
from humpback_ray.prompts.instructions.subjects import asks_nothing, is_navigation, is_personal, is_unsafe

Reason = Literal[
    "echoed_prompt", "repetitive", "too_little_content", "mojibake", "markup", "navigation_text", "copied_segment",
    "contains_answer", "refusal", "meta_text", "refers_to_text", "broken_off", "unsafe", "personal_data", "no_request",
    "other_language",
]  # fmt: skip
"""Why an instruction is dropped, in the order in which the rules are applied."""


class InstructionFilters(Config):
    """Which predicted instructions are dropped, and for which reason. These are verdicts, not failures of the model."""

    reasons: tuple[Reason, ...] = get_args(Reason)
    """The rules in force; leave one out to turn it off.

    `echoed_prompt`: a source tag, or a line that begins with text of the layouts. `repetitive`: a letter, word or
    passage in a loop. `too_little_content`: punctuation, emoji, a number, a URL or one word. `mojibake`: decoded with
    the wrong encoding. `markup`: a model's tokens, role markers, tags, entities, Markdown around the whole.
    `navigation_text`: menus, cookie notices, calls to subscribe. `copied_segment`: mostly words of the segment.
    `contains_answer`: a question and its answer. `refusal`: a model refuses or asks back. `meta_text`: about the
    instruction ("Here is one:"). `refers_to_text`: refers to a text that it does not include. `broken_off`: ends in a
    word that needs another one, or in an open quotation. `unsafe`: asks for help with weapons, drugs or crime.
    `personal_data`: an e-mail address or a telephone number. `no_request`: a heading or statement. `other_language`:
    almost certainly in another language than its segment."""

    copied_words: int = Field(default=12, ge=1)
    """Minimum number of copied words for `copied_segment`. Fewer may be a heading."""

    min_language_probability: float = Field(default=0.8, gt=0, le=1)
    """Minimum total probability of all other languages for `other_language`."""

    def packages(self) -> Sequence[Package]:
        """Return the library that detects languages."""
        return (LANGUAGE,) if "other_language" in self.reasons else ()

    def reason(self, instruction: str, segment: str, chat: ChatRecipe) -> Reason | None:
        """Return why an instruction is dropped, by the first rule that applies; None if it stays."""
        return next((reason for reason in get_args(Reason) if self._applies(reason, instruction, segment, chat)), None)

    def _applies(self, reason: Reason, instruction: str, segment: str, chat: ChatRecipe) -> bool:
        if reason not in self.reasons:
            return False
        match reason:
            case "echoed_prompt":
                return echoes_prompt(instruction, chat)
            case "repetitive":
                return repeats_itself(instruction)
            case "too_little_content":
                return says_too_little(instruction)
            case "mojibake":
                return is_mojibake(instruction)
            case "markup":
                return has_markup(instruction)
            case "navigation_text":
                return is_navigation(instruction)
            case "copied_segment":
                return copies(instruction, segment, self.copied_words)
            case "contains_answer":
                return gives_answer(instruction, segment)
            case "refusal":
                return refuses(instruction)
            case "meta_text":
                return is_meta(instruction)
            case "refers_to_text":
                return refers_to_text(instruction)
            case "broken_off":
                return breaks_off(instruction)
            case "unsafe":
                return is_unsafe(instruction)
            case "personal_data":
                return is_personal(instruction)
            case "no_request":
                return asks_nothing(instruction, segment)
            case "other_language":
                return is_foreign(instruction, segment, self.min_language_probability)


_MIN_MARK_CHARS = 6
"""Good instructions may have lines that begin with a shorter layout line ("A:")."""


def echoes_prompt(instruction: str, chat: ChatRecipe) -> bool:
    """Return whether a text contains a source tag, or a line that begins with a line of the layouts."""
    told = " ".join(instruction.casefold().split())
    if any(" ".join(tag.casefold().split()) in told for tag in chat.tags("both")):
        return True
    marks = tuple(_marks(chat))
    return bool(marks) and any(line.strip().casefold().startswith(marks) for line in instruction.splitlines())


def _marks(chat: ChatRecipe) -> Iterator[str]:
    for turns in (chat.forward, chat.backward):
        for line in (turns.opening + "\n" + turns.turn).splitlines():
            if len(line.strip()) >= _MIN_MARK_CHARS:
                yield line.strip().casefold()
