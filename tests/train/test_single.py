"""`train` in this process, without Ray and without a launcher; and the metrics that it reports."""

import contextlib
import io
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from humpback_ray import storage
from humpback_ray.placement import TrainPlacement
from humpback_ray.prompts.chat import ChatRecipe, encode_prompt
from humpback_ray.records import METRICS
from humpback_ray.train.data.examples import Examples, read_examples
from humpback_ray.train.data.validation import split
from humpback_ray.train.export.reload import probe_prompt
from humpback_ray.train.job import Provenance, StepMetrics, TrainingStopped, TrainResult, metrics_table
from humpback_ray.train.loop import Session, refuse, train
from tests.conftest import Said
from tests.engines.tiny import save_model
from tests.train.conftest import plain_loop
from tests.train.workers import RECIPE, job

SHARE = 0.3
PLACEMENT = TrainPlacement(zero_stage=2, micro_batch_tokens=600, checkpoint_every_steps=5)
ORIGIN = Provenance("demo", "f1" * 32, "toy-base", "b2" * 32, (("seed", 27, "d3" * 32),), "apache-2.0")

Told = list[dict[str, Any]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("single")


@pytest.fixture(scope="module")
def told() -> Told:
    return []


@pytest.fixture(scope="module")
def result(home: Path, base: Path, pairs: tuple[str, ...], told: Told) -> TrainResult:
    this = job(base, pairs, home / "model", validation_share=SHARE, validate_every_steps=5, provenance=ORIGIN)
    return train(this, PLACEMENT, Session.alone(str(home / "checkpoints"), told.append))


@pytest.fixture(scope="module")
def model(home: Path, result: TrainResult) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(home / "model").eval()


def held_out(pairs: tuple[str, ...]) -> tuple[Examples, Examples]:
    return split(read_examples(pairs)[0], SHARE)


def test_the_losses_are_those_of_a_plain_loop_that_never_saw_the_held_out_pairs(
    result: TrainResult, base: Path, pairs: tuple[str, ...], tmp_path: Path
) -> None:
    trained, held = held_out(pairs)
    assert result.resumed_from is None
    assert 0 < len(held) == result.examples["held_out"]
    assert len(trained) == result.examples["kept"]
    table = pa.concat_tables([pq.read_table(uri) for uri in pairs])
    ids = pa.array([example.id for example in trained])
    pq.write_table(table.filter(pc.call_function("is_in", [table["id"]], pc.SetLookupOptions(ids))), tmp_path / "t")
    plain = plain_loop(base, [str(tmp_path / "t")], RECIPE)
    assert [row.loss for row in result.metrics] == pytest.approx([loss for loss, _ in plain], rel=1e-5)


def plain_loss(directory: Path, examples: Examples) -> float:
    """Return the mean loss of an exported model over the output tokens of the examples."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    model, total = AutoModelForCausalLM.from_pretrained(directory).eval(), 0.0
    for example in examples:
        ids, start = torch.tensor(example.ids, dtype=torch.long), example.loss_start
        with torch.no_grad():
            logits = model(ids[None]).logits[0]
        total += cross_entropy(logits[start - 1 : -1], ids[start:], reduction="sum").item()
    return total / sum(example.output_tokens for example in examples)


def test_the_validation_loss_is_that_of_the_exported_model_on_the_held_out_pairs(
    result: TrainResult, home: Path, pairs: tuple[str, ...]
) -> None:
    measured = {row.step: row.validation_loss for row in result.metrics if row.validation_loss is not None}
    assert list(measured) == [5, 10, 12]
    assert measured[12] == pytest.approx(plain_loss(home / "model", held_out(pairs)[1]), rel=1e-5)
    assert measured[12] < measured[5]


def test_every_step_is_a_row_of_metrics(result: TrainResult, told: Told) -> None:
    table = metrics_table(result.metrics)
    assert table.schema == METRICS
    rows = table.to_pylist()
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[3]["validation_loss"] is None
    for row in rows:
        assert row["tokens_per_s"] == pytest.approx(row["tokens"] / row["seconds"])
        assert row["output_tokens"] < row["tokens"]
        assert 0 < row["mfu"] < 1
        assert row["memory_bytes"] > 50_000_000
        assert 0 <= row["data_s"] < row["seconds"]
    assert [figures["loss"] for figures in told] == [row["loss"] for row in rows]
    assert {"step", "steps", "tokens_per_s", "mfu"} <= set(told[0])


def test_packed_rows_hold_no_padding(result: TrainResult) -> None:
    assert {row.padding_share for row in result.metrics} == {0.0}


def test_model_flops_are_six_per_parameter_and_token_and_those_of_attention(result: TrainResult) -> None:
    import torch
    from transformers import LlamaConfig

    from humpback_ray.train.engine.metrics import make_meter

    config = LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    meter = make_meter(config, 1000, 1000, torch.device("cpu"), "float32")
    assert meter.flops([10, 20]) == 6 * 1000 * 30 + 6 * 2 * 32 * (100 + 400)
    assert meter.mfu([10, 20], 2.0) == pytest.approx(meter.flops([10, 20]) / 2 / meter.peak_flops)
    assert "measured on a matrix product" in meter.peak
    frozen = make_meter(config, 1000, 10, torch.device("cpu"), "float32")
    assert frozen.flops_per_token == 4 * 1000 + 2 * 10


def test_the_exported_model_writes_the_tokens_of_the_one_in_memory(result: TrainResult, model: Any, home: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(home / "model")
    ids = encode_prompt(tokenizer, probe_prompt(ChatRecipe(), "forward"))
    reply = model.generate(torch.tensor([ids]), do_sample=False, min_new_tokens=16, max_new_tokens=16)
    assert reply[0, len(ids) :].tolist() == result.greedy
    assert len(result.greedy) == 16


def test_the_card_says_what_the_model_is_and_its_code_runs(result: TrainResult, home: Path) -> None:
    card = (home / "model" / "README.md").read_text()
    first, last = result.metrics[0], result.metrics[-1]
    for said in (
        "license: apache-2.0", "base_model: toy-base", "# m0 of demo", f"`{ORIGIN.fingerprint}`",
        "| seed | 27 | `d3d3d3d3d3d3` |",
        f"| training | {first.loss:.4f} | {last.loss:.4f} |", f"{last.validation_loss:.4f} |", "vllm serve PATH",
        f"{result.examples['kept']} were trained on", "all of 37,792 parameters",
    ):  # fmt: skip
        assert said in card, said
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code.replace("PATH", str(home / "model")).replace("max_new_tokens=256", "max_new_tokens=8"), {})
    assert out.getvalue()


def test_a_second_call_makes_no_step_and_has_every_one_once(
    result: TrainResult, home: Path, base: Path, pairs: tuple[str, ...]
) -> None:
    this = job(base, pairs, home / "again", validation_share=SHARE, validate_every_steps=5)
    again = train(this, PLACEMENT, Session.alone(str(home / "checkpoints")))
    assert again.resumed_from == 12
    rows = metrics_table(again.metrics).to_pylist()
    assert [row["step"] for row in rows] == list(range(1, 13))
    measured = [row.validation_loss for row in result.metrics if row.validation_loss]
    assert [row["validation_loss"] for row in rows if row["validation_loss"]] == pytest.approx(measured, rel=1e-5)


@pytest.mark.s3
def test_with_everything_on_object_storage_losses_checkpoints_and_export_are_the_same(
    base: Path, pairs: tuple[str, ...], s3_bucket: str, tmp_path: Path
) -> None:
    root = f"{s3_bucket}/{tmp_path.name}"
    storage.upload_directory(base, f"{root}/base")
    tokens = tuple(storage.join(root, Path(uri).name) for uri in pairs)
    for local, uri in zip(pairs, tokens, strict=True):
        storage.write_bytes(uri, Path(local).read_bytes())
    this = replace(job(base, tokens, tmp_path), base_uri=f"{root}/base", export_uri=f"{root}/model")
    plain = [loss for loss, _ in plain_loop(base, pairs, RECIPE)]
    for resumed_from in (None, 12):
        made = train(this, PLACEMENT, Session.alone(f"{root}/checkpoints"))
        assert made.resumed_from == resumed_from
        assert [row.loss for row in made.metrics] == pytest.approx(plain, rel=1e-5)
        assert {file.name for file in made.files} == set(storage.list_names(f"{root}/model"))


def test_dropout_acts_in_every_step_and_in_no_validation(pairs: tuple[str, ...], tmp_path: Path) -> None:
    """Use a model whose attention matters: the toy model's attention is nearly the mean of its input."""
    base = save_model(tmp_path / "base")
    undropped = job(
        base, pairs, tmp_path / "undropped", validation_share=SHARE, validate_every_steps=1, steps={"m0": 2}
    )
    this = replace(
        undropped,
        export_uri=str(tmp_path / "model"),
        recipe=undropped.recipe.model_copy(update={"dropout": 0.5}),
    )
    plain = train(undropped, PLACEMENT, Session.alone(str(tmp_path / "plain"))).metrics
    dropped = train(this, PLACEMENT, Session.alone(str(tmp_path / "checkpoints")))
    assert dropped.dropouts == ["attention_dropout"]
    first, last = dropped.metrics
    assert abs(first.loss - plain[0].loss) > 1e-2
    found = plain_loss(tmp_path / "model", held_out(pairs)[1])
    assert last.validation_loss == pytest.approx(found, rel=1e-5)
    seldom = this.recipe.model_copy(update={"validate_every_steps": 100})
    other = replace(this, export_uri=str(tmp_path / "other"), recipe=seldom)
    seldom_validated = train(other, PLACEMENT, Session.alone(str(tmp_path / "others"))).metrics
    assert [row.loss for row in seldom_validated] == [first.loss, last.loss]


def test_a_validation_share_that_holds_out_no_pair_is_refused(
    base: Path, pairs: tuple[str, ...], tmp_path: Path
) -> None:
    this = job(base, pairs, tmp_path / "model", validation_share=1e-9)
    with pytest.raises(TrainingStopped, match=r"validation_share = 1e-09 holds out none of 12 seed pairs"):
        train(this, PLACEMENT, Session.alone(str(tmp_path / "checkpoints")))


def test_training_continues_if_the_rows_of_a_skipped_step_cannot_be_written(tmp_path: Path, said: Said) -> None:
    (tmp_path / "checkpoints").write_text("a file where the directory should be")
    session = Session.alone(str(tmp_path / "checkpoints"))
    skips = job(tmp_path, (), tmp_path / "model", on_bad_loss="skip")
    training: Any = SimpleNamespace(job=skips, session=session, history=[], start="3fa9c1")
    refuse(training, StepMetrics(1, 9.0, 1e-4, 0.5, 10, 4, 0.1, skipped=True), [], "its loss is nan")
    lost, skipped = (message for _, message in said.records)
    assert re.search(r"could not store \S+refused-000001-3fa9c1\.json; training continues", lost)
    assert skipped.endswith("the step is skipped")


def test_several_workers_need_torch_distributed(monkeypatch: pytest.MonkeyPatch, base: Path, tmp_path: Path) -> None:
    import torch.distributed as dist

    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    session = Session(0, 2, str(tmp_path), "0001", lambda figures: None)
    with pytest.raises(RuntimeError, match=r"torch\.distributed is not up, and 2 workers"):
        train(job(base, (), tmp_path / "model"), PLACEMENT, session)
