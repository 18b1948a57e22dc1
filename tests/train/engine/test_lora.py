"""LoRA: the same batches and loss, frozen weights, a merged export; in this process and on two workers with ZeRO 3."""

from pathlib import Path
from typing import Any

import pytest

from humpback_ray.placement import TrainPlacement
from humpback_ray.prompts.chat import ChatRecipe, encode_prompt
from humpback_ray.train.export.reload import probe_prompt
from humpback_ray.train.job import TrainResult
from humpback_ray.train.loop import Session, train
from humpback_ray.train.recipe import Lora
from tests.train.test_loop import forget
from tests.train.workers import Case, job, run

LORA: dict[str, Any] = {
    "method": Lora(rank=4, alpha=8, dropout=0.0), "learning_rate": 2e-2, "final_learning_rate": 2e-2,
    "validation_share": 0.3, "validate_every_steps": 6,
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def result(home: Path, base: Path, pairs: tuple[str, ...]) -> TrainResult:
    this = job(base, pairs, home / "model", **LORA)
    return train(this, TrainPlacement(zero_stage=2, micro_batch_tokens=600), Session.alone(str(home / "checkpoints")))


@pytest.fixture(scope="module")
def weights(home: Path, result: TrainResult) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(home / "model" / "model.safetensors")


def test_the_loss_falls_with_a_tenth_of_the_parameters(result: TrainResult) -> None:
    assert result.trainable_parameters == 4096
    assert result.parameters == 37_792 + 4096
    assert result.metrics[-1].loss < result.metrics[0].loss - 0.3
    measured = [row.validation_loss for row in result.metrics if row.validation_loss is not None]
    assert measured[-1] < measured[0]


def test_frozen_weights_do_not_change_and_adapted_ones_are_merged_under_the_base_models_names(
    weights: dict[str, Any], base: Path
) -> None:
    from safetensors.torch import load_file

    before = load_file(base / "model.safetensors")
    assert set(weights) == set(before)
    changed = {name for name in before if not weights[name].equal(before[name])}
    assert changed == {name for name in before if "_proj." in name}


def test_base_and_adapters_of_the_export_are_the_merged_model(
    home: Path, weights: dict[str, Any], base: Path, result: TrainResult
) -> None:
    """peft loads the saved adapters into a fresh base model: training changed nothing else."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(home / "model")
    ids = torch.tensor([encode_prompt(tokenizer, probe_prompt(ChatRecipe(), "forward"))])
    merged: Any = AutoModelForCausalLM.from_pretrained(home / "model").eval()
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(home / "model" / "adapter"))
    with torch.no_grad():
        torch.testing.assert_close(adapted.eval()(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-5)
    reply = merged.generate(ids, do_sample=False, min_new_tokens=16, max_new_tokens=16)
    assert reply[0, ids.shape[1] :].tolist() == result.greedy


def test_a_run_resumes_from_a_checkpoint(home: Path, base: Path, pairs: tuple[str, ...], result: TrainResult) -> None:
    placement = TrainPlacement(zero_stage=1, micro_batch_tokens=600, checkpoint_every_steps=5)
    losses = []
    for name in ("first", "again"):
        done = train(job(base, pairs, home / name, **LORA), placement, Session.alone(str(home / "resumed")))
        losses.append([row.loss for row in done.metrics])
        if name == "first":
            forget(home / "resumed", 12)
    assert done.resumed_from == 10
    assert losses[0] == pytest.approx([row.loss for row in result.metrics], rel=1e-5)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.slow
def test_two_workers_with_zero_3_have_the_same_losses(
    home: Path, base: Path, pairs: tuple[str, ...], result: TrainResult
) -> None:
    """There are three held-out pairs in micro-batches of one, so a worker has an empty one. Half the steps show it."""
    half, placement = LORA | {"steps": {"m0": 6}}, TrainPlacement(zero_stage=3, micro_batch_tokens=1)
    done = run(
        [
            Case("zero 3", job(base, pairs, home / "two", **half), placement),
            Case("bfloat16", job(base, pairs, home / "bfloat16", **half, dtype="bfloat16"), placement),
        ],
        workers=2,
        directory=home / "workers",
    )
    for name, tolerance in (("zero 3", 1e-5), ("bfloat16", 2e-2)):
        steps = done[name]["metrics"]
        assert [row["loss"] for row in steps] == pytest.approx([row.loss for row in result.metrics[:6]], rel=tolerance)
        assert steps[-1]["validation_loss"] == pytest.approx(result.metrics[5].validation_loss, rel=tolerance)
