"""`--working-dir .` uploads all of the code, by Ray's own packing, but no weights, data or results."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jobs import submit

REPOSITORY = Path(__file__).parents[2]
AT_HOME = ("models/llama-7b/model.safetensors", "data/web/a.warc.gz", "out/demo/run.json", "build/lib/x.py")
GOES = ("humpback_ray/models/x.py", "humpback_ray/data/x.py", "humpback_ray/out/x.py", "jobs/build/x.py")

IMPORT_ALL = """
import importlib, pathlib, pkgutil
here = pathlib.Path.cwd()
count = 0
for package in ("humpback_ray", "jobs"):
    for found in pkgutil.walk_packages([package], package + "."):
        module = importlib.import_module(found.name)
        assert pathlib.Path(module.__file__).is_relative_to(here), module.__file__
        count += 1
print(count)
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of this project with weights, data and results, and packages of the same names below other folders."""
    folder = tmp_path_factory.mktemp("checkout") / "project"
    anywhere = shutil.ignore_patterns("__pycache__", ".*_cache")
    at_top = shutil.ignore_patterns(".git", ".venv*", "out", "models", "data", "build")

    def skipped(directory: str, names: list[str]) -> set[str]:
        return anywhere(directory, names) | (at_top(directory, names) if Path(directory) == REPOSITORY else set())

    shutil.copytree(REPOSITORY, folder, ignore=skipped, symlinks=True)
    for name in (*AT_HOME, *GOES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"1")
    return folder


def test_all_modules_import_from_rays_package(checkout: Path, tmp_path: Path) -> None:
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(str(checkout), package, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    with zipfile.ZipFile(package) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "there")
    assert not names & set(AT_HOME)
    assert names >= set(GOES)
    assert submit.uploaded(checkout).keys() == {name for name in names if not name.endswith("/")}
    modules = [path for top in ("humpback_ray", "jobs") for path in (REPOSITORY / top).rglob("*.py")]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=tmp_path / "there", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    packages = sum(path.name == "__init__.py" for path in modules)
    assert int(done.stdout) >= len(modules) - packages


def test_an_upload_that_is_too_large_is_refused_without_reading_it_and_its_largest_parts_are_named(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    big = checkout / "weights/llama/model.safetensors"
    big.parent.mkdir(parents=True)
    try:
        with big.open("wb") as file:
            file.truncate(30 << 30)  # takes no room and would take minutes to read
        code = submit.main(["--working-dir", str(checkout), str(checkout / "configs/demo.yaml"), f"root={tmp_path}"])
    finally:
        shutil.rmtree(checkout / "weights")
    said = capsys.readouterr().out
    assert code == 2
    assert "30,72" in said
    assert "but a cluster takes 100; largest: weights/llama 30,720 MiB" in said
    assert said.count("\n") == 1
