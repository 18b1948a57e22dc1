import threading
from pathlib import Path

import pytest

from humpback_ray.train.checkpoint import store
from humpback_ray.train.checkpoint.fragments import Fragment
from humpback_ray.train.checkpoint.saver import Saver
from humpback_ray.train.job import StepMetrics
from tests.conftest import Said

ROW = StepMetrics(1, 2.5, 1e-5, 0.5, 10, 4, 0.1)


@pytest.fixture
def fragments() -> list[Fragment]:
    import torch

    return [Fragment("weight", 0, {"weight": torch.zeros(3)})]


def save(saver: Saver, step: int, fragments: list[Fragment]) -> None:
    saver.save(f"step-{step:06d}-3fa9c1", fragments, store.state_of({}, [ROW] * step, 1))


def test_a_checkpoint_stores_the_values_from_when_it_began(tmp_path: Path, fragments: list[Fragment]) -> None:
    import torch

    saver = Saver(str(tmp_path / "0001"), rank=0, keep=2)
    for step in range(1, 5):
        fragments[0].tensors["weight"].fill_(step)
        save(saver, step, fragments)
        fragments[0].tensors["weight"].fill_(-1)
    saver.wait()
    assert sorted(path.name for path in (tmp_path / "0001").glob("step-*/state.json")) == ["state.json"] * 2
    newest = store.newest(str(tmp_path))
    source = store.fetch(str(newest), fragments)
    assert source is not None
    assert source.fill(fragments) is None
    assert torch.equal(fragments[0].tensors["weight"], torch.full((3,), 4.0))


def test_a_short_storage_failure_is_retried_and_a_long_one_loses_only_that_checkpoint(
    tmp_path: Path, fragments: list[Fragment], monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    attempt = tmp_path / "checkpoints/0001"
    attempt.parent.write_text("a file where the directory should be")
    saver = Saver(str(attempt), rank=0, keep=2)
    monkeypatch.setattr(store, "PAUSES_S", (0.01, 0.01))
    save(saver, 1, fragments)
    saver.wait()
    assert any("step-000001-3fa9c1; training continues" in message for _, message in said.records)
    monkeypatch.setattr(store, "PAUSES_S", (0.5,))
    threading.Timer(0.1, attempt.parent.unlink).start()
    save(saver, 2, fragments)
    assert saver.pending is not None
    assert not saver.pending.done()
    saver.wait()
    assert store.newest(str(attempt.parent)) == str(attempt / "step-000002-3fa9c1")
