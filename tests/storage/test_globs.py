"""The files that a pattern names, locally and on S3, and the error for a directory that cannot be listed."""

import subprocess
import sys
from pathlib import Path

import pytest

from humpback_ray import storage


def test_names_with_a_dot_are_left_out_unless_they_are_asked_for(root: str) -> None:
    for name in ("a.json", ".b.json", "deep/c.json", ".deep/d.json", "deep/.e/f.json", "_g.json"):
        storage.write_bytes(storage.join(root, "in", name), b"1")

    def found(pattern: str) -> list[str]:
        return [file.name for file in storage.find(storage.join(root, "in", pattern))]

    assert found("") == found("**") == found("**/*.json") == ["_g.json", "a.json", "deep/c.json"]
    assert found("*.json") == ["_g.json", "a.json"]
    assert found(".*") == found(".b.json") == [".b.json"]
    assert found(".deep/*") == ["d.json"]
    assert found(".d*/*") == [".deep/d.json"]
    assert found("*/c.json") == ["deep/c.json"]


def test_links_are_followed_and_a_broken_or_circular_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    (tmp_path / "else/b.json").write_text("1")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/linked").symlink_to(tmp_path / "else")
    for pattern in ("in", "in/**/*.json", "in/*/*.json"):
        assert [file.name for file in storage.find(str(tmp_path / pattern))] == ["linked/b.json"]
    assert storage.list_names(str(tmp_path / "in")) == ["linked/b.json"]
    (tmp_path / "in/gone").symlink_to(tmp_path / "nowhere")
    for look in (storage.find, storage.list_names, storage.listing):
        with pytest.raises(storage.StorageError, match=r"in/gone is a link to .*nowhere, which does not exist"):
            look(str(tmp_path / "in"))
    (tmp_path / "in/gone").unlink()
    (tmp_path / "else/back").symlink_to(tmp_path / "in")
    with pytest.raises(storage.StorageError, match="is a link to a directory that contains it"):
        storage.find(str(tmp_path / "in"))


def test_a_directory_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    locked = tmp_path / "in/locked"
    locked.mkdir(parents=True)
    (locked / "c.json").write_text("1")
    tmp_path.chmod(0o755)
    locked.chmod(0)
    code = f"""
import os, sys
from humpback_ray import storage
if os.getuid() == 0:
    os.setgid(65534), os.setuid(65534)
for look in (storage.find, storage.list_names, storage.listing):
    try:
        sys.exit(f"{{look.__name__}} returned {{look({str(tmp_path / "in")!r})}}")
    except PermissionError as error:
        assert "locked" in str(error), error
"""
    for parent in [*tmp_path.parents][:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    locked.chmod(0o700)
    assert done.returncode == 0, done.stderr
