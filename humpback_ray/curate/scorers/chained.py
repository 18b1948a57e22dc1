"""A cheap scorer decides which pairs an expensive one sees: long replies are spent only on pairs that may be kept.

Two stages: the cheap scorer rates every candidate (`round-t/prescores`; `prescores` if it asks the base model, since
those scores are the same in every round), then the best share of them goes to the expensive scorer (`round-t/scores`)
and the others get the verdict `not_passed_on`. The choice looks at the whole table of cheap scores, so it does not
depend on the shards; every actor repeats it from that table, which holds no text. Candidates that the cheap scorer
could not rate are passed on: a failure is not a verdict.
"""

import math
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from humpback_ray.config import Config
from humpback_ray.curate.scorers.additive import Additive
from humpback_ray.curate.scorers.base import Scale
from humpback_ray.curate.scorers.likelihood import Likelihood
from humpback_ray.curate.scorers.rubric import Rubric, RubricExpected
from humpback_ray.records import NOT_PASSED_ON, SCORE
from humpback_ray.stages.manifest import Manifest

SingleScorer = Annotated[Rubric | RubricExpected | Additive | Likelihood, Field(discriminator="kind")]
COLUMNS = ["id", "score"]


class Chained(Config):
    """Two scorers, one after the other."""

    kind: Literal["chained"] = "chained"

    first: SingleScorer = Likelihood()
    """The cheap one, which rates all candidates."""

    share: float = Field(default=0.5, gt=0, lt=1)
    """The share of the candidates rated by `first` that `then` sees: the best ones; ties are broken by id. The paper
    keeps 38.8 % of its candidates as A_4, so 0.5 leaves room. Ours."""

    then: SingleScorer = Rubric()
    """The expensive one; its scores select."""

    @property
    def scale(self) -> Scale | None:
        """The scores that it gives: the second scorer's."""
        return self.then.scale

    @property
    def rater(self) -> Literal["previous", "base"]:
        """The model that selects: the expensive scorer's."""
        return self.then.rater


class Choice:
    """Decides by the cheap scores of all candidates which ones are passed on.

    Args:
        prescores: `id` and `score` of every candidate, in any order; null where the rating failed.
        share: of the rated candidates; their number is rounded up.
    """

    def __init__(self, prescores: pa.Table, share: float) -> None:
        table = prescores.select(COLUMNS).combine_chunks()
        failed = pc.call_function("is_null", [table["score"]])
        rated = table.filter(pc.call_function("invert", [failed]))
        best = rated.sort_by([("score", "descending"), ("id", "ascending")])
        best = best.slice(0, math.ceil(share * rated.num_rows))
        chosen = pc.call_function("is_in", [table["id"]], pc.SetLookupOptions(value_set=best["id"]))
        self.table = table.append_column("passed", pc.call_function("or", [failed, chosen]))

    @staticmethod
    def of(prescores: Manifest, share: float) -> "Choice":
        """Read the cheap scores of a finished stage."""
        tables = prescores.tables(COLUMNS, kept=False)
        return Choice(pa.concat_tables([SCORE.empty_table().select(COLUMNS), *tables]), share)

    def look_up(self, ids: list[str]) -> list[tuple[bool, float | None]]:
        """Return, for each id, whether it is passed on and its cheap score.

        Raises:
            ValueError: an id that the cheap scorer did not see.
        """
        options = pc.SetLookupOptions(value_set=self.table["id"])
        places = pc.call_function("index_in", [pa.array(ids, pa.string())], options)
        if places.null_count:
            first = ids[places.to_pylist().index(None)]
            raise ValueError(f"{places.null_count} of {len(ids)} candidates have no cheap score, first: {first}")
        found = self.table.take(places)
        return list(zip(found["passed"].to_pylist(), found["score"].to_pylist(), strict=True))


def passed_over(row_id: str) -> dict[str, str | None]:
    """Return the row of a candidate that the expensive scorer does not see."""
    return dict.fromkeys(SCORE.names) | {"id": row_id, "drop_reason": NOT_PASSED_ON}
