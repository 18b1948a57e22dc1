import asyncio

import pyarrow as pa
import pytest

from humpback_ray.curate.score import FAILED, Rater, ScoreRecipe
from humpback_ray.curate.scorers import Rubric, RubricExpected
from humpback_ray.engines import EchoEngine
from humpback_ray.needs import Resources
from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.records import CANDIDATE, SCORE


def candidates_of(rows: int) -> pa.Table:
    made = [{"id": f"c{i}", "instruction": f"What is {i}?", "response": "word " * (1 + i)} for i in range(rows)]
    return pa.Table.from_pylist(made, schema=CANDIDATE)


@pytest.mark.parametrize("scorer", [Rubric(), Rubric(read="expected"), RubricExpected()])
def test_every_candidate_leaves_once_with_a_score_or_a_reason(scorer: Rubric | RubricExpected) -> None:
    recipe = ScoreRecipe(scorer=scorer, engine=EchoEngine(max_context_tokens=900))
    candidates = candidates_of(300)
    scores = asyncio.run(Rater(recipe, ChatRecipe(), "", "d1", None, Resources())(candidates))
    assert scores.schema == SCORE
    assert scores["id"].to_pylist() == candidates["id"].to_pylist()
    for row in scores.to_pylist():
        assert (row["score"] is None) == (row["drop_reason"] in FAILED)
        assert row["score"] is None or 1 <= row["score"] <= 5
    assert scores["drop_reason"].null_count > 0


def test_an_empty_shard_is_an_empty_table() -> None:
    recipe = ScoreRecipe(engine=EchoEngine())
    assert asyncio.run(Rater(recipe, ChatRecipe(), "", "d1", None, Resources())(candidates_of(0))).num_rows == 0
