import json
from pathlib import Path

import pytest

from humpback_ray.train import checkpoints
from humpback_ray.train.job import StepMetrics, TrainingStopped

ROW = StepMetrics(1, 2.5, 1e-5, 0.5, 10, 4, 0.1)
IDENTITY = {"model": "m0", "recipe": {"seed": 0, "betas": (0.9, 0.95)}, "placement": {"workers": 2, "zero_stage": 2}}


class Engine:
    """Writes what DeepSpeed would, of one rank."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def save_checkpoint(self, directory: str, tag: str, save_latest: bool) -> None:
        (Path(directory) / tag).mkdir(parents=True, exist_ok=True)
        (Path(directory) / tag / f"rank_{self.rank}_optim_states.pt").write_bytes(bytes([self.rank]))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A checkpoint of two ranks, written apart and merged as Ray Train does."""
    for rank in (1, 0):
        part = tmp_path / f"part-{rank}"
        checkpoints.save(Engine(rank), part, rank, IDENTITY, [ROW])
        for path in [path for path in part.rglob("*") if path.is_file()]:
            target = tmp_path / "whole" / path.relative_to(part)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    return tmp_path / "whole"


def test_a_sound_checkpoint_gives_its_steps_back(directory: Path) -> None:
    assert checkpoints.read_state(directory, IDENTITY) == [ROW]
    assert [checkpoints.problem(directory, rank) for rank in (0, 1)] == [None, None]


@pytest.mark.parametrize("changed", [{"workers": 4, "zero_stage": 2}, {"workers": 2, "zero_stage": 3}])
def test_other_workers_or_stages_are_refused_with_both_numbers(directory: Path, changed: dict[str, int]) -> None:
    with pytest.raises(TrainingStopped, match=r"placement\.\w+ = 2 and this run has [34]"):
        checkpoints.read_state(directory, IDENTITY | {"placement": changed})


def test_a_rank_reports_damage_to_its_own_file_and_to_rank_zeros(directory: Path) -> None:
    (directory / "zero" / "rank_1_optim_states.pt").write_bytes(b"x")
    assert checkpoints.problem(directory, 0) is None
    assert "rank_1_optim_states.pt is not what was written" in str(checkpoints.problem(directory, 1))
    (directory / "zero" / "rank_0_optim_states.pt").unlink()
    assert "rank_0_optim_states.pt is not what was written" in str(checkpoints.problem(directory, 1))


def test_an_unlisted_pickle_is_refused(directory: Path) -> None:
    (directory / "zero" / "rank_2_optim_states.pt").write_bytes(b"x")
    assert "rank_2_optim_states.pt has no checksum" in str(checkpoints.problem(directory, 0))


def test_the_state_is_json_that_can_be_read_without_unpickling(directory: Path) -> None:
    assert json.loads((directory / "state.json").read_text())["step"] == 1
