"""Workers that become fewer and more while a fine-tune runs."""

from pathlib import Path
from typing import Any

import pytest

from humpback_ray.placement import TrainPlacement
from tests.train import workers
from tests.train.elastic import Event, Scenario, play
from tests.train.workers import Case, job

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

PLACEMENT = TrainPlacement(
    workers=(1, 2), resize_every_s=1, checkpoint_every_steps=4, keep_checkpoints=99, max_failures=1
)


def run(
    base: Path, pairs: tuple[str, ...], at: Path, steps: int, placement: TrainPlacement, **more: Any
) -> dict[int, int]:
    """Play a scenario, see that its losses are those of a run left alone, and return the workers at checkpoints."""
    this = job(base, pairs, at / "model", steps={"m0": steps}, batch_examples=32)
    made = play(Scenario(this, placement, at / "runs", **more))
    assert [row["step"] for row in made["metrics"]] == list(range(1, steps + 1))
    alone = TrainPlacement(micro_batch_examples=8)
    undisturbed = workers.run([Case("alone", this, alone)], 1, at / "alone")["alone"]["metrics"]
    assert [row["loss"] for row in made["metrics"]] == pytest.approx([row["loss"] for row in undisturbed], rel=1e-5)
    return made["workers"]


def changes_of(made: dict[int, int]) -> list[int]:
    counts = [count for _, count in sorted(made.items())]
    return [count for before, count in zip([0, *counts], counts, strict=False) if count != before]


def test_sigterm_makes_a_checkpoint_and_a_lost_node_a_smaller_run_that_ends_as_if_undisturbed(
    base: Path, pairs: tuple[str, ...], tmp_path: Path
) -> None:
    events = [Event("warn", 2), Event("lose", 16)]
    counts = run(base, pairs, tmp_path, 40, PLACEMENT, nodes=2, events=events)
    assert changes_of(counts) == [2, 1]
    assert [step for step in counts if step % 4], "no checkpoint was made for the warning"


@pytest.mark.chaos
def test_a_new_node_makes_the_run_larger_and_a_drained_one_is_no_failure(
    base: Path, pairs: tuple[str, ...], tmp_path: Path
) -> None:
    events = [Event("join", 2), Event("drain", 200)]
    placement = PLACEMENT.model_copy(update={"max_failures": 0, "max_preemption_failures": 1})
    counts = run(base, pairs, tmp_path, 300, placement, nodes=1, events=events)
    assert changes_of(counts) == [1, 2, 1]
    assert len([step for step in counts if step % 4]) == 2, "one checkpoint before growing, one for the notice"
