"""What people find beside the code is true: workflows, citation, notices; and the wheel works without the checkout."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import humpback_ray

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GITHUB = REPOSITORY / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
SHIPPED = ("pyproject.toml", "README.md", *PROJECT["license-files"], "humpback_ray", "jobs")
"""What a wheel is built from."""
FOR_TESTS = {"dev"}
"""Extras that no user installs."""

IN_THE_WHEEL = """
import sys
from pathlib import Path
import humpback_ray, jobs
from humpback_ray.report.template import template
here = Path(humpback_ray.__file__).parent
assert here.is_relative_to(sys.prefix) and Path(jobs.__file__).is_relative_to(sys.prefix), (here, jobs.__file__)
for path in sorted(here.rglob("*.html")):
    assert template(path).render, path
    print(path.relative_to(here).as_posix())
"""


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def jobs_of(workflow: Path) -> dict[str, Any]:
    return read(workflow)["jobs"]


def steps_of(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in jobs_of(workflow).values() for step in job["steps"]]


def test_workflows_run_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    runs = {path.stem: [step["run"] for step in steps_of(path) if "run" in step] for path in WORKFLOWS}
    assert runs == {"ci": ["make lint", "make test", "make test-vllm"], "nightly": ["make chaos"]}
    assert {command.removeprefix("make ") for commands in runs.values() for command in commands} <= targets
    local = (REPOSITORY / ".ci" / "run").read_text()
    assert re.findall(r"^make .*", local, re.MULTILINE) == runs["ci"], ".ci/run and ci.yml run the same"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_pinned_bounded_and_may_only_read(path: Path) -> None:
    assert read(path)["permissions"] == {"contents": "read"}
    for name, job in jobs_of(path).items():
        assert job["timeout-minutes"] < 360, name
        assert "permissions" not in job, name
    text = path.read_text()
    used = re.findall(r"uses: (.*)", text)
    assert used
    assert [one for one in used if not re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", one)] == []
    assert all(step["with"]["persist-credentials"] is False for step in steps_of(path) if "checkout" in str(step))
    assert "pull_request_target" not in text
    keys = [step["with"]["cache-dependency-path"] for step in steps_of(path) if "cache" in step.get("with", {})]
    assert keys
    assert [name for key in keys for name in key.split() if not (REPOSITORY / name).is_file()] == []


def test_tests_run_on_every_python_that_the_project_takes() -> None:
    (job,) = [job for job in jobs_of(GITHUB / "workflows" / "ci.yml").values() if "strategy" in job]
    takes = SpecifierSet(PROJECT["requires-python"])
    assert job["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in range(40) if takes.contains(f"3.{minor}")]


def test_the_citation_names_this_version_and_the_paper() -> None:
    cited = read(REPOSITORY / "CITATION.cff")
    assert (cited["version"], cited["license"]) == (humpback_ray.__version__, PROJECT["license"])
    assert [author["name"] for author in cited["authors"]] == ["The humpback_ray developers"]
    (paper,) = cited["references"]
    assert paper["identifiers"] == [{"type": "other", "value": "arXiv:2308.06259"}]


@pytest.mark.parametrize("path", sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name)
def test_issue_forms_have_what_github_needs(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= form.keys()
    asked = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in asked}) == len(asked) > 0
    assert all(field["attributes"]["label"] for field in asked)


def license_of(package: str) -> str | None:
    """The license that an installed package states, in one line; None where it is not installed."""
    try:
        found = cast(Message, metadata.metadata(package))
    except metadata.PackageNotFoundError:
        return None
    whole = found.get("License") or ""
    stated = found.get("License-Expression") or (whole if "\n" not in whole else "")
    classified = [line for line in found.get_all("Classifier") or [] if line.startswith("License")]
    return stated or classified[-1].rpartition(" :: ")[2]


def test_notices_list_every_dependency_with_the_license_it_states() -> None:
    notices = (REPOSITORY / "THIRD_PARTY_NOTICES.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| ([a-z0-9-]+) \| (.+) \|$", notices, re.MULTILINE))
    extras = [one for name, extra in PROJECT["optional-dependencies"].items() if name not in FOR_TESTS for one in extra]
    needed = {Requirement(one).name for one in (*PROJECT["dependencies"], *extras)}
    assert listed.keys() == needed
    stated = {name: license_of(name) for name in sorted(needed)}
    assert sum(found is not None for found in stated.values()) >= len(PROJECT["dependencies"])
    wrong = {name: found for name, found in stated.items() if found not in (None, listed[name])}
    assert not wrong, f"write what these packages state into THIRD_PARTY_NOTICES.md: {wrong}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network from a copy, since a build leaves folders that a later one would pack."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in SHIPPED:
        path = REPOSITORY / name
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(path, source / name, ignore=ignored) if path.is_dir() else shutil.copy(path, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(dist), str(source))
    (built,) = dist.glob("*.whl")
    return built


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_holds_all_files_of_the_packages_and_the_notices(wheel: Path) -> None:
    there = {
        path.relative_to(REPOSITORY).as_posix()
        for package in ("humpback_ray", "jobs")
        for path in (REPOSITORY / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    assert any(name.endswith(".css") for name in there)
    assert there - packed == set(), "name their endings under [tool.setuptools.package-data]"
    about = {name.partition(".dist-info/")[2] for name in packed - there}
    assert {f"licenses/{name}" for name in PROJECT["license-files"]} <= about
    assert {name for name in packed - there if ".dist-info/" not in name} == set(), "only the two packages are packed"


def test_an_installed_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Its dependencies are those of this environment, which the new one sees behind its own packages."""
    environment = tmp_path / "venv"
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    pip("--python", str(python), "install", "--no-index", "--no-deps", str(wheel))
    where = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    below = sysconfig.get_path("purelib")
    (Path(where.strip()) / "base.pth").write_text(f"import site; site.addsitedir({below!r})\n")

    away = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*arguments: str) -> str:
        done = subprocess.run([python, *arguments], cwd=tmp_path, env=away, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "usage:" in run("-m", "jobs.pipeline", "--help")
    templates = run("-c", IN_THE_WHEEL).split()
    assert {"report/page.html", "miniature/findings.html", "miniature/truth.html"} <= set(templates)
