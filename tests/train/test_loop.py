import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from humpback_ray.placement import TrainPlacement
from humpback_ray.train.examples import read_pairs
from tests.train.conftest import plain_loop
from tests.train.workers import RECIPE, Case, job, run

pytestmark = pytest.mark.slow

Results = dict[str, dict[str, Any]]


def placement(zero_stage: int, micro: int, **more: Any) -> TrainPlacement:
    return TrainPlacement.model_validate({"zero_stage": zero_stage, "micro_batch_examples": micro, **more})


@pytest.fixture(scope="module")
def plain(base: Path, pairs: tuple[str, ...], tokenizer: Any) -> list[tuple[float, float]]:
    return plain_loop(base, pairs, tokenizer, RECIPE)


def damage(source: Path, target: Path, name: str) -> None:
    """Copy checkpoints and put a pickle that exits when it is loaded, as long, in the place of a file of the newest."""
    shutil.copytree(source, target)
    folder = max(target.glob("*/step-*")) / "zero"
    victim = next(folder.glob(name), folder / name)
    size = victim.stat().st_size if victim.exists() else 0
    victim.write_bytes(b"cbuiltins\nexit\n(tR.".ljust(size, b"\0"))


@pytest.fixture(scope="module")
def one(base: Path, pairs: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What one worker makes of every case."""
    at = tmp_path_factory.mktemp("one")
    full = job(base, pairs, at / "full")
    dropout = {"dropout": 0.3, "dtype": "bfloat16"}
    return run(
        [
            Case("zero 0", full, placement(0, 7)),
            Case("zero 2", full, placement(2, 2, checkpoint_every_steps=5), checkpoints=at / "checkpoint"),
            Case("resumed", job(base, pairs, at / "resumed"), placement(2, 2), checkpoints=at / "checkpoint"),
            Case(
                "other recipe",
                job(base, pairs, at / "x", weight_decay=0.2),
                placement(2, 2),
                checkpoints=at / "checkpoint",
            ),
            Case("other stage", full, placement(3, 2), checkpoints=at / "checkpoint"),
            Case(
                "dropout", job(base, pairs, at / "d", **dropout), placement(2, 4, checkpoint_every_steps=5), at / "d-5"
            ),
            Case("dropout resumed", job(base, pairs, at / "d2", **dropout), placement(2, 4), checkpoints=at / "d-5"),
            Case(
                "strange",
                full,
                placement(2, 2),
                at / "s",
                partial(damage, at / "checkpoint", at / "s", "more.pt"),
            ),
            Case(
                "damaged",
                full,
                placement(2, 2),
                at / "t",
                partial(damage, at / "checkpoint", at / "t", "*optim*"),
            ),
            Case("burst", job(base, pairs, at / "burst", learning_rate=1e30), placement(2, 4)),
            Case("too long", job(base, pairs, at / "none", max_length_tokens=8), placement(2, 4)),
        ],
        workers=1,
        directory=at,
    )


@pytest.fixture(scope="module")
def two(one: Results, base: Path, pairs: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The same with two workers, who are given a single one's checkpoint too."""
    at = tmp_path_factory.mktemp("two")
    alone = Path(one["zero 2"]["at"]) / "checkpoint"
    full = job(base, pairs, at / "full")
    return run(
        [
            Case("zero 2", full, placement(2, 3)),
            Case("zero 3", full, placement(3, 3, checkpoint_every_steps=5), checkpoints=at / "checkpoint"),
            Case("resumed", job(base, pairs, at / "resumed"), placement(3, 3), checkpoints=at / "checkpoint"),
            Case("bfloat16", job(base, pairs, at / "bfloat16", dtype="bfloat16"), placement(3, 3)),
            Case("micro of one", job(base, pairs, at / "micro"), placement(1, 1)),
            Case("other workers", full, placement(2, 2), checkpoints=alone),
        ],
        workers=2,
        directory=at,
    )


def losses(result: dict[str, Any]) -> list[float]:
    assert "stopped" not in result, result
    return [row["loss"] for row in result["metrics"]]


@pytest.mark.parametrize("case", ["zero 0", "zero 2"])
def test_one_worker_has_the_losses_of_a_plain_loop(one: Results, plain: list[tuple[float, float]], case: str) -> None:
    assert losses(one[case]) == pytest.approx([loss for loss, _ in plain], rel=1e-5)


@pytest.mark.parametrize("case", ["zero 2", "zero 3", "micro of one"])
def test_two_workers_have_the_losses_of_a_plain_loop(two: Results, plain: list[tuple[float, float]], case: str) -> None:
    assert losses(two[case]) == pytest.approx([loss for loss, _ in plain], rel=1e-5)


def test_gradient_norms_are_those_of_the_global_batch(
    one: Results, two: Results, plain: list[tuple[float, float]]
) -> None:
    for result in (one["zero 0"], one["zero 2"], two["zero 2"], two["zero 3"]):
        norms = [row["gradient_norm"] for row in result["metrics"]]
        assert norms == pytest.approx([norm for _, norm in plain], rel=1e-3)


def test_bfloat16_keeps_master_weights_and_stays_close(two: Results, plain: list[tuple[float, float]]) -> None:
    assert losses(two["bfloat16"]) == pytest.approx([loss for loss, _ in plain], rel=2e-3)


def test_a_resumed_run_ends_at_the_same_loss(one: Results, two: Results) -> None:
    for whole, resumed in [(one["zero 2"], one["resumed"]), (two["zero 3"], two["resumed"])]:
        assert resumed["resumed_from"] == 10
        assert losses(resumed) == pytest.approx(losses(whole), rel=1e-5)
        assert [row["step"] for row in resumed["metrics"]] == list(range(1, 13))


def test_a_resumed_run_draws_the_same_dropout_masks(one: Results) -> None:
    assert losses(one["dropout resumed"]) == pytest.approx(losses(one["dropout"]), rel=1e-5)
    assert one["dropout"]["dropouts"] == ["attention_dropout"]


def test_a_loss_that_is_no_number_stops_the_run_with_its_step_and_rows(one: Results, pairs: tuple[str, ...]) -> None:
    verdict = one["burst"]["stopped"]
    assert "step 2 has loss" in verdict
    assert sum(row["id"] in verdict for row in read_pairs(pairs)[0]) == RECIPE.batch_examples


def test_a_checkpoint_of_another_recipe_or_stage_is_refused_with_both_values(one: Results) -> None:
    assert "recipe.weight_decay = 0.1 and this run has 0.2" in one["other recipe"]["stopped"]
    assert "placement.zero_stage = 2 and this run has 3" in one["other stage"]["stopped"]


def test_no_examples_is_a_verdict_with_numbers(one: Results) -> None:
    assert "27 pairs were kept by earlier stages and 27 of them are longer than 8" in one["too long"]["stopped"]


def test_the_result_tells_what_was_trained(one: Results) -> None:
    result = one["zero 2"]
    assert result["examples"] == {"kept": 27, "too_long": 0, "truncated": 0, "held_out": 0, "dropped_before": 3}
    assert result["metrics"][-1]["learning_rate"] == 9e-6
    assert result["output_tokens"] == sum(row["output_tokens"] for row in result["metrics"]) < result["tokens"]
    assert {"model.safetensors", "config.json", "chat_template.jinja", "generation_config.json"} <= {
        file["name"] for file in result["files"]
    }


def test_damage_is_found_before_anything_is_unpickled(one: Results) -> None:
    assert "more.pt has no checksum" in one["strange"]["stopped"]
    assert "optim_states.pt is not what was written" in one["damaged"]["stopped"]


def test_another_number_of_workers_is_refused_with_both_numbers(two: Results) -> None:
    assert "placement.workers = 1 and this run has 2" in two["other workers"]["stopped"]
