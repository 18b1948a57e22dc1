"""The paper's scale of five grades, with reasoning (`rubric`) or without (`rubric_expected`).

`rubric` lets the model explain itself and then reads its last line: the number as written, or the mean of the five
grades weighted by the probability the model gives them there. `rubric_expected` reads that mean straight after the
prompt, in one forward pass.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from humpback_ray.curate.scorers.base import Prompted, Sample, Scale, score_row
from humpback_ray.curate.scorers.replies import Replies, expected_grade, grade_request
from humpback_ray.engines.base import Completion, Engine, generate_all
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.prompts.rating import DIRECT, REASONED, parse_score

GRADES = range(1, 6)


class Rubric(Replies):
    """Reasons first, then the grade: the paper's rating (Li et al. 2023, arXiv:2308.06259, section 2.3)."""

    grades: ClassVar[range] = GRADES

    kind: Literal["rubric"] = "rubric"

    prompt: str = REASONED
    """The template; `{instruction}` and `{response}` are replaced."""

    def parse(self, reply: Completion) -> float | None:
        """Read the grade, 1 to 5, off a reply."""
        return parse_score(reply.text, reply.finish_reason)


class RubricExpected(Prompted):
    """No reasons: the expected grade straight after `Score:`, one forward pass and a continuous score."""

    kind: Literal["rubric_expected"] = "rubric_expected"

    prompt: str = DIRECT
    """The template; `{instruction}` and `{response}` are replaced."""

    @property
    def scale(self) -> Scale:
        """Which scores it gives."""
        return Scale(GRADES[0], GRADES[-1])

    async def score(self, rows: Sequence[Mapping[str, Any]], chat: ChatRecipe, engine: Engine) -> list[dict[str, Any]]:
        """Rate candidates; returns `score_row`s in their order."""
        prompts = [self.render(row, chat) for row in rows]
        scored = await generate_all(engine, [grade_request(prompt, "Score:", GRADES) for prompt in prompts])
        return [
            score_row(row["id"], prompt, [Sample.of(expected_grade(completion, GRADES), completion)])
            for row, prompt, completion in zip(rows, prompts, scored, strict=True)
        ]
