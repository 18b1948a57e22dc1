"""Rating: the model of the previous round judges every candidate pair (Li et al. 2023, arXiv:2308.06259, section 2.3).

One row in, one row out. A candidate that could not be rated has a `drop_reason` instead of a score. Too many of them
stop the run before anything is trained on the rest.
"""

import pyarrow as pa
from pydantic import Field

from humpback_ray import storage
from humpback_ray.config import Config
from humpback_ray.curate.scorers import FAILURES, Chained, Choice, Rubric, ScorerConfig, passed_over
from humpback_ray.engines import EngineConfig, TransformersEngine
from humpback_ray.needs import Resources
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.records import SCORE
from humpback_ray.stages.manifest import read_manifest

FAILED = FAILURES
"""Drop reasons that count against `max_failed_share`."""


class ScoreRecipe(Config):
    """Definition of rating. Hashed: a change here is another set of scores."""

    version: int = Field(default=2, ge=1)
    """Bumped by hand when the meaning of rating changes."""

    scorer: ScorerConfig = Rubric()
    """How a pair is rated; `kind` selects the class."""

    engine: EngineConfig = TransformersEngine()
    """Engine that runs the rating model; `kind` selects the class."""

    max_failed_share: float = Field(default=0.2, ge=0, le=1)
    """A larger share of candidates without a rating stops the run, and so does a larger share of samples without a
    score after the retry: with a low `min_samples`, counting pairs alone would hide lost samples. Ours. Not hashed."""


class Rater:
    """One actor: an engine with the rating model, loaded once, around a scorer.

    Args:
        recipe: how pairs are rated.
        chat: the layout.
        model: directory of the rating model.
        model_digest: its identity, recorded in every row.
        prescores: for a chain, the directory of the stage with the cheap scores; else None.
        resources: of the actor.
    """

    def __init__(
        self,
        recipe: ScoreRecipe,
        chat: ChatRecipe,
        model: "str | storage.Directory",
        model_digest: str,
        prescores: str | None,
        resources: Resources,
    ) -> None:
        self.chat, self.choice = chat, None
        if isinstance(recipe.scorer, Chained):
            finished = read_manifest(prescores) if prescores else None
            if finished is None:
                raise ValueError(f"a chained scorer needs the finished cheap scores, but {prescores} has no manifest")
            self.scorer, self.choice = recipe.scorer.then, Choice.of(finished, recipe.scorer.share)
        else:
            self.scorer = recipe.scorer
        self.same = {"scorer": self.scorer.kind, "model": model_digest, "sampling": self.scorer.sampling}
        self.engine = recipe.engine.build(model, resources)

    async def __call__(self, candidates: pa.Table) -> pa.Table:
        """Rate the candidates of a shard; every id leaves once."""
        rows = candidates.select(["id", "instruction", "response"]).to_pylist()
        chosen = self.choice.look_up([row["id"] for row in rows]) if self.choice else [(True, None)] * len(rows)
        seen = [row for row, (passed, _) in zip(rows, chosen, strict=True) if passed]
        rated = iter(await self.scorer.score(seen, self.chat, self.engine))
        found = [
            {**({**self.same, **next(rated)} if passed else passed_over(row["id"])), "pre_score": pre_score}
            for row, (passed, pre_score) in zip(rows, chosen, strict=True)
        ]
        return pa.Table.from_pylist(found, schema=SCORE)
