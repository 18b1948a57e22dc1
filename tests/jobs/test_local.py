"""A machine on which the run could not work is refused before Ray starts; the message says what to change."""

from pathlib import Path

import pytest

from humpback_ray.config import ConfigError, load
from humpback_ray.runconfig import RunConfig
from jobs.local import check_directories, check_local

DEMO = str(Path(__file__).parents[2] / "configs/demo.yaml")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("augment.placement.min_replicas=9", r"augment.placement asks for 18 CPUs at once; this machine has 4"),
        ("curate.placement.gpus_per_replica=0.5", r"curate.placement asks for 0.5 GPUs at once; this machine has 0"),
        (
            "train.placement.labels={ray.io/market-type: spot}",
            r"train.placement.labels asks .* ray.io/market-type=spot",
        ),
    ],
)
def test_a_placement_that_this_machine_cannot_fulfill_is_refused(override: str, said: str) -> None:
    have = {"CPU": 4.0, "GPU": 0.0}
    check_local(load(RunConfig, DEMO, ["augment.placement.max_replicas=100"]), have)
    with pytest.raises(ConfigError, match=said):
        check_local(load(RunConfig, DEMO, [override]), have)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"TMPDIR": "/nonexistent"}, r"/nonexistent \(TMPDIR\) cannot be written to: No such file"),
        ({"RAY_TMPDIR": "/proc"}, r"/proc \(RAY_TMPDIR\) cannot be written to"),
        (
            {"TMPDIR": "{long}"},
            r"a{60} \(TMPDIR\) is \d+ bytes long; it may have at most \d\d, .* at most 107 bytes",
        ),
        ({"HOME": "/proc"}, r"/proc \(HOME\) cannot be written to"),
    ],
)
def test_directories_in_which_ray_cannot_start_are_refused(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("a" * 60)
    long.mkdir()
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(long=long))
    with pytest.raises(ConfigError, match=said):
        check_directories()
