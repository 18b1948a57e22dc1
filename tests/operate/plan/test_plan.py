"""The plan of a whole run: counts, problems, sources, and the effect of a pilot's manifests."""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from humpback_ray.config import ConfigError, load
from humpback_ray.curate.scorers import Likelihood, Rubric, RubricExpected
from humpback_ray.operate.pilot import as_pilot
from humpback_ray.operate.plan import measured, plan_run
from humpback_ray.operate.plan.expected import Expected
from humpback_ray.operate.plan.training import Batch, step
from humpback_ray.records import SEGMENT, record_id
from humpback_ray.run import Run
from humpback_ray.runconfig import RunConfig, pilot_root
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.ledger import Attempt, write_table
from humpback_ray.stages.outputs import TableWriter
from humpback_ray.stages.stage import Place, Stage
from humpback_ray.train.job import StepMetrics, metrics_table
from humpback_ray.train.sizes import SIZES
from jobs.plan import main as plan_job

REPOSITORY = Path(__file__).parents[3]
SEVEN, LARGE = REPOSITORY / "configs/llama-7b.yaml", REPOSITORY / "configs/llama-65b.yaml"


def seven(*overrides: str) -> RunConfig:
    return load(RunConfig, SEVEN, overrides)


def test_the_papers_run_has_the_papers_steps_and_counts() -> None:
    made = plan_run(seven("evaluate.recipe.inputs=[prompts.json]"))
    by_model = {one.model: one for one in made.trainings}
    assert [one.steps for one in made.trainings[:2]] == [500, 500]
    assert by_model["m2"].examples == pytest.approx(3200 + 41_821, rel=0.06)
    assert by_model["m1"].tokens / by_model["m1"].steps == pytest.approx(14_000, rel=0.05)
    rows = {stage.name: stage.rows for stage in made.stages}
    assert rows["candidates"] == 502_133
    assert rows["evaluation/m0"] == rows["evaluation/m2"] == 805
    assert made.dollars == sum(stage.dollars for stage in made.stages)
    assert all(stage.dollars > 0 and stage.seconds > 0 and stage.source == "assumed" for stage in made.stages)


def test_stages_that_the_configuration_leaves_out_are_not_planned() -> None:
    names = {stage.name for stage in plan_run(seven("reuse.segments=a", "reuse.models/m0=b")).stages}
    assert not names & {"segments", "models/m0", "evaluation/m0"}, "reused, or nothing to answer"
    one_round = plan_run(seven("curate.recipe.rounds=[{threshold: null, top_k: 1000}]"))
    assert [one.model for one in one_round.trainings] == ["backward", "m0", "m1"]
    assert one_round.trainings[-1].examples == 4200
    by_share = plan_run(seven("curate.recipe.rounds=[{threshold: null, share: 0.01}]"))
    rated = next(stage.rows for stage in by_share.stages if stage.name == "round-1/scores")
    assert by_share.trainings[-1].examples == 3200 + -(-rated // 100)
    by_name = plan_run(seven("curate.recipe.scorer={kind: chained, share: 0.25}")).stages
    chained = {stage.name: stage for stage in by_name}
    assert chained["round-1/scores"].rows == round(0.25 * chained["round-1/prescores"].rows)
    assert chained["round-1/prescores"].seconds < chained["round-1/scores"].seconds


def test_a_placement_that_does_not_fit_is_named_with_both_numbers_and_the_fix() -> None:
    cramped = load(RunConfig, LARGE, ["train.placement.workers=8", "curate.placement.gpus_per_replica=1"])
    train, curate = plan_run(cramped.model_copy(update={"augment": load(RunConfig, LARGE).augment})).problems[:2]
    assert "each of 8 workers on H100-80G needs" in train
    assert "; 78.0 GB and " in train
    assert "32 workers would fit" in train
    assert "gpus_per_replica" in curate


def test_every_assumption_has_a_value_and_a_source() -> None:
    made = plan_run(seven("plan.training_mfu=0.3", "plan.machines={H100-80G: {dollars_per_hour: 2}}"))
    sources = {field: (value, source) for field, value, source in made.sources}
    assert sources["training_mfu"] == (0.3, "the configuration")
    assert sources["H100-80G.dollars_per_hour"] == (2, "the configuration")
    assert "Assumed" in sources["engine_start_s"][1]
    assert "paper" in sources["segments"][1]
    assert all(source for _, source in sources.values())
    assert plan_run(seven()).dollars > 3 * made.dollars / 2


def test_the_size_is_named_or_read_from_the_models_configuration(tmp_path: Path) -> None:
    shape = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 9,
        "vocab_size": 9,
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", **shape}))
    assert plan_run(seven("plan.size=null", f"base_model={tmp_path}")).shape.hidden == 64
    with pytest.raises(ConfigError, match=r"plan\.size is llama-8b, which is not among llama-7b"):
        plan_run(seven("plan.size=llama-8b"))
    with pytest.raises(ConfigError, match=r"set plan\.size to one of llama-7b"):
        plan_run(seven("plan.size=null", "base_model=/nowhere"))


def test_each_stage_is_planned_with_its_own_engine() -> None:
    vllm = {stage.name: stage for stage in plan_run(seven()).stages}
    ours = {stage.name: stage for stage in plan_run(seven("augment.recipe.engine={kind: transformers}")).stages}
    assert ours["candidates"].seconds > 1.4 * vllm["candidates"].seconds
    assert ours["round-1/scores"] == vllm["round-1/scores"]
    echo = plan_run(seven("augment.recipe.engine={kind: echo, delay_s: 2}")).stages
    candidates = next(stage for stage in echo if stage.name == "candidates")
    assert candidates.seconds == pytest.approx(120 + 502_133 * 2 / 128 / 8)


def test_prompts_that_share_a_rubric_and_samples_that_share_a_prompt_are_cheaper_with_vllm() -> None:
    """A rating reads 400 tokens and a pair; 333 of the 400 are the same for all pairs."""
    expected = Expected(seven(), 1)
    work = expected.rating(Rubric(samples=3))
    assert (work.prompt_tokens, work.reply_tokens, work.replies) == (400 + 518.5, 150, 3)
    assert work.shared_tokens == pytest.approx(333, abs=2)
    assert expected.rating(RubricExpected()).reply_tokens == 1, "five grades in one pass"
    assert expected.rating(RubricExpected()).shared_tokens == pytest.approx(345, abs=2)
    assert expected.rating(Likelihood()).shared_tokens == 0
    assert expected.rating(Rubric(read="expected")).read_again


def test_the_rewriters_own_size_counts_if_it_can_be_read(tmp_path: Path) -> None:
    shape = SIZES["llama-3.2-1b"]
    (tmp_path / "config.json").write_text(json.dumps({
        "model_type": "llama", "hidden_size": shape.hidden, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "intermediate_size": shape.ffn,
        "vocab_size": shape.vocabulary, "tie_word_embeddings": True,
    }))  # fmt: skip
    keys = "rewrite.recipe.engine={kind: vllm}", "rewrite.placement={gpus_per_replica: 1, max_replicas: 8}"
    small, unknown = (plan_run(seven(f"rewrite.model={model}", *keys)) for model in (tmp_path, "/nowhere"))
    seconds = [
        next(stage.seconds for stage in made.stages if stage.name == "round-1/rewritten") for made in (small, unknown)
    ]
    assert seconds[0] - 210 < (seconds[1] - 210) / 3, "besides the start"
    sources = [{name: (value, source) for name, value, source in made.sources} for made in (small, unknown)]
    assert sources[0]["rewrite.model: parameters"] == (shape.parameters, "its config.json")
    assert sources[1]["rewrite.model: parameters"][0] == unknown.shape.parameters
    assert "could not be used" in sources[1]["rewrite.model: parameters"][1]


def test_a_host_without_room_for_a_checkpoints_copy_is_named_before_anything_starts() -> None:
    """Two workers own 3.4 billion parameters each: 40 GB of copy, and a file of a gigabyte."""
    keys = "train.placement.workers=2", "train.placement.zero_stage=3", "train.placement.offload_optimizer=true"
    host = "plan.machines={{H100-80G: {{host_bytes: {}000000000}}}}"
    enough = plan_run(seven(*keys, host.format(160)))
    short = plan_run(seven(*keys, host.format(120)))
    held = enough.trainings[0].step.memory
    assert held.checkpoint == 12 * -(-enough.shape.parameters // 2) + (1 << 30)
    assert held.host + held.checkpoint < 0.8 * 160e9
    assert held.host < 0.8 * 120e9 < held.host + held.checkpoint
    assert not enough.problems
    assert "the copy of a checkpoint, 109 GB of host memory" in short.problems[0]


def test_a_training_that_does_not_fit_counts_although_the_first_one_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With 1,000 seed pairs a worker has one example per step at first, and four of them from m1 on."""
    keys = "plan.seed_pairs=1000", "train.placement.micro_batch_tokens=8192"
    made = plan_run(seven(*keys))
    assert [one.step.fits for one in made.trainings] == [True, True, False, False]
    assert "each of 8 workers on H100-80G needs 79.4 GB for m1" in made.problems[0]
    assert plan_job([str(SEVEN), f"root={tmp_path}", *keys]) == 1
    said = capsys.readouterr().out
    assert "memory of a worker (m1)" in said
    assert "DOES NOT FIT" in said


def test_fewer_workers_than_an_elastic_training_may_have_must_fit_too() -> None:
    made = plan_run(seven("train.placement.workers=[1, 8]"))
    assert made.trainings[0].step.fits, "with 8 workers"
    assert "each of 1 workers on H100-80G needs 134.8 GB" in made.problems[0]
    assert not plan_run(seven("train.placement.workers=[4, 8]")).problems


def test_only_settings_that_lower_the_need_are_advised() -> None:
    alone = plan_run(seven("train.placement.workers=1")).problems[0]
    assert alone.endswith("4 workers would fit, or set activation_checkpointing=true, offload_optimizer=true")
    offloading = "train.placement.offload_optimizer=true", "plan.machines={H100-80G: {host_bytes: 100000000000}}"
    full = plan_run(seven("train.placement.workers=1", *offloading)).problems[0]
    assert full.endswith("4 workers would fit"), "the host lacks memory, not the GPU"


def test_figures_that_no_run_can_have_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for key, said in (
        ("kept_shares=[-0.1]", "takes a number of at least 0"), ("kept_shares=[5]", "takes a number of at most 1"),
        ("seed_chars=[-5, 1]", "takes a number of at least 0"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            seven(f"plan.{key}")
    assert plan_job([str(SEVEN), "plan.chars_per_token=1e-300"]) == 2
    assert "error: plan: its figures are so large or small" in capsys.readouterr().out


def test_adapters_are_said_to_take_less_than_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    for method, said in (("lora", True), ("full", False)):
        assert plan_job([str(SEVEN), f"train.recipe.method={{kind: {method}}}"]) == 0
        assert ("planned as a full fine-tune" in capsys.readouterr().out) == said


def test_an_unknown_machine_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="machine is B300, which is not among A100-80G"):
        seven("plan.machine=B300")


def test_the_job_answers_at_once_in_words_and_as_json(tmp_path: Path) -> None:
    def job(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "jobs.plan", str(LARGE), f"root={tmp_path}/run", *arguments]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    began = time.monotonic()
    code, said = job()
    assert time.monotonic() - began < 20
    assert code == 0, said
    for words in ("65,285,660,672 parameters", "optimizer", "fits", "sensible", "total", "no pilot", "Assumed",
                  "a checkpoint: 783.4 GB", "all 4 models take 6.3 TB"):  # fmt: skip
        assert words in said
    code, said = job("train.placement.workers=8", "--json")
    assert code == 1, "does not fit"
    values = json.loads(said)
    assert values["problems"]
    assert values["parameters"] == 65_285_660_672
    assert {"parameters", "gradients", "optimizer", "activations", "logits", "buffers", "peak"} <= set(
        values["trainings"][0]["step"]["memory"]
    )
    training = values["trainings"][0]
    assert training["seconds"] > training["start_s"] + training["checkpoints"]["seconds"] + training["export_s"]
    assert not (tmp_path / "run").exists(), "a plan writes nothing"


def test_the_job_says_if_storage_is_slower_than_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    often, rarely = "train.placement.checkpoint_every_steps=10", "train.placement.checkpoint_every_steps=1000"
    for keys, waits in (([often], True), ([rarely], False), ([rarely, "train.recipe.steps={m2: 5}"], False)):
        assert plan_job([str(SEVEN), f"root={tmp_path}", *keys]) == 0
        said = capsys.readouterr().out
        assert ("checkpoint_every_steps to 170 or more (it is 10)" in said) == waits
        assert ("training waits for its checkpoints" in said) == waits
        assert "checkpoint_every_minutes to" not in said, "15 minutes are enough"


def committed(
    root: str,
    name: str,
    rows: int,
    seconds: float,
    extra: dict[str, Any] | None = None,
    tokens: int = 0,
    steps: Sequence[StepMetrics] = (),
) -> None:
    """Make a finished stage whose only commit took this long."""

    def work(attempt: Attempt) -> Commit:
        writer = TableWriter(attempt, SEGMENT)
        blank = {field.name: None if field.name == "drop_reason" else "" for field in SEGMENT}
        table = [{**blank, "id": record_id(name, n), "position": 0, "chars": 1} for n in range(rows)]
        writer.write(pa.Table.from_pylist(table, schema=SEGMENT))
        metrics = write_table(attempt.ledger, f"{attempt.directory}/metrics.parquet", metrics_table(steps))
        return dataclasses.replace(writer.commit(extra), seconds=seconds, tokens=tokens, metrics=metrics)

    Stage(Place(name, f"{root}/{name}", "pilot"), {}, {}, SEGMENT).leased(work)


def test_a_pilots_rates_take_the_place_of_assumptions(tmp_path: Path) -> None:
    for name in ("base", "web", "seed"):
        (tmp_path / name).mkdir()
    (tmp_path / "base/config.json").write_text("{}")
    (tmp_path / "base/model.safetensors").write_bytes(b"")
    (tmp_path / "web/a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "seed/a.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    config = seven(
        f"root={tmp_path}/run", f"base_model={tmp_path}/base", f"corpus.recipe.inputs=[{tmp_path}/web]",
        f"seed.recipe.inputs=[{tmp_path}/seed]", "train.placement.workers=4",
    )  # fmt: skip
    root = pilot_root(config.root)
    assert measured(config, root) is None
    Run(as_pilot(config.model_copy(update={"pilot": 0.01})))
    committed(root, "segments", 300, seconds=20)
    committed(root, "corpus", 200, seconds=1)
    committed(root, "candidates", 100, seconds=50, tokens=1000)
    steps = [
        StepMetrics(n, 2.0, 1e-5, 1.0, tokens=14_000, output_tokens=10_000, seconds=9.0 if n < 3 else 3.0)
        for n in range(1, 8)
    ]
    committed(root, "models/m0", 0, seconds=1, extra={"batch_examples": 32}, steps=steps)

    pilot = measured(config, root)
    assert pilot is not None
    assert (pilot.segments, pilot.cutting_s, pilot.row_s) == (20_000, 2000, {"candidates": 0.5})
    before, made = plan_run(config), plan_run(config, pilot)
    stages = {stage.name: stage for stage in made.stages}
    assert stages["candidates"].rows == 20_000
    loading_s = 2 * made.shape.parameters / config.plan.disk_bytes_per_s
    assert stages["candidates"].seconds == pytest.approx(120 + 90 + loading_s + 20_000 * 0.5 / 8)
    assert stages["segments"].seconds == pytest.approx(2000 / 64)
    assert root in stages["candidates"].source
    assert stages["round-1/scores"].source == "assumed"
    alike = Batch(32, 14_000 / 32, 220, 2048)
    slower = 3.0 / step(made.shape, made.layout, alike, config.plan).seconds
    for one, assumed in zip(made.trainings[0].options, before.trainings[0].options, strict=True):
        assert one.seconds == pytest.approx(slower * assumed.seconds)
    assert any(root in source for _, _, source in made.sources)

    elsewhere = measured(config.model_copy(update={"plan": seven("plan.machine=H200").plan}), root)
    assert elsewhere is not None
    assert (elsewhere.row_s, elsewhere.step, elsewhere.segments) == ({}, None, 20_000), "another machine's rates"
