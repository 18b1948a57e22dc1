"""Imports go one way, heavy libraries stay out of the driver, and some words stay out of the package."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

REPOSITORY = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "deepspeed", "vllm", "ray"}

LEVEL = {
    "config": 0, "needs": 0, "packages": 0, "records": 0, "storage": 0, "text": 0, "hub": 1, "rates": 1, "placement": 1,
    "inputs": 2, "stages": 3, "prompts": 7, "engines": 8,
    "sample": 9, "seed": 9, "corpus": 9, "augment": 9, "rewrite": 9, "curate": 9, "train": 9, "evaluate": 9,
    "report": 10, "run": 10, "pipeline": 11, "operate": 11, "miniature": 12,
}  # fmt: skip
"""A module imports what is below it; parts of one level do not import each other."""

SHARED = {("seed", "corpus")}
"""seed makes ids and cleans texts with the corpus's readers."""


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path, top_level_only: bool) -> Iterator[str]:
    tree = tree_of(path)
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
JOBS = [path.stem for path in sorted((REPOSITORY / "jobs").glob("*.py")) if "__main__" in path.read_text()]


def test_imports_go_one_way() -> None:
    offenders = [f"{name(path)} {fault}" for path in MODULES for fault in misplaced(path)]
    assert not offenders, "\n".join(offenders)


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def misplaced(path: Path) -> Iterator[str]:
    """What is wrong with a module's imports."""
    here = part(".".join(path.relative_to(REPOSITORY).with_suffix("").parts))
    if here is None:
        if path.stem != "__init__":
            yield "has no level"
        return
    for module in imports(path, top_level_only=False):
        there = part(module)
        upwards = there and there != here and (here, there) not in SHARED and LEVEL[there] >= LEVEL[here] > 1
        if upwards or module.startswith("jobs"):
            yield f"imports {module}"


def test_heavy_libraries_are_imported_inside_functions() -> None:
    imported = ((path, module) for path in MODULES for module in imports(path, top_level_only=True))
    offenders = [f"{name(path)} imports {module}" for path, module in imported if module.split(".")[0] in HEAVY]
    assert not offenders, "\n".join(offenders)


def test_the_package_neither_prints_nor_starts_ray_nor_reads_the_environment() -> None:
    offenders = [f"{name(path)}:{fault}" for path in MODULES for fault in reaching_out(path)]
    assert not offenders, "\n".join(offenders)


def reaching_out(path: Path) -> Iterator[str]:
    """Where a module does what only jobs may do."""
    for node in ast.walk(tree_of(path)):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        read = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if called in ("print", "ray.init", "os.getenv") or read == "os.environ":
            yield f"{cast(ast.expr, node).lineno} {called or read}"


HELP = """
import contextlib, io, runpy, sys
heavy, jobs = set(sys.argv[1].split(",")), sys.argv[2:]
for job in jobs:
    sys.argv, code, before = [f"jobs.{job}", "--help"], None, heavy & set(sys.modules)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try: runpy.run_module(f"jobs.{job}", run_name="__main__")
        except SystemExit as end: code = end.code
    if code != 0 or "usage:" not in out.getvalue(): print(f"jobs.{job} exits with {code} and says {out.getvalue()!r}")
    loaded = heavy & set(sys.modules) - before
    if loaded: print(f"jobs.{job} loads {sorted(loaded)}")
"""


def test_help_imports_nothing_heavy() -> None:
    assert {"pipeline", "train", "plan", "status"} <= set(JOBS)
    command = [sys.executable, "-c", HELP, ",".join(HEAVY), *JOBS]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
