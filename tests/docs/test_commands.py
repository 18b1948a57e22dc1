"""Every command that a page shows is one: its job, flags, settings, stages, targets and files are there.

Words in capitals (CONFIG, ROOT, s3://BUCKET/...) stand for what the reader has. README shows `my.yaml`.
"""

import contextlib
import functools
import io
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from humpback_ray.config import configured, load
from humpback_ray.graph import Graph, kind_of
from humpback_ray.miniature import arms
from humpback_ray.runconfig import RunConfig
from jobs.submit import EXTRA_KEYS
from tests.docs.pages import PAGES, REPOSITORY, Block, blocks, commands

OTHERS = {"ray", "docker", "kubectl", "pip", "wheel", "rm", "export", "source", "hf", "vllm", ".venv/bin/pytest"}
"""Programs that are not ours: a page may show them, and a person tried them."""
OWN_KEYS = {**EXTRA_KEYS, "report": ("out",)}
TAKE_A_ROOT = {"verify": 1, "status": 1, "gc": 1, "retry": 2, "export": 2}
"""Jobs that take no configuration, with the number of their arguments."""
TAKE_FILES = {"winrate"}
"""Jobs that take any number of files of the reader's."""
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*")
EVERY = [(name, words) for name, page in PAGES.items() for words in commands(page.read_text())]


@functools.cache
def helped(job: str) -> str:
    """What a job prints for --help."""
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"jobs.{job}", "--help"])
        with contextlib.suppress(SystemExit):
            runpy.run_module(f"jobs.{job}", run_name="__main__")
    return out.getvalue()


@pytest.fixture(scope="session")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the configurations that pages show, under the names in their first lines."""
    folder = tmp_path_factory.mktemp("shown")
    for page in PAGES.values():
        for block in blocks(page.read_text()):
            if name := shown_as(block):
                (folder / name).write_text(block.text)
    return folder


def shown_as(block: Block) -> str | None:
    found = re.match(r"# ([\w-]+\.yaml)\n", block.text) if block.language in ("yaml", "yml") else None
    return found[1] if found else None


def test_the_configurations_that_pages_show_load(shown: Path) -> None:
    assert [path.name for path in shown.iterdir()] == ["my.yaml"]
    Graph(load(RunConfig, shown / "my.yaml"))
    every = [block for page in PAGES.values() for block in blocks(page.read_text()) if block.language == "yaml"]
    for block in every:
        Graph(configured(RunConfig, {"root": "out", "sample": {}} | yaml.safe_load(block.text)))


def test_commands_are_found_in_blocks_and_in_prose() -> None:
    found = [" ".join(words) for _, words in EVERY]
    assert "make demo" in found
    assert "python -m jobs.verify ROOT" in found
    assert {words[2] for _, words in EVERY if words[:2] == ["python", "-m"]} >= {
        f"jobs.{job}" for job in ("pipeline", "submit", "plan", "status", "verify", "retry", "gc", "export", "report")
    }
    shell = "```\nA=1 python -m jobs.plan x.yaml \\\n    a=b  # why\nmake one; make two\n```\n"
    page = f"{shell}`make three` ```no```\n```python\nmake = 1\n```\n"
    assert list(commands(page)) == [
        ["python", "-m", "jobs.plan", "x.yaml", "a=b"], ["make", "one"], ["make", "two"], ["make", "three"],
    ]  # fmt: skip


@pytest.mark.parametrize(("page", "words"), EVERY, ids=[f"{name}: {' '.join(words)}"[:90] for name, words in EVERY])
def test_every_command_of_a_page_is_one(page: str, words: list[str], shown: Path) -> None:
    assert problem(words, shown) is None, page


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("python -m jobs.pipelin CONFIG", "no module jobs.pipelin"),
        ("python -m jobs.plan configs/none.yaml", "no configuration configs/none.yaml"),
        ("python -m jobs.plan CONFIG train.placement.worker=8", "train.placement.worker"),
        ("python -m jobs.plan CONFIG train.placement.workers=none", "train.placement.workers"),
        ("python -m jobs.plan CONFIG --jsn", "no flag --jsn"),
        ("python -m jobs.plan", "takes a configuration"),
        ("python -m jobs.train CONFIG model=m7", "models/m7"),
        ("python -m jobs.curate CONFIG round=3", "no round 3"),
        ("python -m jobs.miniature CONFIG arms=none", "no arm none"),
        ("python -m jobs.verify", "takes 1 argument"),
        ("python -m jobs.winrate", "takes files"),
        ("python -m jobs.winrate a.json root=out", "takes files"),
        ("python -m jobs.retry ROOT candidate", "no stage candidate"),
        ("python -m jobs.export out/demo/m2 somewhere", "no model out/demo/m2"),
        ("python examples/none.py", "no file examples/none.py"),
        ("make dmo", "no target dmo"),
        ("pyhton -m jobs.plan CONFIG", "no program pyhton"),
        ("timeout 9 python3 examples/none.py", "no file examples/none.py"),
        ("ray job submit --no-wait -- python -m jobs.plan CONFIG rot=x", "rot"),
        ("python -m jobs.plans --help", "no module jobs.plans"),
    ],
)
def test_a_command_that_is_none_is_found(line: str, said: str, shown: Path) -> None:
    found = problem(line.split(), shown)
    assert found
    assert said in found


def problem(words: list[str], shown: Path) -> str | None:
    """What is wrong with a command; None if nothing is."""
    program, *rest = words
    if program == "timeout":
        return problem(rest[1:], shown)
    if program == "ray" and "--" in rest:
        return problem(rest[rest.index("--") + 1 :], shown)
    if program in ("python", "python3"):
        if rest[:1] != ["-m"]:
            return None if (REPOSITORY / rest[0]).is_file() else f"no file {rest[0]}"
        module = rest[1].replace(".", "/")
        if rest[1] == "pip":
            return None
        if not any((REPOSITORY / end).is_file() for end in (f"{module}.py", f"{module}/__main__.py")):
            return f"no module {rest[1]}"
        return problem_of_job(rest[1].removeprefix("jobs."), rest[2:], shown) if module.startswith("jobs/") else None
    if program == "make":
        targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
        return next((f"no target {name}" for name in rest if "=" not in name and name not in targets), None)
    return None if program in OTHERS else f"no program {program}"


def problem_of_job(job: str, arguments: list[str], shown: Path) -> str | None:
    flags = [word for word in arguments if word.startswith("--")]
    if unknown := [flag for flag in flags if not re.search(rf"{flag.partition('=')[0]}\b", helped(job))]:
        return f"no flag {unknown[0]}"
    if "--help" in flags or "…" in arguments:  # the arguments are not shown
        return None
    valued = (
        "--address",
        "--submission-id",
        "--working-dir",
        "--job",
        "--older-than-hours",
        "--reference",
        "--difficulty",
    )
    for flag in valued:
        if flag in arguments:
            del arguments[arguments.index(flag) + 1]
    plain = [word for word in arguments if not word.startswith("--") and not re.match(r"\[?key=value", word)]
    positional = [word for word in plain if not re.match(r"[a-z_0-9.]+=", word)]
    settings = [word for word in plain if word not in positional]
    if job in TAKE_FILES:
        return None if positional and not settings else f"jobs.{job} takes files, here {plain}"
    if job in TAKE_A_ROOT:
        return problem_of_root(job, positional, settings)
    if len(positional) != 1:
        return f"jobs.{job} takes a configuration, here {positional}"
    path = next((at / positional[0] for at in (REPOSITORY, shown) if (at / positional[0]).is_file()), None)
    if path is None and not PLACEHOLDER.fullmatch(positional[0]):
        return f"no configuration {positional[0]}"
    mine = dict(word.split("=", 1) for word in settings if word.partition("=")[0] in OWN_KEYS.get(job, ()))
    try:
        graph = Graph(
            load(
                RunConfig,
                path or REPOSITORY / "configs/demo.yaml",
                [word for word in settings if word.partition("=")[0] not in mine],
            )
        )
        if model := mine.get("model"):
            graph.until(f"models/{model}")
    except ValueError as error:
        return str(error)
    if mine.get("round") and int(mine["round"]) > len(graph.config.curate.recipe.rounds):
        return f"no round {mine['round']}"
    known = {arm.name for arm in arms.arms(kept=4, steps=1)} | {"all"}
    named = mine.get("arms", "all").split(",")
    json.loads(mine.get("seeds", "5"))
    return next((f"no arm {name}" for name in named if name not in known), None)


def problem_of_root(job: str, positional: list[str], settings: list[str]) -> str | None:
    if len(positional) != TAKE_A_ROOT[job]:
        return f"jobs.{job} takes {TAKE_A_ROOT[job]} argument(s), here {positional}"
    if job == "retry" and not PLACEHOLDER.fullmatch(positional[1]) and not kind_of(positional[1]):
        return f"no stage {positional[1]}"
    if job == "export" and not PLACEHOLDER.fullmatch(positional[0]) and not re.search(r"/models/\w+$", positional[0]):
        return f"no model {positional[0]}"
    try:
        load(RunConfig, REPOSITORY / "configs/demo.yaml", settings)
    except ValueError as error:
        return str(error)
    return None


def test_make_demo_ends_by_naming_the_report_and_says_nothing_where_the_run_failed(tmp_path: Path) -> None:
    root = load(RunConfig, REPOSITORY / "configs/demo.yaml").root
    for code in (0, 1):
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\necho ran $*\nexit {code}\n")
        python.chmod(0o755)
        command = ["make", "-s", "-o", ".venv/installed", "demo", f"BIN={tmp_path}"]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        *before, last = done.stdout.splitlines()
        if code == 0:
            assert before == ["ran -m jobs.pipeline configs/demo.yaml"]
            assert last.startswith("Open the report")
            assert last.endswith(f" {root}/report/index.html")
        assert (done.returncode != 0) == bool(code)
        assert ("report" in done.stdout) != bool(code)
