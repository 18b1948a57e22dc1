"""A run: the places of its stages, its records, its reuse of other runs."""

import json
from pathlib import Path

import pytest

from humpback_ray import storage
from humpback_ray.config import ConfigError, load
from humpback_ray.run import Run, latest_submission
from humpback_ray.runconfig import RunConfig

DEMO = Path(__file__).parents[1] / "configs/demo.yaml"


def run(root: Path, *overrides: str) -> Run:
    return Run(load(RunConfig, DEMO, [f"root={root}", *overrides]))


def test_run_json_is_created_once_and_every_submission_is_recorded(tmp_path: Path) -> None:
    first = run(tmp_path, "augment.placement.min_replicas=2")
    recorded = (tmp_path / "run.json").read_bytes()
    second = run(tmp_path, "augment.placement.min_replicas=3")
    assert (tmp_path / "run.json").read_bytes() == recorded
    for submitted, replicas in ((first, 2), (second, 3)):
        how = json.loads((tmp_path / f"submissions/{submitted.submission}.json").read_text())
        assert how["config"]["augment"]["placement"]["min_replicas"] == replicas
        assert how["versions"]["ray"]


def test_the_latest_submission_is_the_one_that_started_last_whatever_its_name(tmp_path: Path) -> None:
    assert latest_submission(str(tmp_path)) == (None, {})
    for name, record in (("b", {"started": 2.0}), ("z", {"started": 1.0}), ("a", {}), (".tmp-c", {"started": 3.0})):
        storage.write_bytes(str(tmp_path / f"submissions/{name}.json"), json.dumps(record).encode())
    latest, record = latest_submission(str(tmp_path))
    assert latest
    assert (latest.name, record) == ("b.json", {"started": 2.0})


def test_recipes_hold_neither_placements_nor_locations(tmp_path: Path) -> None:
    (tmp_path / "trees.jsonl").write_text("{}")
    config = load(RunConfig, DEMO, [f"root={tmp_path}", f"seed.recipe.inputs=[{tmp_path}/trees.jsonl]"])
    text = json.dumps(config.recipes())
    assert "placement" not in text
    assert str(tmp_path) not in text


def test_an_unfinished_stage_cannot_be_reused(tmp_path: Path) -> None:
    (tmp_path / "other/corpus").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"reuse\.corpus: .* is not a finished stage"):
        run(tmp_path / "mine", f"reuse.corpus={tmp_path}/other/corpus")


def test_a_relative_root_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(Path("here")).root == str(tmp_path / "here")


def test_a_model_without_a_chat_template_is_refused_at_the_start_where_its_own_is_asked_for(tmp_path: Path) -> None:
    model = tmp_path / "models/judge"
    for name, text in {"config.json": "{}", "model.safetensors": "", "tokenizer_config.json": "{}"}.items():
        storage.write_bytes(str(model / name), text.encode())
    rewrite = (f"rewrite.model={model}", "rewrite.recipe.layout=own")
    rate = "curate.recipe.scorer={kind: rubric, rater: base, layout: own}"
    chain = "curate.recipe.scorer={kind: chained, first: {kind: likelihood, rater: base, layout: own}}"
    compare = "curate.compare.scorers={a: {kind: rubric, rater: base, layout: own}, b: {kind: additive}}"
    refused = {
        rewrite: f"rewrite.model: the model in {model}/ has no chat template, so rewrite.recipe.layout cannot be own",
        (f"base_model={model}", rate): f"base_model: the model in {model}/ has no .* curate.recipe.scorer.layout",
        (f"base_model={model}", chain): "so curate.recipe.scorer.first.layout cannot be own",
        (f"base_model={model}", compare): "so curate.compare.scorers.a.layout cannot be own",
        (rate,): "base_model: the sample's base model has no chat template",
    }
    for overrides, said in refused.items():
        with pytest.raises(ConfigError, match=said):
            run(tmp_path / "run", *overrides)
    run(
        tmp_path / "run", "curate.recipe.scorer={kind: rubric, layout: own}"
    )  # its raters have one, written by this run
    storage.write_bytes(str(model / "tokenizer_config.json"), b'{"chat_template": "{{ messages }}"}')
    run(tmp_path / "run", *rewrite)
    storage.write_bytes(str(model / "tokenizer_config.json"), b"{}")
    storage.write_bytes(str(model / "chat_template.jinja"), b"{{ messages }}")
    run(tmp_path / "run", f"base_model={model}", rate)
