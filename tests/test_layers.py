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

ROOMS = (
    ("records", "needs"), ("packages",), ("config",), ("text",), ("storage",), ("hub", "rates", "placement"),
    ("inputs",),
    ("stages",), ("prompts",), ("engines",),
    ("sample", "seed", "corpus", "augment", "rewrite", "curate", "train", "evaluate"),
    ("libraries", "runconfig"), ("graph",), ("report", "run"), ("context",), ("pipeline", "operate"), ("miniature",),
)  # fmt: skip
"""The top-level packages and modules, from the lowest up: each imports only those below it. Those on one line do
not import each other."""
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}

BARE = ("train", "engines", "operate.plan")
"""Modules that run on a machine with GPUs and little else."""
ABSENT = ("ray", "resiliparse", "fastwarc")
HANDS_ON = "humpback_ray/train/export/process.py"
"""It starts a process with this one's environment, less what concerns this one alone; it reads no setting there."""


@functools.cache
def tree_of(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text())
    except SystemError:  # CPython 3.11 adds up the depth of parses in all threads; another thread was parsing
        return ast.parse(path.read_text())


def imported(path: Path, top_level_only: bool) -> Iterator[str]:
    """The dotted names that a module imports: `a.b` for `from a import b`."""
    tree = tree_of(path)
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


MODULES = sorted((REPOSITORY / "humpback_ray").rglob("*.py"))
JOBS = [path.stem for path in sorted((REPOSITORY / "jobs").glob("*.py")) if "__main__" in path.read_text()]


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


PATHS = {dotted(path): path for path in MODULES}


def modules_of(path: Path, top_level_only: bool = False) -> set[str]:
    """The modules of the package that a module imports, except itself."""
    either = ((name, name.rpartition(".")[0]) for name in imported(path, top_level_only))
    found = {next((one for one in names if one in PATHS), "") for names in either}
    return found - {"", dotted(path)}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_package_imports_only_those_below_it() -> None:
    assert "humpback_ray.graph" in modules_of(PATHS["humpback_ray.run"]), "imports are not read"
    there = {room(module) for module in PATHS if module != "humpback_ray"}
    assert there == LEVEL.keys(), "a package has no level, or a level has no package"
    offenders = [
        f"{module} imports {other}"
        for module, path in PATHS.items()
        for other in modules_of(path)
        if room(other) != room(module) and LEVEL[room(other)] >= LEVEL[room(module)]
    ]
    offenders += [
        f"{module} imports jobs"
        for module, path in PATHS.items()
        if {"jobs"} & {name.split(".")[0] for name in imported(path, False)}
    ]
    assert not offenders, "\n".join(offenders)


def test_no_module_imports_itself_over_others() -> None:
    todo = {module: modules_of(path) for module, path in PATHS.items()}
    while done := {module for module, needs in todo.items() if not needs & todo.keys()}:
        todo = {module: needs for module, needs in todo.items() if module not in done}
    assert not todo, "\n".join(f"{module} imports {needs & todo.keys()}" for module, needs in todo.items())


def test_modules_for_a_bare_gpu_machine_import_neither_ray_nor_the_corpus_libraries() -> None:
    reached: dict[str, str] = {}
    todo = [(module, module) for module in PATHS if module.startswith(tuple(f"humpback_ray.{bare}" for bare in BARE))]
    while todo:
        module, way = todo.pop()
        if module not in reached:
            reached[module] = way
            above = [module.rsplit(".", count)[0] for count in range(1, module.count(".") + 1)]
            todo += [(other, f"{way} → {other}") for other in (*modules_of(PATHS[module], True), *above)]
    offenders = [
        f"{way} imports {library}"
        for module, way in reached.items()
        for library in imported(PATHS[module], top_level_only=True)
        if library.split(".")[0] in ABSENT
    ]
    assert not offenders, "\n".join(offenders)


def test_heavy_libraries_are_imported_inside_functions() -> None:
    found = ((path, module) for path in MODULES for module in imported(path, top_level_only=True))
    offenders = [f"{name(path)} imports {module}" for path, module in found if module.split(".")[0] in HEAVY]
    assert not offenders, "\n".join(offenders)


def test_the_package_neither_prints_nor_starts_ray_nor_reads_the_environment() -> None:
    offenders = [f"{name(path)}:{fault}" for path in MODULES for fault in reaching_out(path)]
    assert not offenders, "\n".join(offenders)


def reaching_out(path: Path) -> Iterator[str]:
    """Lines in which a module does something that only jobs may do."""
    for node in ast.walk(tree_of(path)):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        read = ast.unparse(node) if isinstance(node, ast.Attribute) and name(path) != HANDS_ON else ""
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
