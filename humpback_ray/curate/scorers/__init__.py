"""How a pair is rated: a closed union on `kind`."""

from typing import Annotated

from pydantic import Field

from humpback_ray.curate.scorers.additive import Additive
from humpback_ray.curate.scorers.base import FAILURES, Scale, Scorer
from humpback_ray.curate.scorers.chained import Chained, Choice, SingleScorer, passed_over
from humpback_ray.curate.scorers.likelihood import Likelihood
from humpback_ray.curate.scorers.rubric import Rubric, RubricExpected

ScorerConfig = Annotated[Rubric | RubricExpected | Additive | Likelihood | Chained, Field(discriminator="kind")]

__all__ = [
    "FAILURES", "Additive", "Chained", "Choice", "Likelihood", "Rubric", "RubricExpected", "Scale", "Scorer",
    "ScorerConfig", "SingleScorer", "passed_over",
]  # fmt: skip
