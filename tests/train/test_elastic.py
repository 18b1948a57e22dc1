"""Workers that become fewer and more while a fine-tune runs."""

from pathlib import Path
from typing import Any

import pytest

from humpback_ray.placement import TrainPlacement
from tests.train.conftest import plain_loop
from tests.train.elastic import Event, Scenario, play
from tests.train.workers import RECIPE, job

THIS = RECIPE.model_copy(update={"steps": {"m0": 60}, "batch_examples": 48})
PLACEMENT = TrainPlacement(
    workers=(1, 2), resize_every_s=1, checkpoint_every_steps=2, keep_checkpoints=99, max_failures=1
)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_lost_node_makes_the_run_smaller_a_new_one_larger_and_it_ends_as_if_undisturbed(
    base: Path, pairs: tuple[str, ...], tokenizer: Any, tmp_path: Path
) -> None:
    this = job(base, pairs, tmp_path / "model", **THIS.model_dump(include={"steps", "batch_examples"}))
    events = [Event("lose", 6), Event("join", 10)]
    made = play(Scenario(this, PLACEMENT, tmp_path / "runs", 2, events))
    assert [row["step"] for row in made["metrics"]] == list(range(1, 61))
    undisturbed = [loss for loss, _ in plain_loop(base, pairs, tokenizer, THIS)]
    assert [row["loss"] for row in made["metrics"]] == pytest.approx(undisturbed, rel=1e-5)
    workers = [count for _, count in sorted(made["workers"].items())]
    assert [count for before, count in zip([0, *workers], workers, strict=False) if count != before] == [2, 1, 2]
