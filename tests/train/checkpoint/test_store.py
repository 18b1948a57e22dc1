import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray import storage
from humpback_ray.train.checkpoint import store
from humpback_ray.train.checkpoint.fragments import Fragment
from humpback_ray.train.job import StepMetrics, TrainingStopped

ROW = StepMetrics(1, 2.5, 1e-5, 0.5, 10, 4, 0.1)
IDENTITY = {"model": "m0", "recipe": {"seed": 0, "betas": (0.9, 0.95)}}
SIZES = {"layer.weight": 10, "layer.bias": 4}
HALVES = {"layer.weight": [0, 6, 10], "layer.bias": [0, 0, 4]}
"""Where rank 0's part, rank 1's part and the parameter end; rank 0 has no part of the bias."""


def values(kind: str, name: str) -> Any:
    """Return three tensors per parameter; all elements differ."""
    import torch

    base = 100 * list(SIZES).index(name) + 1000 * ["weight", "exp_avg", "exp_avg_sq"].index(kind)
    return torch.arange(SIZES[name]).float() + base


def held(rank: int, ends: dict[str, list[int]], blank: bool = False) -> list[Fragment]:
    """Return a rank's fragments of both parameters, or empty ones of that size."""
    cuts = ((name, cut[rank], cut[rank + 1]) for name, cut in ends.items())
    kinds = ("weight", "exp_avg", "exp_avg_sq")
    made = [
        Fragment(name, low, {kind: values(kind, name)[low:high].clone() * (0 if blank else 1) for kind in kinds})
        for name, low, high in cuts
        if low < high
    ]
    return made


def write(target: Path | str, step: int = 1, ranks: tuple[int, ...] = (0, 1), workers: int = 2) -> str:
    """Write a checkpoint of two workers, or only the parts of some of them."""
    for rank in ranks:
        state = store.state_of(IDENTITY, [ROW] * step, workers)
        store.write(held(rank, HALVES), rank, str(target), state)
    return str(target)


def written(at: Path, attempt: str, step: int, ranks: tuple[int, ...] = (0, 1)) -> Path:
    return Path(write(at / "checkpoints" / attempt / f"step-{step:06d}-3fa9c1", step, ranks))


def test_a_complete_checkpoint_gives_its_steps_back(tmp_path: Path) -> None:
    assert store.read_state(write(tmp_path), IDENTITY) == [ROW]
    assert json.loads((tmp_path / "state.json").read_text())["step"] == 1


def test_another_recipe_is_refused_with_both_values(tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped, match=r"recipe\.seed = 0 and this run has 7"):
        store.read_state(write(tmp_path), IDENTITY | {"recipe": {"seed": 7, "betas": (0.9, 0.95)}})


def cuts(size: int) -> st.SearchStrategy[list[int]]:
    """Draw where the parts of up to four workers end; some are empty."""
    inner = st.lists(st.integers(0, size), max_size=3)
    return inner.map(lambda ends: [0, *sorted(ends), size])


def layouts() -> st.SearchStrategy[dict[str, list[int]]]:
    whole = st.fixed_dictionaries({name: cuts(size) for name, size in SIZES.items()})
    return whole.filter(lambda ends: len({len(cut) for cut in ends.values()}) == 1)


@given(before=layouts(), after=layouts(), part_bytes=st.sampled_from([1, 60, 1 << 30]))
def test_a_checkpoint_written_under_any_split_is_read_under_any_other(
    tmp_path_factory: pytest.TempPathFactory, before: dict[str, list[int]], after: dict[str, list[int]], part_bytes: int
) -> None:
    import torch

    uri = str(tmp_path_factory.mktemp("any"))
    workers = len(before["layer.bias"]) - 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "PART_BYTES", part_bytes)
        for rank in range(workers):
            store.write(held(rank, before), rank, uri, store.state_of(IDENTITY, [ROW], workers))
    for rank in range(len(after["layer.bias"]) - 1):
        mine = held(rank, after, blank=True)
        source = store.fetch(uri, mine)
        assert source is not None
        assert (source.problem(), source.fill(mine)) == (None, None)
        for found, wanted in zip(mine, held(rank, after), strict=True):
            assert all(torch.equal(found.tensors[kind], wanted.tensors[kind]) for kind in wanted.tensors)


def fetched(uri: Path, rank: int) -> store.Fetched:
    source = store.fetch(str(uri), held(rank, HALVES))
    assert source is not None
    return source


def test_a_worker_reports_damage_to_what_it_reads_and_leaves_other_files_alone(tmp_path: Path) -> None:
    write(tmp_path)
    name = "rank-00001-000.safetensors"
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1] + b"x")
    assert fetched(tmp_path, 0).problem() is None
    expected = f"{name} is missing or does not match its digest; delete this checkpoint"
    assert expected in str(fetched(tmp_path, 1).problem())
    (tmp_path / "state.json").write_text((tmp_path / "state.json").read_text().replace("2.5", "2.4"))
    assert "state.json is missing or does not match its digest" in str(fetched(tmp_path, 0).problem())


def test_elements_that_no_rank_has_written_are_reported(tmp_path: Path) -> None:
    write(tmp_path, ranks=(0,), workers=1)
    lacking = fetched(tmp_path, 1).fill(held(1, HALVES))
    assert "has only 0 of the elements 6 to 10 of layer.weight" in str(lacking)


def test_a_run_resumes_from_the_complete_checkpoint_with_the_most_steps_of_any_attempt(tmp_path: Path) -> None:
    assert store.newest(str(tmp_path / "checkpoints")) is None
    made = [written(tmp_path, "0001", 4), written(tmp_path, "0001", 8), written(tmp_path, "0002", 6)]
    (tmp_path / "checkpoints/0003").mkdir()
    (tmp_path / "checkpoints/0003/progress.json").write_text("{}")
    assert store.newest(str(tmp_path / "checkpoints")) == str(made[1])


@pytest.mark.parametrize(
    "harm",
    [
        lambda at: (at / "rank-00001.json").unlink(),
        lambda at: (at / "state.json").unlink(),
        lambda at: (at / "rank-00001-000.safetensors").unlink(),
        lambda at: (at / "rank-00001-000.safetensors").write_bytes(b""),
    ],
    ids=["no list", "no state", "no tensors", "few tensors"],
)
def test_a_partly_uploaded_checkpoint_is_ignored(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    sound = written(tmp_path, "0001", 4)
    harm(written(tmp_path, "0001", 8))
    written(tmp_path, "0002", 8, ranks=(0,))
    written(tmp_path, "0003", 8, ranks=(1,))
    assert store.newest(str(tmp_path / "checkpoints")) == str(sound)


def test_a_checkpoint_that_is_deleted_while_it_is_fetched_does_not_stop_the_run(tmp_path: Path) -> None:
    target = written(tmp_path, "0001", 4)
    (target / "rank-00001-000.safetensors").unlink()
    assert store.fetch(str(target), held(1, HALVES)) is None
    assert store.fetch(str(tmp_path / "nothing"), held(1, HALVES)) is None


@pytest.mark.s3
def test_on_object_storage_too(tmp_path: Path, s3_bucket: str) -> None:
    import torch

    uri = f"{s3_bucket}/{tmp_path.name}/checkpoints"
    for step, ranks in ((4, (0, 1)), (6, (0, 1)), (8, (0, 1)), (10, (0,))):
        write(f"{uri}/0001/step-{step:06d}-3fa9c1", step, ranks)
    newest = f"{uri}/0001/step-000008-3fa9c1"
    assert store.newest(uri) == newest
    assert store.read_state(newest, IDENTITY) == [ROW] * 8
    whole = {name: [0, size] for name, size in SIZES.items()}
    for _ in range(2):  # a deleted local copy is fetched again
        mine = held(0, whole, blank=True)
        source = store.fetch(newest, mine)
        assert source is not None
        assert (source.problem(), source.fill(mine)) == (None, None)
        assert torch.equal(mine[0].tensors["exp_avg"], values("exp_avg", "layer.weight"))
        source.forget()
        assert not any(path.exists() for path in source.paths.values())
    store.prune(f"{uri}/0001", keep=1)
    assert {name.split("/")[1] for name in storage.list_names(uri)} == {"step-000008-3fa9c1", "step-000010-3fa9c1"}


def test_old_checkpoints_of_this_attempt_are_deleted_once_enough_newer_ones_are_complete(
    tmp_path: Path,
) -> None:
    def left() -> list[str]:
        names = {entry.name.rsplit("-", 1)[0] for entry in storage.listing(str(tmp_path / "checkpoints"))}
        return sorted({"/".join(name.split("/")[:2]).rsplit("-3fa9c1", 1)[0] for name in names})

    written(tmp_path, "0001", 2)
    for step, ranks in ((4, (0, 1)), (6, (1,)), (8, (0, 1)), (10, (0,))):
        written(tmp_path, "0002", step, ranks)
    mine = str(tmp_path / "checkpoints/0002")
    store.prune(mine, keep=2)
    assert left() == [
        "0001/step-000002", "0002/step-000004", "0002/step-000006", "0002/step-000008", "0002/step-000010"
    ]  # fmt: skip
    written(tmp_path, "0002", 10)
    store.prune(mine, keep=2)
    assert left() == ["0001/step-000002", "0002/step-000008", "0002/step-000010"]


def test_a_part_of_a_fragment_and_a_copy_of_it() -> None:
    (fragment,) = held(0, {"layer.weight": [3, 9]})
    part = fragment.part(1, 5)
    assert (part.start, part.stop, part.tensors["weight"].tolist()) == (3, 5, [3.0, 4.0])
    copy = fragment.on_host()
    part.tensors["weight"].zero_()
    assert (fragment.tensors["weight"][0], copy.tensors["weight"][0]) == (0.0, 3.0)
    assert copy.bytes == 3 * 6 * 4
    assert [low == high for low, high in itertools.pairwise(HALVES["layer.bias"])] == [True, False]
