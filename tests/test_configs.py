"""Every file in configs/ is a valid run."""

from pathlib import Path

import pytest

from humpback_ray.config import load
from humpback_ray.run import RunConfig

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_configuration_parses(path: Path) -> None:
    assert load(RunConfig, path).root
