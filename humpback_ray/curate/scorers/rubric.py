"""The paper's scale of five grades, with reasoning (`rubric`) or without (`rubric_expected`).

`rubric` lets the model explain itself and then reads its last line: the number as written, or the mean of the five
grades weighted by the probability that the model gives them there. `rubric_expected` reads that mean right after the
prompt, in one forward pass.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from humpback_ray.curate.scorers.base import Prompted, Scale, ScoreRow, Texts, score_row
from humpback_ray.curate.scorers.replies import MIN_GRADE_MASS, Replies, expected_sample, grade_request
from humpback_ray.engines.base import Completion, Engine, generate_all
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.prompts.rating import DIRECT, FIVE_GRADES, REASONED, parse_score


class Rubric(Replies):
    """Reasons first, then the grade: the paper's rating (Li et al. 2023, arXiv:2308.06259, section 2.3)."""

    grades: ClassVar[range] = FIVE_GRADES

    kind: Literal["rubric"] = "rubric"

    prompt: str = REASONED
    """The template; `{instruction}` and `{response}` are replaced."""

    def parse(self, reply: Completion) -> float | None:
        """Read the grade, 1 to 5, from a reply."""
        return parse_score(reply.text, reply.finish_reason)


class RubricExpected(Prompted):
    """No reasons: the expected grade right after `Score:`, in one forward pass; a continuous score."""

    kind: Literal["rubric_expected"] = "rubric_expected"

    prompt: str = DIRECT
    """The template; `{instruction}` and `{response}` are replaced."""

    min_grade_mass: float = Field(default=MIN_GRADE_MASS, ge=0, le=1)
    """Minimum total probability of the five grades after `Score:`. Less is a failed rating, since the model would have
    written something else. Ours."""

    @property
    def scale(self) -> Scale:
        """The scores that it gives."""
        return Scale(FIVE_GRADES[0], FIVE_GRADES[-1])

    async def score(self, rows: Sequence[Texts], chat: ChatRecipe, engine: Engine) -> list[ScoreRow]:
        """Rate candidates; returns `score_row`s in their order."""
        prompts = [self.render(row, chat) for row in rows]
        scored = await generate_all(engine, [grade_request(prompt, "Score:", FIVE_GRADES) for prompt in prompts])
        return [
            score_row(row["id"], prompt, [expected_sample(completion, FIVE_GRADES, self.min_grade_mass)])
            for row, prompt, completion in zip(rows, prompts, scored, strict=True)
        ]
