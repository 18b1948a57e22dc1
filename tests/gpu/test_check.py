"""The GPU check in its tiny form, so no change breaks it between two runs on a GPU."""

import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.check import PARTS, run_parts
from tests.gpu.report import Report

REPOSITORY = Path(__file__).parents[2]

RUN = {"ok", "stage", "losses", "mfu", "s_per_step", "tokens_per_s", "peak_gb", "host_gb", "held_gb", "reserved_gb",
       "alloc_retries", "resumed_from", "greedy", "peak", "export_apart", "export_and_load_s", "seconds"}  # fmt: skip
PLANNED = RUN | {"planned_gb", "planned_host_gb", "planned_s_per_step"}
ENGINE = {"ok", "characters", "tokens_per_s", "plain_tokens_per_s", "ratio", "planned_tokens_per_s", "greedy_equal",
          "greedy_behind", "scored_apart", "rubric_rows_per_s", "scored", "peak_gb", "held_gb"}  # fmt: skip

FIGURES = {
    "machine": {"device", "device_gb", "host_gb", "cpus", "torch", "transformers", "deepspeed", "accelerate",
                "flash_attn", "liger_kernel"},
    "dtype": {"ok", "chosen"},
    "engine-tiny": ENGINE, "engine-small": ENGINE,
    "engine-tiny-short-of-memory": {"ok", "tokens_per_s", "tokens_held", "tokens_held_before"},
    **{f"exact-tiny-{layout}": PLANNED for layout in ("zero0", "zero1", "zero2", "zero3", "small-micro")},
    "exact": {"ok", "agree"}, "resumed-under-zero3": PLANNED, "resume": {"ok", "agree", "resumed_from"},
    **{f"train-tiny-{layout}": PLANNED for layout in (
        "zero1", "zero2", "zero3", "small-micro", "checkpointing", "dropout")},
    "train-tiny-lora": RUN, "train-stages": {"ok", "agree"}, "train-layouts": {"ok", "agree"},
    **{f"offload-tiny{what}": PLANNED for what in ("", "-none", "-optimizer", "-parameters")},
    "offload": {"ok", "agree"},
    "liger-tiny-plain": PLANNED, "liger-tiny-zero2": PLANNED, "liger-exported": PLANNED,
    "liger": {"ok", "version", "agree", "speedup"},
    "end": {"failed", "seconds"},
}  # fmt: skip
"""Every line of a tiny check and its fields; docs/gpu.md explains each."""


def checked(out: Path, *arguments: str, repository: Path = REPOSITORY) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run a copy of the check, as on a GPU machine; return its status and its lines by part."""
    copy = out / ".gpu" / "check.py"
    copy.parent.mkdir(parents=True)
    shutil.copy(REPOSITORY / "tests" / "gpu" / "check.py", copy)
    done = subprocess.run(
        [sys.executable, str(copy), str(repository), "--out", str(out), *arguments],
        cwd=repository, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == (out / "gpu_check.jsonl").read_text(), done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, {line.pop("part"): line for line in lines}


@pytest.mark.slow
def test_every_part_runs_and_reports_its_figures(tmp_path: Path) -> None:
    status, lines = checked(tmp_path, "--parts", ",".join(PARTS))
    assert status == 0, [line for line in lines.values() if not line.get("ok", True)]
    assert {part: set(line) - {"at_s"} for part, line in lines.items()} == FIGURES
    assert all(line["ok"] for line in lines.values() if "ok" in line)
    assert lines["end"]["failed"] == []
    runs = [line for line in lines.values() if "losses" in line]
    assert all(line["losses"][-1] < line["losses"][0] for line in runs)
    assert {line["held_gb"] for line in runs} == {0.0}, "the next run's peak includes memory of an earlier run"
    assert lines["train-tiny-zero2"]["greedy"] == lines["train-tiny-zero3"]["greedy"]
    exported = {part for part, line in lines.items() if line.get("greedy")}
    assert exported == {"train-tiny-zero2", "train-tiny-zero3", "liger-exported"}
    assert all(0 <= lines[part]["export_apart"] < 0.05 for part in exported)
    assert lines["engine-tiny"]["characters"] > 0
    assert lines["resume"]["resumed_from"] == 2


@pytest.mark.slow
def test_a_part_whose_process_dies_fails_alone(tmp_path: Path) -> None:
    repository = tmp_path / "broken"
    shutil.copytree(REPOSITORY / "tests" / "gpu", repository / "tests" / "gpu")
    (repository / "tests" / "__init__.py").touch()
    (repository / "humpback_ray").symlink_to(REPOSITORY / "humpback_ray")
    (repository / "tests" / "gpu" / "training.py").write_text("import os\n\nos._exit(77)\n")
    status, lines = checked(tmp_path, "--apart", "--parts", "train,dtype", repository=repository)
    assert status == 1
    assert lines["train"]["problems"] == ["RuntimeError: its process ended with 77"]
    assert lines["dtype"]["ok"]
    assert lines["end"]["failed"] == ["train"]


def parts_run(names: Sequence[str], folder: Path, budget_s: float = 60) -> tuple[list[str], list[dict[str, Any]]]:
    """Run parts whose names say how they end; return the parts that failed, and the lines."""
    report = Report(io.StringIO(), folder / "out" / "lines.jsonl", budget_s, began=time.time())

    def one(name: str) -> None:
        if name == "raises":
            raise ValueError("no such device")
        report.judge(f"{name}-figure", ["it is 3"] if name == "misses" else [], figure=3)

    failed = run_parts(names, report, least_s=lambda name: 100.0 if name == "long" else 0.0, one=one)
    return failed, [json.loads(line) for line in report.file.read_text().splitlines()]


def test_parts_that_fail_are_named_and_the_others_run(tmp_path: Path) -> None:
    failed, lines = parts_run(["raises", "misses", "works"], tmp_path)
    assert failed == ["raises", "misses"]
    raised, missed, worked = lines
    assert (raised["ok"], raised["problems"]) == (False, ["ValueError: no such device"])
    assert "raise ValueError" in raised["trace"]
    assert (missed["part"], missed["ok"], missed["problems"]) == ("misses-figure", False, ["it is 3"])
    assert (worked["part"], worked["ok"], worked["figure"]) == ("works-figure", True, 3)


def test_a_part_that_does_not_fit_into_the_budget_is_reported_as_skipped(tmp_path: Path) -> None:
    failed, (skipped, worked) = parts_run(["long", "works"], tmp_path)
    assert failed == []
    assert skipped["part"] == "long"
    assert skipped["skipped"].startswith("no time left: it takes about 100 s of the ")
    assert worked["part"] == "works-figure"


def test_the_documentation_explains_every_figure() -> None:
    text = (REPOSITORY / "docs" / "gpu.md").read_text()
    missing = sorted(name for name in set().union(*FIGURES.values()) if f"`{name}`" not in text)
    assert not missing
