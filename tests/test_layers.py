"""Imports go one way, heavy libraries stay out of the driver, and some words stay out of the package."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "deepspeed", "vllm", "ray"}

LEVEL = {
    "steps": 0, "config": 0, "records": 0, "s3": 0, "storage": 0,
    "rates": 1, "inventory": 1, "placement": 1, "progress": 1, "lease": 1, "processes": 1, "ledger": 2, "watch": 3,
    "actor": 3,
    "isolation": 4, "pool": 5, "stage": 6,
    "prompts": 7, "instructions": 8, "engines": 8,
    "sample": 9, "seed": 9, "corpus": 9, "augment": 9, "rewrite": 9, "curate": 9, "train": 9, "evaluate": 9,
    "report": 10, "run": 10, "pipeline": 11, "verify": 11, "status": 11, "gc": 11, "fetch": 11, "plan": 11,
    "limits": 11, "pilot": 11, "miniature": 12,
}  # fmt: skip
"""A module imports what is below it; parts of one level do not import each other."""

SHARED = {("seed", "corpus")}
"""seed reads JSONL with the corpus's hardened reader of lines."""


def imports(path: Path, top_level_only: bool) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(module: str) -> str | None:
    names = module.split(".")
    return names[1] if names[0] == "humpback_ray" and len(names) > 1 and names[1] in LEVEL else None


MODULES = sorted((REPOSITORY / "humpback_ray").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_go_one_way(path: Path) -> None:
    here = part("humpback_ray." + ".".join(path.relative_to(REPOSITORY / "humpback_ray").with_suffix("").parts))
    if here is None:
        assert path.stem == "__init__", f"{path} has no level"
        return
    for module in imports(path, top_level_only=False):
        there = part(module)
        assert not module.startswith("jobs"), f"{path} imports {module}"
        if there and there != here and (here, there) not in SHARED:
            assert LEVEL[there] < LEVEL[here] or LEVEL[here] <= 1, f"{path} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_heavy_libraries_are_imported_inside_functions(path: Path) -> None:
    found = {module.split(".")[0] for module in imports(path, top_level_only=True)}
    assert not found & HEAVY


def test_the_package_neither_prints_nor_starts_ray_nor_reads_the_environment() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "ray.init", "os.getenv"), f"{path}:{node.lineno}"
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) != "os.environ", f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "job",
    [
        "pipeline",
        "corpus",
        "seed",
        "train",
        "augment",
        "curate",
        "evaluate",
        "report",
        "verify",
        "status",
        "gc",
        "export",
        "plan",
    ],
)
def test_help_imports_nothing_heavy(job: str) -> None:
    check = (
        "import runpy, sys\n"
        f"sys.argv = ['jobs.{job}', '--help']\n"
        f"try: runpy.run_module('jobs.{job}', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        f"loaded = {HEAVY!r} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
