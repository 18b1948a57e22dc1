"""Rating: the model of the round before judges every candidate pair (Li et al. 2023, arXiv:2308.06259, section 2.3).

One row in, one row out. What could not be rated has no score but a `drop_reason`, and too many of those stop the run
before anything is trained on the rest.
"""

import pyarrow as pa
from pydantic import Field

from humpback_ray.config import Config
from humpback_ray.curate.scorers import FAILURES, Rubric, ScorerConfig
from humpback_ray.engines import EngineConfig, TransformersEngine
from humpback_ray.placement import Resources
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.records import SCORE

FAILED = FAILURES
"""Drop reasons that count against `max_failed_share`."""


class ScoreRecipe(Config):
    """What rating means. Hashed: a change here is another set of scores."""

    version: int = Field(default=1, ge=1)
    """Raised by hand when the meaning of rating changes."""

    scorer: ScorerConfig = Rubric()
    """How a pair is rated; `kind` selects the class."""

    engine: EngineConfig = TransformersEngine()
    """Who runs the rating model; `kind` selects the class."""

    max_failed_share: float = Field(default=0.2, ge=0, le=1)
    """A larger share of candidates that no sample could rate stops the run. Ours: earlier code lost half in silence."""


class Rater:
    """One actor: an engine with the rating model, loaded once, around a scorer."""

    def __init__(self, recipe: ScoreRecipe, chat: ChatRecipe, model_uri: str, resources: Resources) -> None:
        self.recipe, self.chat = recipe, chat
        self.engine = recipe.engine.build(model_uri, resources)

    async def __call__(self, candidates: pa.Table) -> pa.Table:
        """Rate the candidates of a shard; every id leaves once."""
        rows = candidates.select(["id", "instruction", "response"]).to_pylist()
        return pa.Table.from_pylist(await self.recipe.scorer.score(rows, self.chat, self.engine), schema=SCORE)
