"""A fine-tune whose number of workers shrinks and grows while it runs."""

from pathlib import Path
from typing import Any

import pytest

from humpback_ray.placement import TrainPlacement
from tests.train import workers
from tests.train.elastic import Event, Scenario, play
from tests.train.workers import Case, job

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

PLACEMENT = TrainPlacement(
    workers=(1, 2), resize_every_s=1, keep_checkpoints=99, checkpoint_every_steps=1000, max_failures=1
)


def run(
    base: Path,
    pairs: tuple[str, ...],
    at: Path,
    steps: int,
    placement: TrainPlacement,
    nodes: int,
    *events: Event,
    **recipe: Any,
) -> dict[str, Any]:
    """Play a scenario, and check that its losses equal those of an undisturbed run."""
    this = job(base, pairs, at / "model", steps={"m0": steps}, batch_examples=32, **recipe)
    made = play(Scenario(this, placement, at / "runs", nodes, events))
    assert [row["step"] for row in made["metrics"]] == list(range(1, steps + 1))
    alone = TrainPlacement()
    undisturbed = workers.run([Case("alone", this, alone)], 1, at / "alone")["alone"]["metrics"]
    assert [row["loss"] for row in made["metrics"]] == pytest.approx([row["loss"] for row in undisturbed], rel=1e-5)
    return made


def test_a_run_of_two_workers_that_is_warned_and_loses_a_node_ends_with_one_as_if_undisturbed(
    base: Path, pairs: tuple[str, ...], tmp_path: Path
) -> None:
    made = run(base, pairs, tmp_path, 200, PLACEMENT, 2, Event("warn", 2), Event("lose", 4))
    assert made["workers"] == [2, 1]
    assert made["checkpoints"] == [made["resumed_from"], 200], "the warning and the last step should have made one each"


def test_a_new_node_adds_a_worker_and_a_drained_node_does_not_count_as_a_failure(
    base: Path, pairs: tuple[str, ...], tmp_path: Path
) -> None:
    events = Event("warn", 2), Event("join", 4), Event("drain", 6, workers=2)
    placement = PLACEMENT.model_copy(update={"max_failures": 0, "max_preemption_failures": 1})
    rate = 2e-5  # at 6e-4, 300 steps amplify the last digit beyond 1e-5; a missing update still shows as 3e-4
    made = run(base, pairs, tmp_path, 600, placement, 1, *events, learning_rate=rate)
    assert made["workers"] == [1, 2, 1]
    warned, grown, drained, _ = made["checkpoints"]
    assert warned < grown < drained == made["resumed_from"]
