import re
import resource
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import NoCredentialsError

from humpback_ray.train.checkpoint import store
from humpback_ray.train.checkpoint.fragments import Fragment
from humpback_ray.train.checkpoint.saver import Saver
from tests.conftest import Said
from tests.train.checkpoint.test_store import history


@pytest.fixture
def fragments() -> list[Fragment]:
    import torch

    return [Fragment("weight", 0, {"weight": torch.zeros(3)})]


def save(saver: Saver, step: int, fragments: list[Fragment]) -> None:
    saver.save(f"step-{step:06d}-3fa9c1", fragments, store.state_of({}, history(step), 1))


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
    assert newest is not None
    source = store.fetch(newest, fragments)
    assert source is not None
    source.fill(fragments)
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
    newest = store.newest(str(attempt.parent))
    assert newest is not None
    assert newest.uri == str(attempt / "step-000002-3fa9c1")


def gone(patch: pytest.MonkeyPatch, at: Path) -> None:
    patch.setattr(tempfile, "tempdir", str(at / "gone"))


def a_file(patch: pytest.MonkeyPatch, at: Path) -> None:
    (at / "file").write_text("no directory")
    patch.setattr(tempfile, "tempdir", str(at / "file"))


def limited(patch: pytest.MonkeyPatch, at: Path) -> None:
    """Allow no file above 40 bytes, which is less than a safetensors header."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, before[1]))


def without_credentials(patch: pytest.MonkeyPatch, at: Path) -> None:
    def refuse(path: Path, uri: str) -> None:
        raise NoCredentialsError  # of botocore; it is no OSError

    patch.setattr(store.storage, "upload_file", refuse)


@pytest.mark.parametrize(
    ("harm", "said_of_it"),
    [
        (gone, "No such file or directory"),
        (a_file, "Not a directory"),
        (limited, r"File too large.*; it needs 12 bytes, \S+ has [\d,]+ bytes free; make room"),
        (without_credentials, "NoCredentialsError: Unable to locate credentials"),
    ],
)
def test_whatever_storage_raises_loses_only_that_checkpoint(
    tmp_path: Path, fragments: list[Fragment], said: Said, monkeypatch: pytest.MonkeyPatch, harm: Any, said_of_it: str
) -> None:
    monkeypatch.setattr(store, "PAUSES_S", ())
    saver = Saver(str(tmp_path / "0001"), rank=0, keep=2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        harm(patch, tmp_path)
        try:
            save(saver, 1, fragments)
            saver.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    ((level, message),) = said.records
    assert level == "ERROR"
    assert re.search(rf"step-000001-3fa9c1; training continues and will try the next one: .*{said_of_it}", message)
    save(saver, 2, fragments)
    saver.wait()
    newest = store.newest(str(tmp_path))
    assert newest is not None
    assert newest.state.step == 2


def test_a_checkpoint_for_which_there_is_no_memory_is_lost_and_an_error_of_the_device_is_not(
    tmp_path: Path, said: Said
) -> None:
    import torch

    saver = Saver(str(tmp_path / "0001"), rank=0, keep=2)
    save(saver, 1, [Fragment("weight", 0, {"weight": torch.zeros(1).expand(1 << 50)})])
    saver.wait()
    ((_, message),) = said.records
    assert message.endswith("there is no memory for a copy of 4,503,599,627,370,496 bytes")
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # a RuntimeError, as CUDA's are
        save(saver, 2, [Fragment("weight", 0, {"weight": torch.zeros(1, device="meta")})])


def test_training_goes_on_if_old_checkpoints_cannot_be_deleted(
    tmp_path: Path, fragments: list[Fragment], monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    def refuse(uri: str) -> None:
        raise PermissionError(13, "Permission denied", uri)

    saver = Saver(str(tmp_path / "0001"), rank=0, keep=1)
    monkeypatch.setattr(store.storage, "delete", refuse)
    for step in (1, 2):
        save(saver, step, fragments)
    saver.wait()
    ((_, message),) = said.records
    assert re.search("could not delete old checkpoints under .*Permission denied", message)
