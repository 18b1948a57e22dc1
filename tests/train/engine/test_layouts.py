"""A run that changes its number of workers and ZeRO stage several times ends like an undisturbed run."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from humpback_ray.placement import TrainPlacement
from tests.train.workers import RECIPE, Case, job, run

pytestmark = pytest.mark.slow

STEPS = RECIPE.steps["m0"]
PLACEMENT = TrainPlacement(micro_batch_tokens=400, checkpoint_every_steps=3, keep_checkpoints=9)


class Move(NamedTuple):
    """A run that resumes from the checkpoint of another run of an earlier phase."""

    workers: int
    stage: int
    source: str | None = None
    step: int | None = None
    dtype: str = "float32"


PHASES: list[dict[str, Move]] = [
    {
        "start": Move(2, 2),
        "2 x ZeRO 3": Move(2, 3, "start", 3),
        "2 x ZeRO 0": Move(2, 0, "start", 3),
        "start in bfloat16": Move(2, 2, dtype="bfloat16"),
    },
    {
        "1 x ZeRO 1": Move(1, 1, "start", 3),
        "1 x ZeRO 3": Move(1, 3, "start", 6),
        "1 x ZeRO 0": Move(1, 0, "2 x ZeRO 0", 6),
        "1 x ZeRO 3 in bfloat16": Move(1, 3, "start in bfloat16", 6, "bfloat16"),
    },
    {
        "3 x ZeRO 2": Move(3, 2, "start", 6),
        "3 x ZeRO 3": Move(3, 3, "1 x ZeRO 0", 9),
    },
    {
        "back from 2 x ZeRO 3": Move(2, 2, "2 x ZeRO 3", 6),
        "back from 1 x ZeRO 1": Move(2, 2, "1 x ZeRO 1", 6),
        "back from 1 x ZeRO 3": Move(2, 2, "1 x ZeRO 3", 9),
        "back from 3 x ZeRO 2": Move(2, 2, "3 x ZeRO 2", 9),
        "back from 3 x ZeRO 3 without ZeRO": Move(2, 0, "3 x ZeRO 3", 9),
        "back from 1 x ZeRO 3 in bfloat16": Move(2, 2, "1 x ZeRO 3 in bfloat16", 9, "bfloat16"),
        "the same in bfloat16": Move(2, 2, "start in bfloat16", 6, "bfloat16"),
    },
]  # fmt: skip
MOVES = {name: move for phase in PHASES for name, move in phase.items()}


def take(source: Path, target: Path, step: int) -> None:
    """Copy a run's checkpoint of one step."""
    (found,) = source.glob(f"*/step-{step:06d}-*")
    shutil.copytree(found, target / "0001" / found.name)


@pytest.fixture(scope="module")
def made(base: Path, pairs: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    at = tmp_path_factory.mktemp("layouts")
    results: dict[str, dict[str, Any]] = {}
    for number, phase in enumerate(PHASES):
        cases = []
        for name, move in phase.items():
            placement = PLACEMENT.model_copy(update={"zero_stage": move.stage})
            first = None
            if move.source is not None and move.step is not None:
                first = partial(take, at / move.source / "saved", at / name / "saved", move.step)
            this = job(base, pairs, at / name / "model", dtype=move.dtype)
            cases.append(Case(name, this, placement, at / name / "saved", first))
        workers = next(iter(phase.values())).workers
        results |= run(cases, workers, at / f"phase-{number}")
    return {name: result | {"model": at / name / "model/model.safetensors"} for name, result in results.items()}


def undisturbed(made: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    return made["start in bfloat16" if MOVES[name].dtype == "bfloat16" else "start"]


@pytest.mark.parametrize("name", [name for name, move in MOVES.items() if move.source])
def test_a_run_that_changes_workers_or_stage_continues_as_if_it_had_not(
    made: dict[str, dict[str, Any]], base: Path, name: str
) -> None:
    from safetensors.torch import load_file

    result, whole = made[name], undisturbed(made, name)
    assert "stopped" not in result, result
    assert result["resumed_from"] == MOVES[name].step
    assert [row["step"] for row in result["metrics"]] == list(range(1, STEPS + 1))
    losses = [[row["loss"] for row in one["metrics"]] for one in (result, whole)]
    exact = MOVES[name].dtype == "float32" or name == "the same in bfloat16"
    assert losses[0] == pytest.approx(losses[1], rel=2e-6 if exact else 2e-3)
    here, there, before = (load_file(path) for path in (result["model"], whole["model"], base / "model.safetensors"))
    moved = sum(float((there[name].float() - before[name]).square().sum()) for name in there)
    apart = sum(float((there[name].float() - here[name].float()).square().sum()) for name in there)
    assert (apart / moved) ** 0.5 < (1e-3 if exact else 0.1)
