"""A fine-tune with everything on object storage, under drivers that are killed and stopped."""

import json
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from humpback_ray import storage
from humpback_ray.placement import TrainPlacement
from humpback_ray.stages.manifest import read_manifest
from humpback_ray.train.checkpoint import store
from tests.train.conftest import plain_loop, rows, tokens_of
from tests.train.drivers import TUNE, driver, send, training_workers, wait_for, write_tokens
from tests.train.workers import RECIPE

STEPS = 24
THIS = RECIPE.model_copy(update={"steps": {"m0": STEPS}})
PLACEMENT = TrainPlacement(workers=2, cpus_per_worker=0.5, micro_batch_tokens=400, checkpoint_every_steps=4)


def step_reached(uri: str) -> int:
    """Return the step of the newest complete checkpoint, or 0."""
    found = store.newest(uri)
    return found.state.step if found else 0


def has_ended(process: psutil.Popen) -> bool:
    return process.poll() is not None


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.chaos
def test_a_driver_is_killed_the_next_sleeps_and_is_overtaken_and_the_third_ends_as_if_undisturbed(
    base: Path, pairs: tuple[str, ...], tokenizer: Any, s3_bucket: str, tmp_path: Path
) -> None:
    root = f"{s3_bucket}/{tmp_path.name}"
    storage.upload_directory(base, f"{root}/base")
    write_tokens(root, tokens_of(rows(30), tokenizer))
    model, written = f"{root}/models/m0", f"{root}/models/m0/checkpoints"
    settings = [THIS.model_dump_json(), PLACEMENT.model_dump_json()]

    with driver(TUNE, [root, "killed", *settings], tmp_path / "killed.log") as killed:
        wait_for(lambda: step_reached(written), lambda: not has_ended(killed))
    first = step_reached(written)

    with driver(TUNE, [root, "asleep", *settings], tmp_path / "asleep.log") as asleep:
        wait_for(lambda: step_reached(written) > first, lambda: not has_ended(asleep))
        still = [asleep, *training_workers(asleep)]
        send(signal.SIGSTOP, still)
        newest = store.newest(written)
        assert newest is not None
        half = f"{written}/0002/step-{STEPS:06d}-half/state.json"
        storage.write_bytes(half, storage.read_bytes(f"{newest.uri}/state.json"))
        with driver(TUNE, [root, "awake", *settings], tmp_path / "awake.log") as awake:
            assert awake.wait(600) == 0, (tmp_path / "awake.log").read_text()[-3000:]
        send(signal.SIGCONT, still)
        assert asleep.wait(300) == 3, (tmp_path / "asleep.log").read_text()[-3000:]
        assert psutil.wait_procs(still, timeout=60)[1] == []

    undisturbed = [loss for loss, _ in plain_loop(base, pairs, THIS)]
    made = read_manifest(model)
    assert made is not None
    steps = made.metrics().to_pylist()
    assert [row["step"] for row in steps] == list(range(1, STEPS + 1))
    assert [row["loss"] for row in steps] == pytest.approx(undisturbed, rel=1e-5)
    assert made.extra["losses"] == [steps[0]["loss"], steps[-1]["loss"]]
    assert made.extra["resumed_from"] > first
    assert [commit.attempt for commit in made.commits] == [3]
    assert storage.list_names(f"{model}/commits") == ["all.json"]
    sizes = {entry.name: entry.bytes for entry in storage.listing(model)}
    assert {file.name: sizes[file.name] for file in made.files} == {file.name: file.bytes for file in made.files}
    assert "was overtaken by" in (tmp_path / "asleep.log").read_text()
    ends = [json.loads(storage.read_bytes(f"{model}/lease/{epoch:06d}.end")) for epoch in (1, 2, 3)]
    assert [next(iter(end)) for end in ends] == ["overtaken_by", "overtaken_by", "commit"]
