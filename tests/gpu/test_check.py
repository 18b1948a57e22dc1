"""The GPU check in its tiny form, so no change breaks it between two runs on a GPU."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.gpu import check
from tests.gpu.check import GRACE_S, PARTS, run_parts
from tests.gpu.plain import first_difference
from tests.gpu.profiles import attention_in
from tests.gpu.report import Report
from tests.gpu.runs import unlike_plan

REPOSITORY = Path(__file__).parents[2]

RUN = {"ok", "stage", "losses", "mfu", "mfu_of_measured", "s_per_step", "tokens_per_s", "peak_gb", "host_gb", "held_gb",
       "reserved_gb", "alloc_retries", "resumed_from", "greedy", "peak", "export_apart", "export_and_load_s",
       "seconds"}  # fmt: skip
PLANNED = RUN | {"planned_gb", "planned_host_gb", "planned_s_per_step"}
PROFILED = {"launches_per_step", "cpu_ms_per_step", "gpu_ms_per_step", "attention", "table"}
GOALS = {"goals", "missed_goals"}
COMPARED = {"greedy_equal", "greedy_behind", "greedy_gap", "scored_apart"}
ENGINE = {"ok", "characters", "tokens_per_s", "plain_tokens_per_s", "ratio", "planned_tokens_per_s", "steps",
          "rows_per_step", "step_ms", "decode_share", "reading_s", "reading_share", "rubric_rows_per_s", "rubric_share",
          "scored", *COMPARED, *(f"float32_{name}" for name in COMPARED), "peak_gb", "held_gb"}  # fmt: skip

FIGURES = {
    "machine": {"device", "device_gb", "host_gb", "cpus", "torch", "transformers", "deepspeed", "accelerate",
                "flash_attn", "liger_kernel"},
    "dtype": {"ok", "chosen"},
    "ceilings": {"ok", "copy_gb_per_s", "product_tflops", "square_tflops", "launch_us", "links_gb_per_s", "seconds"},
    "engine-tiny": ENGINE, "engine-small": ENGINE | GOALS,
    **{f"engine-{name}-profile": {"ok", *PROFILED} for name in ("tiny", "small")},
    "engine-tiny-short-of-memory": {"ok", "tokens_per_s", "tokens_held", "tokens_held_before"},
    **{f"exact-tiny-{layout}": PLANNED for layout in ("zero0", "zero1", "zero2", "zero3", "small-micro")},
    "exact": {"ok", "agree"}, "resumed-under-zero3": PLANNED, "resume": {"ok", "agree", "resumed_from"},
    **{f"train-tiny-{layout}": PLANNED for layout in ("zero1", "zero3", "small-micro", "checkpointing", "compiled")},
    "train-tiny-zero2": PLANNED | PROFILED | GOALS, "train-tiny-dropout": PLANNED | PROFILED,
    "train-stages": {"ok", "agree"}, "train-layouts": {"ok", "agree"},
    "compile": {"ok", "agree", "speedup", "graphs", "first_step_s"},
    "lora-tiny": RUN | PROFILED,
    "offload-tiny": PLANNED | {"link_share"}, "offload-exact-tiny-none": PLANNED,
    **{f"offload-exact-tiny-{what}": PLANNED | {"link_share"} for what in ("optimizer", "parameters")},
    "offload": {"ok", "agree"},
    "liger-tiny-plain": PLANNED, "liger-tiny-zero2": PLANNED, "liger-exported": PLANNED,
    "liger": {"ok", "version", "agree", "speedup"},
    "end": {"failed", "missed_goals", "seconds"},
}  # fmt: skip
"""Every line of a tiny check but those of Ray, and its fields; docs/gpu.md explains each."""

OF_RAY = {
    "ray-train-alone": PLANNED, "ray-started": {"version", "seconds"},
    "ray-pool": {"ok", "rows", "actors", "gpus_per_actor", "attempts", "shards", "seconds", "tokens_per_s"},
    "ray-train": {"ok", "agree", "steps", "backend", "losses", "peak", "seconds", "besides_steps_s"},
}  # fmt: skip


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


def assert_explained(status: int, lines: dict[str, dict[str, Any]], figures: dict[str, set[str]]) -> None:
    """Fail if a line of a check is bad, or has other figures than those that the documentation explains."""
    assert status == 0, [line for line in lines.values() if not line.get("ok", True)]
    assert {part: set(line) - {"at_s"} for part, line in lines.items()} == figures
    assert all(line["ok"] for line in lines.values() if "ok" in line)
    assert lines["end"]["failed"] == []


@pytest.mark.slow
def test_every_part_runs_and_reports_its_figures(tmp_path: Path) -> None:
    status, lines = checked(tmp_path, "--parts", ",".join(part for part in PARTS if part != "ray"))
    assert_explained(status, lines, FIGURES)
    runs = [line for line in lines.values() if "losses" in line]
    assert all(line["losses"][-1] < line["losses"][0] for line in runs)
    assert {line["held_gb"] for line in runs} == {0.0}, "the next run's peak includes memory of an earlier run"
    exported = {part for part, line in lines.items() if line.get("greedy")}
    assert exported == {"train-tiny-zero2", "exact-tiny-zero3", "liger-exported"}
    assert all(0 <= lines[part]["export_apart"] < 0.05 for part in exported)
    assert lines["resume"]["resumed_from"] == 2
    tables = {line["table"] for line in lines.values() if "table" in line}
    assert {path.name for path in tmp_path.glob("*.txt")} == tables
    assert all("aten::mm" in (tmp_path / table).read_text() for table in tables)
    assert lines["train-tiny-zero2"]["attention"] == {"PyTorch flash on CPU": 12}  # 2 layers, 6 examples
    assert lines["train-tiny-dropout"]["attention"] == {"PyTorch math": 12}
    assert lines["engine-tiny-profile"]["attention"] == {"PyTorch flash on CPU": 2}
    assert lines["compile"]["graphs"] > 0
    for name in ("tiny", "small"):
        engine = lines[f"engine-{name}"]
        assert engine["float32_greedy_equal"] == "3 of 3"
        assert engine["characters"] > 0
        assert 0 < engine["decode_share"] < 1


@pytest.mark.chaos
@pytest.mark.ray
def test_a_pool_and_a_training_run_on_a_ray_of_their_own(tmp_path: Path) -> None:
    status, lines = checked(tmp_path, "--parts", "dtype,ray")
    assert_explained(status, lines, OF_RAY | {part: FIGURES[part] for part in ("machine", "dtype", "end")})


def broken(folder: Path) -> Path:
    """Return a copy of the check whose training parts die."""
    repository = folder / "broken"
    shutil.copytree(REPOSITORY / "tests" / "gpu", repository / "tests" / "gpu")
    (repository / "tests" / "__init__.py").touch()
    (repository / "humpback_ray").symlink_to(REPOSITORY / "humpback_ray")
    (repository / "tests" / "gpu" / "training.py").write_text("import os\n\nos._exit(77)\n")
    return repository


@pytest.mark.slow
def test_a_part_whose_process_dies_fails_alone_and_ray_is_skipped_where_it_is_missing(tmp_path: Path) -> None:
    repository = broken(tmp_path)
    (repository / "ray.py").write_text("raise ImportError('no Ray here')\n")
    status, lines = checked(tmp_path, "--apart", "--parts", "train,ray,dtype", repository=repository)
    assert status == 1
    assert lines["train"]["problems"] == ["RuntimeError: its process ended with 77"]
    assert lines["ray"]["skipped"] == "a package is missing: no Ray here"
    assert lines["dtype"]["ok"]
    assert lines["end"]["failed"] == ["train"]


def test_a_part_that_hangs_is_ended_at_its_own_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = broken(tmp_path)
    (repository / "tests" / "gpu" / "replies.py").write_text("import time\n\ntime.sleep(600)\n")
    monkeypatch.setitem(PARTS, "dtype", replace(PARTS["dtype"], most_s=0.5))
    monkeypatch.setattr(check, "GRACE_S", 0.5)
    arguments = check.parse([str(repository), "--parts", "dtype", "--out", str(tmp_path)])
    with (tmp_path / "stdout").open("w") as stream:
        report = Report(stream, tmp_path / "lines.jsonl", 600, began=time.time())
        with pytest.raises(RuntimeError, match="it was ended after 1 s"):
            check.run_apart("dtype", arguments, report, tmp_path)
    assert report.at_s < 60


@pytest.mark.chaos
def test_a_check_that_is_terminated_ends_the_process_of_its_part(tmp_path: Path) -> None:
    repository, note = broken(tmp_path), tmp_path / "pid"
    hangs = (
        f"import os, pathlib, time\n\npathlib.Path({str(note)!r}).write_text(f'{{os.getpid()}} ')\ntime.sleep(600)\n"
    )
    (repository / "tests" / "gpu" / "replies.py").write_text(hangs)
    command = [sys.executable, str(repository / "tests/gpu/check.py"), str(repository), "--apart", "--parts", "dtype"]
    with subprocess.Popen([*command, "--out", str(tmp_path)], stdout=subprocess.DEVNULL) as running:
        while not (note.exists() and note.read_text().endswith(" ")):
            assert running.poll() is None
            time.sleep(0.1)
        running.terminate()
    assert running.returncode == 128 + signal.SIGTERM
    assert not psutil.pid_exists(int(note.read_text()))


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


def test_a_missed_goal_is_reported_and_is_no_failure(tmp_path: Path) -> None:
    for gpu, missed in ((True, ["ratio is 2.99, the goal is 8"]), (False, [])):
        file = tmp_path / f"{gpu}.jsonl"
        file.write_text('{"part": "engine", "missed_goals": ["of an earlier call"]}\n')
        report = Report(io.StringIO(), file, 60, began=time.time(), gpu=gpu)
        report.judge("engine", [], {"ratio": 8, "share": 0.5}, ratio=2.99, share=0.5)
        line = json.loads(file.read_text().splitlines()[-1])
        assert (line["ok"], line["goals"], line["missed_goals"]) == (True, {"ratio": 8, "share": 0.5}, missed)
        assert (report.missed, report.missed_goals()) == ([], {"engine": missed} if missed else {})


@pytest.mark.parametrize(("peak", "good"), [(9.1, True), (10.9, True), (8.9, False), (11.1, False)])
def test_a_peak_of_memory_more_than_a_tenth_from_the_plan_is_a_problem(peak: float, good: bool) -> None:
    assert (unlike_plan(peak, 10.0) == []) == good


@pytest.mark.parametrize(("text", "other", "place"), [("abc", "abd", 2), ("xbc", "abc", 0), ("ab", "abc", 1)])
def test_the_first_difference_of_two_replies(text: str, other: str, place: int) -> None:
    assert first_difference(text, other) == place


def test_kernels_of_attention_are_told_apart_by_their_names() -> None:
    counts = [
        ("aten::_scaled_dot_product_flash_attention", 3), ("aten::_flash_attention_forward", 3), ("aten::mm", 9),
        ("aten::_scaled_dot_product_flash_attention_backward", 3), ("aten::_scaled_dot_product_efficient_attention", 2),
        ("flash_attn::_flash_attn_varlen_forward", 4), ("flash_attn_3::_flash_attn_varlen_forward", 5),
    ]  # fmt: skip
    assert attention_in(counts) == {
        "PyTorch flash": 3, "PyTorch memory-efficient": 2, "flash-attention, rows of several lengths": 4,
        "flash_attn_3::_flash_attn_varlen_forward": 5,
    }  # fmt: skip


CALLS = ("dtype", "ceilings", "exact", "train", "engine-7b"), ("ray", "lora", "liger", "engine-1b", "offload")
"""The parts of the two calls in docs/gpu.md."""
MACHINE_S, START_S, AGAIN_S = 15 * 60, 100, 150
"""Seconds of one machine; those until it runs a command; and those of one part that is repeated."""


def test_all_parts_fit_into_the_time_of_a_machine() -> None:
    assert {part for parts in CALLS for part in parts} == set(PARTS)
    text = " ".join((REPOSITORY / "docs" / "gpu.md").read_text().replace("\\\n", "").split())
    budgets = []
    for parts in CALLS:
        call = re.search(rf"check.py . --parts {','.join(parts)} --budget-s (\d+)", text)
        assert call, f"docs/gpu.md has no call with the parts {', '.join(parts)}"
        budgets.append(int(call[1]))
        assert sum(PARTS[part].least_s for part in parts) <= budgets[-1]
    assert START_S + sum(budgets) + len(budgets) * GRACE_S <= MACHINE_S
    assert max(part.least_s for part in PARTS.values()) + GRACE_S <= AGAIN_S


def test_the_documentation_explains_every_figure() -> None:
    text = (REPOSITORY / "docs" / "gpu.md").read_text()
    figures = FIGURES | OF_RAY
    missing = sorted(name for name in set().union(*figures.values()) if f"`{name}`" not in text)
    assert not missing
