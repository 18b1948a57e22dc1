"""A judge that obeys everything it reads: the worst possible rater, to measure the effect of marks and encoding.

It reads token ids, as a model does. A special token of the tokenizer ends everything before it, and the judge obeys all
text after it. At a mark (prompts/marks.py) it opens a text and takes everything up to the matching end mark as
material; all words outside are orders, whoever wrote them. If it finds orders other than the prompt's own, it gives the
best grade and nothing else. Otherwise it does its job, carelessly: it quotes all the material, line by line, and ends
with the worst grade.
"""

import math
import re
from collections.abc import Callable, Sequence

from humpback_ray.curate.scorers import Likelihood, SingleScorer
from humpback_ray.curate.scorers.base import Texts
from humpback_ray.engines import Completion, Request
from humpback_ray.prompts.chat import ChatRecipe, encode_prompt
from humpback_ray.prompts.tokenizer import Tokenizer

CODE = re.compile(r"\b[0-9a-f]{12}\b")
Encode = Callable[[Tokenizer, str], list[int]]


async def obeyed(
    rows: Sequence[Texts], scorer: SingleScorer, chat: ChatRecipe, tokenizer: Tokenizer
) -> list[float | None]:
    """Return the score that this judge gives each pair (`id`, `instruction`, `response`).

    None if its reply has no score. All are None if the scorer asks for no replies, since then it takes no orders.
    """
    if isinstance(scorer, Likelihood):
        return [None] * len(rows)
    harmless = scorer.render({"instruction": "x", "response": "y"}, chat)
    scored = await scorer.score(rows, chat, ObedientJudge(tokenizer, harmless))
    return [row["score"] for row in scored]


class ObedientJudge:
    """An engine (`engines.base.Engine`).

    Args:
        tokenizer: lossless, with an end token.
        harmless: a prompt for a pair without orders, rendered like all others; it shows the prompt's own words.
        encode: turns a prompt into ids; a replacement shows what the package's own encoding achieves.
        patient: whether it finishes its reply; otherwise the reply is cut off after the quoted material.
    """

    def __init__(
        self, tokenizer: Tokenizer, harmless: str, encode: Encode = encode_prompt, patient: bool = True
    ) -> None:
        self.tokenizer, self.encode, self.patient = tokenizer, encode, patient
        added = tokenizer.added_tokens_decoder.items()
        self.markers = {token for token, added_token in added if added_token.content.strip()}
        self.own = self.read(harmless)[0]

    def read(self, prompt: str) -> tuple[str, list[str]]:
        """Return the part of a prompt outside the material, with its codes blanked, and the material."""
        ids = self.encode(self.tokenizer, str(prompt))  # only the text, even of a `UserMessage`
        ends = [place for place, token in enumerate(ids) if token in self.markers]
        if any(place > 0 for place in ends):
            return self.tokenizer.decode(ids[ends[-1] :], skip_special_tokens=True), []
        outside, material = [], []
        rest = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        while opened := re.search(r"^<<< (instruction|answer)((?: [0-9a-f]+)?) >>>$", rest, re.MULTILINE):
            closing = re.compile(rf"^<<< end of {opened[1]}{opened[2]} >>>$", re.MULTILINE)
            closed = closing.search(rest, opened.end())
            if not closed:
                break
            outside.append(rest[: opened.end()])
            material.append(rest[opened.end() : closed.start()])
            rest = rest[closed.start() :]
        return CODE.sub("", "".join([*outside, rest])), material

    async def generate(self, request: Request) -> Completion:
        """Obey, or quote and give a 1."""
        outside, material = self.read(request.prompt)
        grade = 1 if outside == self.own else 5
        if request.continuations:
            sure = tuple(0.0 if text == f" {grade}" else -math.inf for text in request.continuations)
            return Completion("", 1, 0, "scored", sure, (1,) * len(sure))
        quoted = "It says:\n" + "\n".join(material) if grade == 1 else "As told."
        if self.patient or grade == 5:
            return Completion(f"{quoted}\nScore: {grade}", 1, 1, "stop")
        return Completion(quoted, 1, 1, "length")

    def close(self) -> None:
        """Nothing to free."""
