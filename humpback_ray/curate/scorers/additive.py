"""One point for each of five criteria instead of one of five grades: sums are easier to get right than verdicts.

Source: Yuan et al. 2024 (arXiv:2401.10020). Their judges agreed with people on 65.1 % of pairs in this form and on
26.6 % with five grades. They average three samples.
"""

from typing import ClassVar, Literal

from humpback_ray.curate.scorers.replies import Replies
from humpback_ray.engines.base import Completion
from humpback_ray.prompts.rating import ADDITIVE, POINTS, parse_points


class Additive(Replies):
    """Reasons first, then the sum of points, 0 to 5. Thresholds are sums, such as 4 of 5 points."""

    grades: ClassVar[range] = POINTS

    kind: Literal["additive"] = "additive"

    prompt: str = ADDITIVE
    """The template; `{instruction}` and `{response}` are replaced."""

    def parse(self, reply: Completion) -> float | None:
        """Read the sum, 0 to 5, from a reply."""
        return parse_points(reply.text, reply.finish_reason)
