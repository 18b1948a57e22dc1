"""The layout in which every model is trained and asked, its source tags, and the span of tokens that carries loss.

One `TurnFormat` renders a pair for training, the prompt at inference, and the exported `chat_template.jinja`, so the
three cannot part. A prompt's ids are those that a server gives it, and the response's follow them as they stand
behind it (plain.py): the loss span is known by construction. Text that spells one of the tokenizer's own tokens
(`</s>`, `<|user|>`) stays plain text, and text that holds a line of the layout itself can be told
(`ChatRecipe.fakes_turn`).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from humpback_ray.config import Config
from humpback_ray.prompts.own import UserMessage, own_chat
from humpback_ray.prompts.plain import plain
from humpback_ray.prompts.tokenizer import Tokenizer

Tags = Literal["seed", "augmented", "both", "none"]
"""Whose source tags an instruction carries: a training pair's own source; "both" is the paper's inference."""

PromptLayout = Literal["chat", "raw", "own"]
"""How a request becomes a model's prompt: "chat": in the forward format; "raw": as it is; "own": as a user's message in
the model's own chat format."""


class TurnFormat(Config):
    """Text around a source and its target: `opening source turn target <end token>`."""

    opening: str
    """Stands before the source (the instruction; for the backward model, the web text)."""

    turn: str
    """Stands between source and target; what follows it carries the loss."""

    def prompt(self, source: str) -> str:
        """Render what the model reads before it writes its target."""
        return self.opening + source + self.turn


class ChatRecipe(Config):
    """How instructions, responses and source tags are laid out. Part of every model's fingerprint."""

    forward: TurnFormat = TurnFormat(opening="### Instruction:\n", turn="\n\n### Response:\n")
    """Layout of x → y, for m0, m1, m2 and for rating."""

    backward: TurnFormat = TurnFormat(opening="### Text:\n", turn="\n\n### The instruction that this text answers:\n")
    """Layout of y → x. It carries no source tag (the paper does not say; both of its sources use one model)."""

    seed_tag: str | None = "Answer in the style of an AI Assistant."
    """S_a, on seed pairs (Li et al. 2023, section 2.3); None: untagged."""

    web_tag: str | None = "Answer with knowledge from web search."
    """S_w, on augmented pairs (same place); None: untagged."""

    tag_position: Literal["after", "before"] = "after"
    """Where tags stand relative to the instruction: "after" is the paper's, "before" suits tiny models."""

    def tags(self, source: Tags) -> tuple[str, ...]:
        """Return the tags of a training source, or those used at inference ("both": S_a then S_w)."""
        named = {"seed": [self.seed_tag], "augmented": [self.web_tag], "both": [self.seed_tag, self.web_tag]}
        return tuple(tag for tag in named.get(source, []) if tag)

    def tagged(self, instruction: str, source: Tags) -> str:
        """Append or prepend a source's tags, as sentences, to an instruction."""
        tags = self.tags(source)
        return " ".join([instruction, *tags] if self.tag_position == "after" else [*tags, instruction])

    def forward_prompt(self, instruction: str, source: Tags = "both") -> str:
        """Render an instruction with its tags for the forward models."""
        return self.forward.prompt(self.tagged(instruction, source))

    def backward_prompt(self, text: str) -> str:
        """Render a web text for the backward model."""
        return self.backward.prompt(text)

    def fakes_turn(self, text: str) -> bool:
        """Tell whether a line of a text is one of the layouts' own lines, whatever its case and the space around it.

        Those are plain text to every tokenizer: behind such a line a page could go on as if it were the other side.
        """
        parts = (self.forward.opening, self.forward.turn, self.backward.opening, self.backward.turn)
        own = {line.strip().casefold() for part in parts for line in part.splitlines()} - {""}
        return any(line.strip().casefold() in own for line in text.splitlines())


def laid_out(text: str, layout: PromptLayout, chat: ChatRecipe, tags: Tags) -> str:
    """Return a request as the prompt of a model: by a recipe's field `layout`."""
    if layout == "chat":
        return chat.forward_prompt(text, tags)
    return UserMessage(text) if layout == "own" else text


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokenise text as plain text: no token that the tokenizer adds by itself, none that the text spells (`</s>`)."""
    return plain(tokenizer).encode(text)


def start_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that a tokenizer puts before every text: [bos], or none if it adds none by itself."""
    return plain(tokenizer).start_ids


class Tokens(NamedTuple):
    """One training example: token ids, int [T], and the first position whose token carries loss."""

    ids: list[int]
    loss_start: int


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the ids of a prompt as every model sees it, in training, at inference and behind a server.

    It is tokenised as it stands behind the start token: some tokenizers put a space before a text that nothing
    precedes. A `UserMessage` is laid out in the model's own chat format.
    """
    return plain(tokenizer).encode(_opened(tokenizer, prompt))


def encode_reply(tokenizer: Tokenizer, prompt: str, reply: str) -> list[int]:
    """Return the ids of a reply, or its beginning, as a model writes them behind a prompt (`Plain.encode_after`)."""
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
    """Tokenise a prompt and, behind it, its target; exactly the target's tokens and the end token carry loss.

    Raises:
        ValueError: the tokenizer has no end token.
    """
    end = end_id(tokenizer)
    head = encode_prompt(tokenizer, prompt)
    return Tokens([*head, *encode_reply(tokenizer, prompt, target), end], len(head))


def space_between_turns(tokenizer: Tokenizer, form: TurnFormat) -> str:
    """Return what a later turn needs before its opening, so that its ids are those of a first turn: a space or nothing.

    A tokenizer that puts a space before a text that nothing precedes, and no start token, would leave it out there.
    """
    spelled, opening, end = plain(tokenizer), form.opening + "a", end_id(tokenizer)
    later = spelled.encode(spelled.names[str(tokenizer.eos_token)] + opening)
    return "" if later == [end, *spelled.encode(spelled.start + opening)[len(spelled.start_ids) :]] else " "


def chat_template(
    form: TurnFormat, tags: Sequence[str], position: Literal["after", "before"], bos: bool, later: str = ""
) -> str:
    """Write the Jinja template that renders messages as training did.

    All that is said up to the next reply is one instruction: system messages (`developer` is another word for them)
    and the user's, in their order, with an empty line between them. Its tags stand where training had them;
    `source_tags` (default: the tags given) may be passed to render another source. Further turns repeat the layout,
    behind the text `later` (`space_between_turns`).

    Content is text or a list of text parts, which are put one to a line. Refused with a message: other roles and parts,
    content that is null, tools and calls of tools, and no message at all. Plain constructs only, for servers whose
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
