"""Training with disks that are really full: a small file system in memory, where this user may mount one."""

import re
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from humpback_ray.placement import TrainPlacement
from humpback_ray.storage import StorageError
from humpback_ray.train.checkpoint import store
from humpback_ray.train.disk import explained, save_tensors, scratch
from humpback_ray.train.job import TrainingStopped
from humpback_ray.train.loop import Session, train
from tests.conftest import Said
from tests.train.conftest import make_tokenizer
from tests.train.workers import job

PLACEMENT = TrainPlacement(zero_stage=2, micro_batch_tokens=600, checkpoint_every_steps=1)

Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Return a function that mounts a file system of some kilobytes, and at most some files, under a name."""
    mounted: list[Path] = []

    def add(name: str, kilobytes: int, files: int = 1000) -> Path:
        (target := tmp_path / name).mkdir()
        limits = f"size={kilobytes}k,nr_inodes={files}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", limits, "tmpfs", target], check=False)
        if done.returncode:
            pytest.skip("this user may not mount a file system")
        mounted.append(target)
        return target

    yield add
    for target in mounted:
        subprocess.run(["umount", "--lazy", target], check=True)


@contextmanager
def small_files(limit_bytes: int) -> Iterator[None]:
    """Let every write beyond a size fail, as on a full disk; needs no privilege."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("who", ["safetensors", "tokenizers", "python"])
def test_a_failed_write_names_the_directory_the_bytes_needed_and_those_free(tmp_path: Path, who: str) -> None:
    import torch

    writers: dict[str, Callable[[], Any]] = {
        "safetensors": lambda: save_tensors({"a": torch.zeros(100)}, tmp_path / "a.safetensors"),
        "tokenizers": lambda: make_tokenizer().save_pretrained(tmp_path),
        "python": lambda: (tmp_path / "a").write_text("x" * 1000),
    }
    words = rf"File too large.*; it needs 400 bytes, {tmp_path} has [\d,]+ bytes free; make room or use a larger disk"
    with pytest.raises(StorageError, match=words), explained("writing", 400, lambda: str(tmp_path)), small_files(99):
        writers[who]()


def test_a_disk_that_takes_no_directory_is_reported_as_a_full_one(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(full := mount("full", 100, files=1)))
    words = rf"writing m0 failed: .*No space left on device.* needs 400 bytes, {full} has [\d,]+ bytes free; make room"
    with pytest.raises(StorageError, match=words), scratch("export", "writing m0", 400):
        pass


def test_errors_that_have_nothing_to_do_with_the_disk_pass(tmp_path: Path) -> None:
    for error in (ValueError("bad"), PermissionError(13, "Permission denied", "s3://x"), TrainingStopped("no")):
        with pytest.raises(type(error)) as raised, explained("writing", 1, lambda: str(tmp_path)):
            raise error
        assert raised.value is error


def test_a_full_temporary_disk_ends_no_step_and_the_export_says_what_it_lacks(
    base: Path, pairs: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mount: Mount, said: Said
) -> None:
    told: list[int] = []
    small = mount("small", 100)
    monkeypatch.setattr(tempfile, "tempdir", str(small))
    monkeypatch.setattr(store, "PAUSES_S", ())
    this = job(base, pairs, tmp_path / "model", steps={"m0": 3})
    session = Session.alone(str(tmp_path / "checkpoints"), lambda figures: told.append(figures["step"]))
    with pytest.raises(StorageError) as raised:
        train(this, PLACEMENT, session)
    assert told == [1, 2, 3]
    assert re.search(rf"writing {small}/\S+ failed: .*No space left on device", str(raised.value))
    assert re.search(rf"it needs 151,168 bytes, {small}\S* has [\d,]+ bytes free; make room", str(raised.value))
    lost = [message for level, message in said.records if level == "ERROR"]
    assert len(lost) == 3
    assert all(f"{small}/humpback-checkpoint" in message and "No space left" in message for message in lost)


def test_an_export_that_failed_is_repeated_without_any_step(
    base: Path, pairs: tuple[str, ...], tmp_path: Path, mount: Mount
) -> None:
    models, told = mount("models", 400), []

    def progress(figures: dict[str, Any]) -> None:
        told.append(figures["step"])
        if figures["step"] == 3:
            (models / "other").write_bytes(bytes(300_000))

    this = job(base, pairs, models / "model", steps={"m0": 3})
    session = Session.alone(str(tmp_path / "checkpoints"), progress)
    placement = PLACEMENT.model_copy(update={"checkpoint_every_steps": 100})
    with pytest.raises(TrainingStopped, match="the trained model will take 151,168 bytes, and"):
        train(this, placement, session)
    (models / "other").unlink()
    result = train(this, placement, session)
    assert told == [1, 2, 3]
    assert (result.resumed_from, len(result.metrics), len(result.greedy)) == (3, 3, 16)
    assert {file.name for file in result.files} >= {"model.safetensors", "README.md"}


@pytest.mark.s3
def test_a_checkpoint_that_the_disk_cannot_take_is_an_error_in_words(
    tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.train.checkpoint.test_store import HALVES, contents, held, write

    uri = write(f"{s3_bucket}/{tmp_path.name}/step-000001-3fa9c1")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = contents(uri)
    words = rf"fetching {uri} failed: .*File too large.*needs \d+ bytes, {tmp_path} has"
    with small_files(100), pytest.raises(StorageError, match=words):
        store.fetch(found, held(0, HALVES))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match="gone"):
        store.fetch(found, held(0, HALVES))
