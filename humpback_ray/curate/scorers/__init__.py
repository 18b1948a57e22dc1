"""How a pair is rated: a closed union on `kind`."""

from typing import Annotated

from pydantic import Field

from humpback_ray.curate.scorers.base import FAILURES, Scorer
from humpback_ray.curate.scorers.rubric import Rubric, RubricExpected

ScorerConfig = Annotated[Rubric | RubricExpected, Field(discriminator="kind")]

__all__ = ["FAILURES", "Rubric", "RubricExpected", "Scorer", "ScorerConfig"]
