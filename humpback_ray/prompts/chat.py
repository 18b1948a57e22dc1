"""The layout in which every model is trained and asked, its source tags, and the span of tokens that carries loss.

One `Layout` renders a pair for training, the prompt at inference, and the `chat_template.jinja` that is exported, so
the three cannot part. Prompt and response are tokenised separately and joined: the loss span is known by
construction. Text that spells one of the tokenizer's own tokens (`</s>`, `<|user|>`) stays plain text, and text that
holds a line of the layout itself can be told (`ChatRecipe.fakes_turn`).
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from humpback_ray.config import Config

Tags = Literal["seed", "augmented", "both", "none"]
"""Whose source tags an instruction carries: a training pair's own source; "both" is the paper's inference."""


class Layout(Config):
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

    forward: Layout = Layout(opening="### Instruction:\n", turn="\n\n### Response:\n")
    """Layout of x → y, for m0, m1, m2 and for rating."""

    backward: Layout = Layout(opening="### Text:\n", turn="\n\n### The instruction that this text answers:\n")
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
        layouts = (self.forward.opening, self.forward.turn, self.backward.opening, self.backward.turn)
        own = {line.strip().casefold() for part in layouts for line in part.splitlines()} - {""}
        return any(line.strip().casefold() in own for line in text.splitlines())


def encode(tokenizer: Any, text: str) -> list[int]:
    """Tokenise text as plain text: no token that the tokenizer adds by itself, none that the text spells (`</s>`)."""
    return _plain(tokenizer).encode(text, add_special_tokens=False).ids


_NEVER = -1e6
"""Log probability of a piece that no text is cut into."""


@lru_cache(maxsize=4)
def _plain(tokenizer: Any) -> Any:
    """Return a copy of a tokenizer's inner one that finds none of the added tokens in a text.

    transformers' `split_special_tokens` leaves two gaps: added tokens that are not declared special, as role markers
    of chat models often are not, and Unigram models, which have `</s>` among their pieces. Runs of white space are
    added tokens in some vocabularies and say nothing, so they stay.
    """
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    markers = {token["content"] for token in state["added_tokens"] if token["content"].strip(" \t\r\n▁")}
    state["added_tokens"] = [
        token | {"special": token["special"] or token["content"] in markers} for token in state["added_tokens"]
    ]
    state |= {"truncation": None, "padding": None}
    if state["model"]["type"] == "Unigram":
        pieces = state["model"]["vocab"]
        state["model"]["vocab"] = [[piece, _NEVER if piece in markers else score] for piece, score in pieces]
    plain = Tokenizer.from_str(json.dumps(state))
    plain.encode_special_tokens = True
    return plain


def start_ids(tokenizer: Any) -> list[int]:
    """Return the ids that a tokenizer puts before every text: [bos], or none if it adds none by itself."""
    ids = tokenizer.encode("")
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []


class Tokens(NamedTuple):
    """One training example: token ids, int [T], and the first position whose token carries loss."""

    ids: list[int]
    loss_start: int


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    """Return the ids of a prompt as every model sees it, in training and at inference."""
    return start_ids(tokenizer) + encode(tokenizer, prompt)


def encode_example(tokenizer: Any, prompt: str, target: str) -> Tokens:
    """Tokenise prompt and target separately; exactly the target's tokens and the end token carry loss.

    Raises:
        ValueError: the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(f"tokenizer {tokenizer.name_or_path} has no end token (eos_token); training needs one")
    head = encode_prompt(tokenizer, prompt)
    return Tokens([*head, *encode(tokenizer, target), tokenizer.eos_token_id], len(head))


def chat_template(layout: Layout, tags: Sequence[str], position: Literal["after", "before"], bos: bool) -> str:
    """Write the Jinja template that renders messages as training did.

    `source_tags` (default: the tags given) may be passed by the caller to render another source. A system message is
    put before the first instruction; further turns repeat the layout.
    """
    join = "[m.content] + source_tags" if position == "after" else "source_tags + [m.content]"
    return "".join(
        [
            f"{{%- if source_tags is not defined %}}{{%- set source_tags = {_literals(tags)} %}}{{%- endif %}}",
            "{{- bos_token }}" if bos else "",
            "{%- set state = namespace(system='') %}",
            "{%- for m in messages %}",
            "{%- if m.role == 'system' %}{%- set state.system = m.content + '\\n\\n' %}",
            f"{{%- elif m.role == 'user' %}}{{{{- {layout.opening!a} + state.system + ({join}) | join(' ') }}}}",
            "{%- set state.system = '' %}",
            f"{{%- else %}}{{{{- {layout.turn!a} + m.content + eos_token }}}}{{%- endif %}}",
            "{%- endfor %}",
            f"{{%- if add_generation_prompt %}}{{{{- {layout.turn!a} }}}}{{%- endif %}}",
        ]
    )


def _literals(texts: Sequence[str]) -> str:
    return "[" + ", ".join(ascii(text) for text in texts) + "]"
