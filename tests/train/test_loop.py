import json
import math
import random
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from humpback_ray.placement import TrainPlacement
from humpback_ray.train.data.examples import read_examples
from tests.train.conftest import plain_loop, rows, tokens_of
from tests.train.workers import RECIPE, Case, job, run

pytestmark = pytest.mark.slow

Results = dict[str, dict[str, Any]]


def placement(zero_stage: int, micro: int, **more: Any) -> TrainPlacement:
    return TrainPlacement.model_validate({"zero_stage": zero_stage, "micro_batch_tokens": micro, **more})


@pytest.fixture(scope="module")
def plain(base: Path, pairs: tuple[str, ...]) -> list[tuple[float, float]]:
    return plain_loop(base, pairs, RECIPE)


def damage(source: Path, target: Path) -> None:
    """Copy checkpoints, and change the last byte of the newest one's tensors, of the last rank alone."""
    shutil.copytree(source, target)
    spoil(max(target.glob("*/step-*")))


def spoil(checkpoint: Path) -> None:
    victim = max(checkpoint.glob("*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")


def damage_all(checkpoints: Path) -> None:
    for state in checkpoints.glob("*/step-*/state.json"):
        spoil(state.parent)


def forget(checkpoints: Path, step: int) -> None:
    """Delete the checkpoint of a step, as if the run had been interrupted before."""
    (found,) = checkpoints.glob(f"*/step-{step:06d}-*")
    shutil.rmtree(found)


SPIKES: dict[str, Any] = {
    "steps": {"m0": 30}, "batch_examples": 2, "learning_rate": 4e-3, "spike_factor": 1.02, "on_bad_loss": "skip"
}  # fmt: skip


@pytest.fixture(scope="module")
def odd_pairs(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Return pairs where every eighth response is random letters; late in training, such a batch is a spike."""
    table = [{**row, "drop_reason": None} for row in rows(80)]
    for number in range(0, 80, 8):
        table[number]["response"] = "".join(random.Random(number).sample([chr(code) for code in range(33, 126)], 60))
    uri = str(tmp_path_factory.mktemp("odd") / "pairs.parquet")
    pq.write_table(tokens_of(table, tokenizer), uri)
    return (uri,)


@pytest.fixture(scope="module")
def one(
    base: Path,
    pairs: tuple[str, ...],
    odd_pairs: tuple[str, ...],
    tokenizer: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Results:
    """Return one worker's result for every case."""
    at = tmp_path_factory.mktemp("one")
    pq.write_table(tokens_of(rows(30), tokenizer, limit=8), at / "long.parquet")
    full = job(base, pairs, at / "full")
    spiky = job(base, odd_pairs, at / "spikes", **SPIKES)
    dropout = {"dropout": 0.3, "dtype": "bfloat16"}
    return run(
        [
            Case("zero 0", full, placement(0, 2048)),
            Case("zero 2", full, placement(2, 300, checkpoint_every_steps=5), checkpoints=at / "checkpoint"),
            Case(
                "resumed",
                job(base, pairs, at / "resumed"),
                placement(2, 300),
                checkpoints=at / "checkpoint",
                first=partial(forget, at / "checkpoint", 12),
            ),
            Case(
                "other recipe",
                job(base, pairs, at / "x", weight_decay=0.2),
                placement(2, 300),
                checkpoints=at / "checkpoint",
            ),
            Case(
                "dropout",
                job(base, pairs, at / "d", **dropout),
                placement(2, 600, checkpoint_every_steps=5),
                at / "d-5",
            ),
            Case(
                "dropout resumed",
                job(base, pairs, at / "d2", **dropout),
                placement(2, 600),
                at / "d-5",
                partial(forget, at / "d-5", 12),
            ),
            Case("damaged", full, placement(2, 300), at / "t", partial(damage, at / "checkpoint", at / "t")),
            Case("burst", job(base, pairs, at / "burst", learning_rate=1e30), placement(2, 600)),
            Case(
                "bursts",
                job(base, pairs, at / "bursts", learning_rate=1e30, on_bad_loss="skip", max_skipped_steps=2),
                placement(2, 600),
            ),
            Case("spikes 0", spiky, placement(0, 1)),
            Case("spikes 2", spiky, placement(2, 1, checkpoint_every_steps=26)),
            Case("spikes resumed", spiky, placement(2, 1), at / "spikes 2", partial(forget, at / "spikes 2", 30)),
            Case("by the clock", full, placement(2, 2048, checkpoint_every_minutes=1e-9)),
            Case("too long", job(base, (str(at / "long.parquet"),), at / "none"), placement(2, 600)),
        ],
        workers=1,
        directory=at,
    )


@pytest.fixture(scope="module")
def two(
    base: Path, pairs: tuple[str, ...], odd_pairs: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Results:
    """The same with two workers."""
    at = tmp_path_factory.mktemp("two")
    full = job(base, pairs, at / "full")
    return run(
        [
            Case("zero 2", full, placement(2, 300)),
            Case("zero 3", full, placement(3, 300, checkpoint_every_steps=5), checkpoints=at / "checkpoint"),
            Case(
                "resumed",
                job(base, pairs, at / "resumed"),
                placement(3, 300),
                checkpoints=at / "checkpoint",
                first=partial(forget, at / "checkpoint", 12),
            ),
            Case("damaged", full, placement(2, 300), at / "t", partial(damage, at / "checkpoint", at / "t")),
            Case("all damaged", full, placement(2, 300), at / "t", partial(damage_all, at / "t")),
            Case("bfloat16", job(base, pairs, at / "bfloat16", dtype="bfloat16"), placement(3, 300)),
            Case("micro of one", job(base, pairs, at / "micro"), placement(1, 1)),
            Case("spikes 3", job(base, odd_pairs, at / "spikes", **SPIKES), placement(3, 1)),
            Case("warned", full, placement(2, 300), warned=4),
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


def test_a_non_finite_loss_stops_the_run_and_the_error_names_the_step_and_its_rows(
    one: Results, pairs: tuple[str, ...]
) -> None:
    verdict = one["burst"]["stopped"]
    pattern = r"m0: the update of step 2 was not applied: its loss is \S+ and its gradient norm inf; learning rate"
    assert re.search(pattern, verdict)
    kept = json.loads(Path(re.findall(r"rows are listed in (\S+\.json)", verdict)[0]).read_text())
    assert (kept["step"], kept["gradient_norm"], len(kept["rows"])) == (2, math.inf, RECIPE.batch_examples)
    assert set(kept["rows"]) <= {example.id for example in read_examples(pairs)[0]}


def test_bad_steps_are_skipped_up_to_a_number(one: Results) -> None:
    verdict = one["bursts"]["stopped"]
    assert "m0: the update of step 4 was not applied: its loss is" in verdict
    assert "2 steps were skipped before it, and train.recipe.max_skipped_steps allows 2" in verdict


def test_a_skipped_step_changes_neither_weights_nor_optimizer(
    one: Results, two: Results, base: Path, odd_pairs: tuple[str, ...]
) -> None:
    skipped = {row["step"] for row in one["spikes 2"]["metrics"] if row["skipped"]}
    assert skipped == {24}
    recipe = RECIPE.model_copy(update=SPIKES)
    plain = [loss for loss, _ in plain_loop(base, odd_pairs, recipe, skipped)]
    for result in (one["spikes 0"], one["spikes 2"], one["spikes resumed"], two["spikes 3"]):
        assert {row["step"] for row in result["metrics"] if row["skipped"]} == skipped
        assert losses(result) == pytest.approx(plain, rel=1e-5)
    assert one["spikes resumed"]["resumed_from"] == 26


def written(result: dict[str, Any], case: str) -> set[str]:
    """Return the steps of a case's checkpoints."""
    return {path.parent.name.split("-")[1] for path in Path(result["at"], case).glob("0001/step-*/state.json")}


def test_checkpoints_are_saved_by_the_clock_and_after_a_warning_to_any_worker(one: Results, two: Results) -> None:
    assert written(one["by the clock"], "by the clock") == {"000011", "000012"}
    assert written(two["warned"], "warned") == {"000004", "000012"}


def test_a_checkpoint_of_another_recipe_is_refused_with_both_values(one: Results) -> None:
    assert "recipe.weight_decay = 0.1 and this run has 0.2" in one["other recipe"]["stopped"]


def test_a_run_without_examples_stops_and_the_error_counts_the_dropped_pairs(one: Results) -> None:
    assert "27 of 27 pairs are longer than 2048 tokens" in one["too long"]["stopped"]


def test_the_result_tells_what_was_trained(one: Results) -> None:
    result = one["zero 2"]
    assert result["examples"] == {"kept": 27, "too_long": 0, "truncated": 0, "held_out": 0}
    assert result["metrics"][-1]["learning_rate"] == 9e-6
    assert result["output_tokens"] == sum(row["output_tokens"] for row in result["metrics"]) < result["tokens"]
    assert {"model.safetensors", "config.json", "chat_template.jinja", "generation_config.json"} <= {
        file["name"] for file in result["files"]
    }


def test_a_damaged_checkpoint_is_skipped_by_all_workers_and_if_there_is_no_other_the_run_stops(
    one: Results, two: Results
) -> None:
    for whole, results in ((one["zero 2"], one), (two["zero 3"], two)):
        assert results["damaged"]["resumed_from"] == 10
        assert losses(results["damaged"]) == pytest.approx(losses(whole), rel=1e-5)
    stopped = two["all damaged"]["stopped"]
    assert "m0: every complete checkpoint is damaged (" in stopped
    assert stopped.count("rank-00001-000.safetensors does not match its digest") == 3
