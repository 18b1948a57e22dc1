import json
from collections.abc import Callable
from pathlib import Path

import pytest

from humpback_ray import storage
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


def write(at: Path, attempt: str, step: int, ranks: tuple[int, ...] = (0, 1)) -> Path:
    """Save and upload a checkpoint of two workers, or the part of some of them."""
    target = at / "checkpoints" / attempt / f"step-{step:06d}-3fa9c1"
    for rank in ranks:
        part = at / f"{attempt}-{step}-{rank}"
        checkpoints.save(Engine(rank), part, rank, IDENTITY, [ROW] * step)
        checkpoints.upload(part, rank, str(target))
    return target


def test_the_complete_checkpoint_with_the_most_steps_is_gone_on_from_whoever_wrote_it(tmp_path: Path) -> None:
    assert checkpoints.newest(str(tmp_path / "checkpoints")) is None
    written = [write(tmp_path, "0001", 4), write(tmp_path, "0001", 8), write(tmp_path, "0002", 6)]
    (tmp_path / "checkpoints/0003").mkdir()
    (tmp_path / "checkpoints/0003/progress.json").write_text("{}")
    assert checkpoints.newest(str(tmp_path / "checkpoints")) == str(written[1])


@pytest.mark.parametrize(
    "harm",
    [
        lambda at: (at / "sha256-00001.json").unlink(),
        lambda at: (at / "state.json").unlink(),
        lambda at: (at / "zero/rank_1_optim_states.pt").unlink(),
        lambda at: (at / "zero/rank_1_optim_states.pt").write_bytes(b""),
    ],
    ids=["no list", "no state", "no shard", "short shard"],
)
def test_a_half_uploaded_checkpoint_is_passed_over(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    sound = write(tmp_path, "0001", 4)
    harm(write(tmp_path, "0001", 8))
    write(tmp_path, "0002", 8, ranks=(0,))
    write(tmp_path, "0003", 8, ranks=(1,))
    assert checkpoints.newest(str(tmp_path / "checkpoints")) == str(sound)


def test_a_checkpoint_that_is_deleted_while_it_is_fetched_is_no_verdict(tmp_path: Path) -> None:
    target = write(tmp_path, "0001", 4)
    assert checkpoints.fetch(str(target)) == target
    (target / "sha256-00001.json").unlink()
    assert checkpoints.fetch(str(target)) is None
    assert checkpoints.fetch(str(tmp_path / "nothing")) is None


@pytest.mark.s3
def test_on_object_storage_too(tmp_path: Path, s3_bucket: str) -> None:
    uri = f"{s3_bucket}/{tmp_path.name}/checkpoints"
    for step, ranks in ((4, (0, 1)), (6, (0, 1)), (8, (0, 1)), (10, (0,))):
        for rank in ranks:
            part = tmp_path / f"{step}-{rank}"
            checkpoints.save(Engine(rank), part, rank, IDENTITY, [ROW] * step)
            checkpoints.upload(part, rank, f"{uri}/0001/step-{step:06d}-3fa9c1")
    assert checkpoints.newest(uri) == f"{uri}/0001/step-000008-3fa9c1"
    copy = checkpoints.fetch(f"{uri}/0001/step-000008-3fa9c1")
    assert copy is not None
    assert checkpoints.read_state(copy, IDENTITY) == [ROW] * 8
    checkpoints.forget(uri, copy)
    assert not copy.exists()
    checkpoints.prune(f"{uri}/0001")
    assert {name.split("/")[1] for name in storage.list_names(uri)} == {"step-000008-3fa9c1", "step-000010-3fa9c1"}


def test_an_attempt_keeps_its_last_two_and_lets_others_be(tmp_path: Path) -> None:
    write(tmp_path, "0001", 2)
    written = [write(tmp_path, "0002", step) for step in (4, 6, 8)]
    checkpoints.prune(str(tmp_path / "checkpoints/0002"))
    left = {entry.name.rsplit("/", 2)[0] for entry in storage.listing(str(tmp_path / "checkpoints"))}
    assert {name.split("/")[0] for name in left} == {"0001", "0002"}
    assert [checkpoints.missing(str(at), sizes(at)) for at in written] == ["state.json", None, None]


def sizes(at: Path) -> dict[str, int]:
    return {entry.name: entry.bytes for entry in storage.listing(str(at))}
