"""The layout in which every model is trained and prompted, its source tags, and the span of tokens that carries loss.

One `TurnFormat` renders a pair for training, the prompt at inference and the exported `chat_template.jinja`, so the
three cannot diverge. A prompt gets the token ids that a server gives it, and the response's ids are those of the text
in that position (plain.py): the loss span is known by construction. Text that spells one of the tokenizer's special
tokens (`</s>`, `<|user|>`) stays plain text, and `ChatRecipe.fakes_turn` detects text that contains a line of the
layout itself.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from humpback_ray.config import Config
from humpback_ray.prompts.own import UserMessage, own_chat
from humpback_ray.prompts.plain import plain
from humpback_ray.prompts.tokenizer import Tokenizer

Tags = Literal["seed", "augmented", "both", "none"]
"""Source tags of an instruction: those of a training pair's source, or "both" as the paper uses at inference."""

PromptLayout = Literal["chat", "raw", "own"]
"""How a request becomes a model's prompt: "chat": in the forward format; "raw": unchanged; "own": as a user message in
the model's own chat format."""


class TurnFormat(Config):
    """Text around a source and its target: `opening source turn target <end token>`."""

    opening: str
    """Text before the source (the instruction; for the backward model, the web text)."""

    turn: str
    """Text between source and target; the tokens after it carry the loss."""

    def prompt(self, source: str) -> str:
        """Render the text that the model reads before it writes its target."""
        return self.opening + source + self.turn


class ChatRecipe(Config):
    """The layout of instructions, responses and source tags. Part of every model's fingerprint."""

    forward: TurnFormat = TurnFormat(opening="### Instruction:\n", turn="\n\n### Response:\n")
    """Layout of x → y, for m0, m1, m2 and for rating."""

    backward: TurnFormat = TurnFormat(opening="### Text:\n", turn="\n\n### The instruction that this text answers:\n")
    """Layout of y → x. It has no source tag (the paper does not say; one model serves both of its sources)."""

    seed_tag: str | None = "Answer in the style of an AI Assistant."
    """S_a, on seed pairs (Li et al. 2023, section 2.3); None: untagged."""

    web_tag: str | None = "Answer with knowledge from web search."
    """S_w, on augmented pairs (same section); None: untagged."""

    tag_position: Literal["after", "before"] = "after"
    """Where tags stand relative to the instruction: "after" is the paper's, "before" suits tiny models."""

    def tags(self, source: Tags) -> tuple[str, ...]:
        """Return the tags of a training source, or those used at inference ("both": S_a then S_w)."""
        named = {"seed": [self.seed_tag], "augmented": [self.web_tag], "both": [self.seed_tag, self.web_tag]}
        return tuple(tag for tag in named.get(source, []) if tag)

    def tagged(self, instruction: str, source: Tags) -> str:
        """Append or prepend the tags of a source to an instruction, as sentences."""
        tags = self.tags(source)
        return " ".join([instruction, *tags] if self.tag_position == "after" else [*tags, instruction])

    def forward_prompt(self, instruction: str, source: Tags = "both") -> str:
        """Render an instruction with its tags for the forward models."""
        return self.forward.prompt(self.tagged(instruction, source))

    def backward_prompt(self, text: str) -> str:
        """Render a web text for the backward model."""
        return self.backward.prompt(text)

    def fakes_turn(self, text: str) -> bool:
        """Tell whether a line of the text is a line of the layouts, ignoring case and surrounding whitespace.

        Tokenizers see these lines as plain text, so after one a page could continue as if it were the other side.
        """
        parts = (self.forward.opening, self.forward.turn, self.backward.opening, self.backward.turn)
        own = {line.strip().casefold() for part in parts for line in part.splitlines()} - {""}
        return any(line.strip().casefold() in own for line in text.splitlines())


def laid_out(text: str, layout: PromptLayout, chat: ChatRecipe, tags: Tags) -> str:
    """Render a request as a model's prompt, by the recipe field `layout`."""
    if layout == "chat":
        return chat.forward_prompt(text, tags)
    return UserMessage(text) if layout == "own" else text


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokenize as plain text: without tokens that the tokenizer adds, or special tokens that the text spells."""
    return plain(tokenizer).encode(text)


def start_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that a tokenizer puts before every text: [bos], or [] if it adds none."""
    return plain(tokenizer).start_ids


class Tokens(NamedTuple):
    """One training example: token ids, int [T], and the first position whose token carries loss."""

    ids: list[int]
    loss_start: int


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the ids of a prompt as every model sees it, in training, at inference and behind a server.

    The text is tokenized after the start token, since some tokenizers put a space before a text that nothing precedes.
    A `UserMessage` is laid out in the model's own chat format.
    """
    return plain(tokenizer).encode(_opened(tokenizer, prompt))


def encode_reply(tokenizer: Tokenizer, prompt: str, reply: str) -> list[int]:
    """Return the ids of a reply, or its beginning, as a model writes them after a prompt (`Plain.encode_after`)."""
    return plain(tokenizer).encode_after(_opened(tokenizer, prompt), reply)


def _opened(tokenizer: Tokenizer, prompt: str) -> str:
    if isinstance(prompt, UserMessage):
        return own_chat(tokenizer).around(prompt)
    return plain(tokenizer).start + prompt


def end_id(tokenizer: Tokenizer) -> int:
    """Return the id of the token that ends a reply.

    Raises:
        ValueError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer {tokenizer.name_or_path} has no end token (eos_token); training needs one")
    return tokenizer.eos_token_id


def encode_example(tokenizer: Tokenizer, prompt: str, target: str) -> Tokens:
    """Tokenize a prompt and the target after it; exactly the target's tokens and the end token carry loss.

    Raises:
        ValueError: the tokenizer has no end token.
    """
    end = end_id(tokenizer)
    head = encode_prompt(tokenizer, prompt)
    return Tokens([*head, *encode_reply(tokenizer, prompt, target), end], len(head))


def space_between_turns(tokenizer: Tokenizer, form: TurnFormat) -> str:
    """Return the text, a space or nothing, that gives the opening of a later turn the same ids as in the first turn.

    A tokenizer without a start token that puts a space before a text that nothing precedes would omit it there.
    """
    spelled, opening, end = plain(tokenizer), form.opening + "a", end_id(tokenizer)
    later = spelled.encode(spelled.names[str(tokenizer.eos_token)] + opening)
    return "" if later == [end, *spelled.encode(spelled.start + opening)[len(spelled.start_ids) :]] else " "


def chat_template(
    form: TurnFormat, tags: Sequence[str], position: Literal["after", "before"], bos: bool, later: str = ""
) -> str:
    """Write the Jinja template that renders messages as training did.

    All system (or `developer`) and user messages before the next reply form one instruction, in their order, with an
    empty line between them. Its tags are in the same position as in training; a caller may pass `source_tags` (default:
    the tags given) to render another source. Further turns repeat the layout after the text `later`
    (`space_between_turns`).

    Content is text or a list of text parts, joined by newlines. The template raises an error for other roles and parts,
    null content, tools and tool calls, and an empty list of messages. It uses only plain constructs, for servers whose
    Jinja is not Python's.
    """
    parts = "[turn.text] + source_tags" if position == "after" else "source_tags + [turn.text]"
    ask = f"{{{{- {'turn.before + ' if later else ''}{form.opening!r} + ({parts}) | join(' ') }}}}"
    return "\n".join(
        [
            f"{{%- if source_tags is not defined %}}{{%- set source_tags = {list(tags)!r} %}}{{%- endif %}}",
            _refuse("not messages", "there is no message"),
            _refuse("tools", "it was not trained to call tools"),
            *(["{{- bos_token }}"] if bos else []),
            "{%- set turn = namespace(asked=false, text='', said='', before='') %}",
            "{%- for m in messages %}",
            _refuse("m.tool_calls", "it was not trained to call tools"),
            "{%- if m.content is string %}",
            "{%- set turn.said = m.content %}",
            "{%- else %}",
            _refuse(
                "m.content is not defined or m.content is none or m.content is mapping or m.content is not iterable",
                "the content of a message is text or a list of text parts, not null",
            ),
            "{%- set turn.said = '' %}",
            "{%- for part in m.content %}",
            _refuse("part.type != 'text' or part.text is not string", "a part of a message is not text"),
            "{%- set turn.said = turn.said + ('' if loop.first else '\\n') + part.text %}",
            "{%- endfor %}",
            "{%- endif %}",
            "{%- if m.role == 'system' or m.role == 'developer' or m.role == 'user' %}",
            "{%- set turn.text = turn.text + ('\\n\\n' if turn.text and turn.said else '') + turn.said %}",
            "{%- set turn.asked = true %}",
            "{%- elif m.role == 'assistant' %}",
            f"{{%- if turn.asked %}}{ask}{{%- endif %}}",
            f"{{{{- {form.turn!r} + turn.said + eos_token }}}}",
            "{%- set turn.asked = false %}{%- set turn.text = '' %}",
            *([f"{{%- set turn.before = {later!r} %}}"] if later else []),
            "{%- else %}",
            f"{{{{- raise_exception({_REFUSED + 'roles are system, user and assistant, not '!r} ~ m.role) }}}}",
            "{%- endif %}",
            "{%- endfor %}",
            f"{{%- if turn.asked %}}{ask}{{%- endif %}}",
            f"{{%- if add_generation_prompt %}}{{{{- {form.turn!r} }}}}{{%- endif %}}",
        ]
    )


_REFUSED = "chat template of this model: "


def _refuse(condition: str, message: str) -> str:
    return f"{{%- if {condition} %}}{{{{- raise_exception({_REFUSED + message!r}) }}}}{{%- endif %}}"
