"""What examples/ shows runs on a finished run, and says what its tables hold."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from humpback_ray.prompts.chat import ChatRecipe, encode_prompt
from humpback_ray.stages.manifest import Manifest
from humpback_ray.train.export import directory
from tests.docs.pages import PAGES, REPOSITORY, blocks
from tests.engines.tiny import save_model
from tests.report.conftest import MadeRun
from tests.train.workers import job


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / f"examples/{name}.py")
    assert spec
    assert spec.loader
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture(scope="module")
def made(root: Path) -> dict[str, Manifest]:
    return MadeRun(root).build()


def test_the_tables_are_read_as_the_manifests_have_them(
    made: dict[str, Manifest], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stray = root / "segments/data/stray.parquet"
    stray.write_bytes(b"of an attempt that lost")
    assert example("read_outputs").main([str(root)]) == 0
    said = capsys.readouterr().out
    for stage in ("segments", "corpus", "candidates", "round-1/curated", "round-2/curated"):
        line = next(line for line in said.splitlines() if line.startswith(f"{stage} "))
        assert f"kept {made[stage].kept:6,} " in line
        assert all(f"{reason} {count:,}" in line for reason, count in made[stage].drops.items())
    best = max(row["score"] for table in made["round-2/curated"].tables() for row in table.to_pylist())
    assert f"[{best:.2f} in round 2, " in said
    assert "m2          80 steps, loss " in said
    asked = next(iter(made["evaluation/m2"].tables())).to_pylist()
    assert any(f"{row['instruction']}\n  M_0: " in said and f"\n  M_2: {row['output']}" in said for row in asked)


def test_a_root_without_a_finished_run_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert example("read_outputs").main([str(tmp_path)]) == 2
    assert "segments/manifest.json" in capsys.readouterr().err
    assert example("read_outputs").main([]) == 2


def test_the_python_of_the_walk_through_runs_as_it_stands(
    made: dict[str, Manifest], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    os.symlink(REPOSITORY / "examples", "examples")
    Path("out").mkdir()
    os.symlink(root, "out/demo")
    shown = [block.text for block in blocks(PAGES["examples/outputs.md"].read_text()) if block.language == "python"]
    run = [text for text in shown if "import duckdb" not in text or importlib.util.find_spec("duckdb")]
    assert len(run) >= 2
    for text in run:
        exec(compile(text, "outputs.md", "exec"), {"__name__": "walk-through"})
    assert len(Path("pairs.jsonl").read_text().splitlines()) == made["round-2/curated"].kept > 0


def test_a_served_question_reaches_the_model_in_the_layout_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    served = save_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(served)
    directory.write_tokenizer(tokenizer, job(served, (), served), served)
    capsys.readouterr()  # what libraries say when they are imported
    assert example("ask").main([str(served), "Which river?"]) == 0
    ids = encode_prompt(tokenizer, ChatRecipe().forward_prompt("Which river?"))
    model: Any = AutoModelForCausalLM.from_pretrained(served, dtype="auto")
    reply = model.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False)[0, len(ids) :]
    assert capsys.readouterr().out.strip() == tokenizer.decode(reply, skip_special_tokens=True).strip()
    assert example("ask").main([str(served)]) == 2
