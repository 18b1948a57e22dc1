"""An uploaded directory comes back unchanged."""

from pathlib import Path

from humpback_ray import storage


def test_an_uploaded_directory_comes_back_unchanged(root: str, tmp_path: Path) -> None:
    source = tmp_path / "model"
    (source / "deep").mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "deep/weights").write_bytes(b"\0" * 1000)
    entries = storage.upload_directory(source, storage.join(root, "there"))
    assert [(entry.name, entry.bytes) for entry in entries] == [("config.json", 2), ("deep/weights", 1000)]
    back = storage.local_directory(storage.join(root, "there"))
    assert (back / "deep/weights").read_bytes() == b"\0" * 1000
    assert entries[1].sha256 == storage.sha256_of(storage.join(root, "there/deep/weights"))
