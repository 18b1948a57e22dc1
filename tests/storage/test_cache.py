"""This node's copies: of the right version, fetched once, and used only where no other user can write to them."""

import hashlib
import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest

from humpback_ray import storage
from humpback_ray.storage.inventory import Hashes, resolve_model


def test_weights_that_changed_are_not_loaded(root: str) -> None:
    uri = storage.join(root, "model")
    for name in ("config.json", "model.safetensors"):
        storage.write_bytes(storage.join(uri, name), name.encode())
    found = resolve_model("base_model", uri, Hashes(storage.join(root, "hashes.json")))
    directory = storage.Directory(uri, found.files)
    storage.write_bytes(storage.join(uri, "notes.txt"), b"not of the inventory")
    assert (storage.local_directory(directory) / "model.safetensors").read_bytes() == b"model.safetensors"
    storage.write_bytes(storage.join(uri, "model.safetensors"), b"other.safetensors")
    if not storage.is_s3(root):  # a copy of the old version is still on this node
        with pytest.raises(storage.InputChanged, match=r"model\.safetensors has changed"):
            storage.local_directory(directory)
    storage.forget_old_copies(-1.0)
    with pytest.raises(storage.InputChanged, match=r"model\.safetensors has changed"):
        storage.local_directory(directory)


@pytest.mark.s3
def test_a_model_of_a_stage_is_checked_against_its_hashes_when_it_is_fetched(s3_bucket: str) -> None:
    uri = storage.join(s3_bucket, uuid.uuid4().hex)
    storage.write_bytes(storage.join(uri, "config.json"), b"evil")
    sha256 = hashlib.sha256(b"good").hexdigest()
    file = storage.InputFile(storage.join(uri, "config.json"), "config.json", 4, f"sha256:{sha256}")
    with pytest.raises(storage.Damaged, match=rf"config.json has the SHA-256 .*, but {sha256} was recorded"):
        storage.local_directory(storage.Directory(uri, (file,)))


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of this user's copies."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"humpback-ray-{os.getuid()}"


@pytest.mark.s3
def test_copies_that_another_user_can_write_to_are_not_used(s3_bucket: str, alone: Path, tmp_path: Path) -> None:
    uri = storage.join(s3_bucket, uuid.uuid4().hex)
    storage.write_bytes(storage.join(uri, "config.json"), b"{}")
    copy = storage.local_directory(uri)
    assert copy.parent == alone
    copy.chmod(0o777)
    with pytest.raises(storage.StorageError, match="should be a directory that only user"):
        storage.local_directory(uri)
    copy.chmod(0o700)
    alone.chmod(0o777)
    with pytest.raises(storage.StorageError, match="drwxrwxrwx"):
        storage.local_directory(uri)
    alone.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").chmod(0o700)
    alone.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(storage.StorageError, match="lrwxrwxrwx"):
        storage.local_directory(uri)


@pytest.mark.s3
def test_when_processes_of_a_node_need_a_model_at_once_only_one_fetches_it(s3_bucket: str) -> None:
    root = storage.join(s3_bucket, uuid.uuid4().hex)
    for name in ("config.json", "weights"):
        storage.write_bytes(storage.join(root, name), os.urandom(1 << 20))
    code = (
        "import sys; from humpback_ray import storage; sys.stdin.read(1)\n"
        "print(storage.local_directory(sys.argv[1]), storage.requests()['GetObject'])"
    )
    command, pipe = [sys.executable, "-c", code, root], subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("!")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0].split() for process in processes]
    assert len({path for path, _ in said}) == 1
    assert sorted(int(count) for _, count in said) == [0, 0, 2]
    assert (Path(said[0][0]) / "weights").read_bytes() == storage.read_bytes(storage.join(root, "weights"))
