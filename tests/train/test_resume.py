"""Which checkpoint a run resumes from, if some of them are damaged."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from humpback_ray.placement import TrainPlacement
from humpback_ray.train.job import TrainingStopped, TrainResult
from humpback_ray.train.loop import Session, train
from tests.conftest import Said
from tests.train.test_loop import spoil
from tests.train.workers import job

PLACEMENT = TrainPlacement(zero_stage=2, micro_batch_tokens=600, checkpoint_every_steps=1, keep_checkpoints=9)
RESUMED = PLACEMENT.model_copy(update={"checkpoint_every_steps": 100, "keep_checkpoints": 1})

Harm = Callable[[Path], object]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def whole(home: Path, base: Path, pairs: tuple[str, ...]) -> TrainResult:
    """Train for four steps with a checkpoint after each."""
    this = job(base, pairs, home / "model", steps={"m0": 4})
    return train(this, PLACEMENT, Session.alone(str(home / "checkpoints")))


@pytest.fixture
def at(home: Path, whole: TrainResult, tmp_path: Path) -> Path:
    """Return a copy of its checkpoints, named 1 to 4."""
    for checkpoint in (home / "checkpoints/0001").iterdir():
        number = int(checkpoint.name.split("-")[1])
        shutil.copytree(checkpoint, tmp_path / f"checkpoints/0001/step-{number:06d}-{number}")
    return tmp_path


def resumed(at: Path, base: Path, pairs: tuple[str, ...], rate: float = 6e-4) -> TrainResult:
    this = job(base, pairs, at / "model", steps={"m0": 4}, learning_rate=rate)
    return train(this, RESUMED, Session.alone(str(at / "checkpoints")))


def checkpoint(at: Path, number: int) -> Path:
    return at / f"checkpoints/0001/step-{number:06d}-{number}"


def alter_state(at: Path) -> None:
    """Change a state's identity so that it seems to belong to another run."""
    state = json.loads((at / "state.json").read_text())
    state["identity"]["model"] = "m1"
    (at / "state.json").write_text(json.dumps(state))


def cut(at: Path) -> None:
    (at / "state.json").write_text((at / "state.json").read_text()[:-30])


def clear(at: Path) -> None:
    (at / "rank-00000.json").write_text("")


def unlist(at: Path) -> None:
    listed = json.loads((at / "rank-00000.json").read_text())
    listed["rank-00000-000.safetensors"]["fragments"].pop()
    (at / "rank-00000.json").write_text(json.dumps(listed))


def test_a_run_resumes_from_the_newest_sound_checkpoint_and_says_what_is_wrong_with_the_others(
    at: Path, base: Path, pairs: tuple[str, ...], whole: TrainResult, said: Said
) -> None:
    harms: dict[int, tuple[Harm, str]] = {
        4: (spoil, "rank-00000-000.safetensors does not match its digest"),
        3: (cut, "state.json: Invalid JSON"),
        2: (unlist, "it has 0 of the elements 0 to"),
    }
    for number, (harm, _) in harms.items():
        harm(checkpoint(at, number))
    result = resumed(at, base, pairs)
    assert result.resumed_from == 1
    assert [row.loss for row in result.metrics] == pytest.approx([row.loss for row in whole.metrics], rel=1e-5)
    warned = [message for level, message in said.records if level == "WARNING"]
    for number, (_, words) in harms.items():
        start = f"ignoring checkpoint {checkpoint(at, number)}, which is damaged: {words}"
        assert any(message.startswith(start) for message in warned), start
    left = {path.name for path in (at / "checkpoints/0001").iterdir() if any(path.iterdir())}
    assert len(left - {checkpoint(at, 4).name}) == 1, "only the new one counts; the damaged one of its step stays"
    assert resumed(at, base, pairs).resumed_from == 4


def test_a_state_with_a_wrong_byte_is_damage_and_not_another_run(at: Path, base: Path, pairs: tuple[str, ...]) -> None:
    alter_state(checkpoint(at, 4))
    assert resumed(at, base, pairs).resumed_from == 3


def test_if_all_checkpoints_have_wrong_bytes_the_run_stops_and_names_each(
    at: Path, base: Path, pairs: tuple[str, ...]
) -> None:
    for number in range(1, 5):
        spoil(checkpoint(at, number))
    with pytest.raises(TrainingStopped, match="every complete checkpoint is damaged") as stopped:
        resumed(at, base, pairs)
    assert all(f"{checkpoint(at, number)}: rank-00000-000" in str(stopped.value) for number in range(1, 5))


def test_if_no_checkpoint_can_be_read_training_starts_at_the_first_step_with_a_warning(
    at: Path, base: Path, pairs: tuple[str, ...], whole: TrainResult, said: Said
) -> None:
    for number, harm in enumerate((clear, cut, clear, cut), start=1):
        harm(checkpoint(at, number))
    result = resumed(at, base, pairs)
    assert result.resumed_from is None
    assert [row.loss for row in result.metrics] == pytest.approx([row.loss for row in whole.metrics], rel=1e-5)
    expected = f"no checkpoint under {at / 'checkpoints'} can be used: training starts from step 1"
    assert ("WARNING", expected) in said.records


def test_a_checkpoint_of_another_recipe_stops_the_run_although_others_are_damaged(
    at: Path, base: Path, pairs: tuple[str, ...]
) -> None:
    alter_state(checkpoint(at, 4))
    with pytest.raises(TrainingStopped, match=re.escape("step 3 was made with recipe.learning_rate = 0.0006 and this")):
        resumed(at, base, pairs, rate=1e-3)
