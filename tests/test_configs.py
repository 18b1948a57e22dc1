"""Every file in configs/ is a valid run that fits the GPUs it is written for, and the others that it names."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from humpback_ray.config import load
from humpback_ray.operate.plan import plan_run
from humpback_ray.runconfig import RunConfig
from humpback_ray.train.sizes import SIZES

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
LARGE = [path for path in CONFIGS if path.stem in SIZES]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_configuration_parses_and_fits(path: Path) -> None:
    made = plan_run(load(RunConfig, path))
    assert not made.problems
    assert {stage.name for stage in made.stages} >= {"segments", "candidates", "round-1/scores", "models/m2"}
    assert made.dollars > 0


def lines() -> Iterator[tuple[Path, str, list[str]]]:
    """Every `# on MACHINE: key=value ...` of a configuration."""
    for path in LARGE:
        for machine, keys in re.findall(r"^# on (\S+): (.*)$", path.read_text(), re.MULTILINE):
            yield path, machine, keys.split()


@pytest.mark.parametrize(("path", "machine", "keys"), lines(), ids=lambda value: getattr(value, "name", None))
def test_a_configuration_fits_the_other_gpus_that_it_names(path: Path, machine: str, keys: list[str]) -> None:
    config = load(RunConfig, path, keys)
    assert config.plan.machine == machine
    assert not plan_run(config).problems


def test_every_configuration_of_a_size_names_the_other_gpus_and_is_named_as_its_size() -> None:
    assert len(LARGE) == len(CONFIGS) - 1, "all but the demo"
    for path in LARGE:
        assert load(RunConfig, path).plan.size == path.stem
        assert [machine for where, machine, _ in lines() if where == path] == ["A100-80G", "H200"]


@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.name)
def test_no_other_number_of_workers_is_both_sensible_and_cheaper(path: Path) -> None:
    """A placement is the plan's choice, within a factor of two for the margins that a file's comment names."""
    training = plan_run(load(RunConfig, path)).trainings[-1]
    assert training.sensible is not None
    assert training.step.workers / training.sensible.workers in (0.5, 1, 2)
