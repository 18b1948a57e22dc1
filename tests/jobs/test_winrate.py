"""`jobs.winrate` in a process of its own: figures, shape of the JSON, sentences, errors and exit codes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.made import annotations, row, write_gamed, written
from tests.jobs.prepared import REPOSITORY

CHECK = """
import contextlib, io, json, sys
from jobs.winrate import main
found = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try: code = main(arguments)
        except SystemExit as end: code = end.code
    found.append((code, out.getvalue()))
loaded = {'ray', 'torch', 'sklearn'} & set(sys.modules)
assert not loaded, loaded
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("annotations")
    written(folder, *annotations("m1"), name="m1.json")
    written(folder, *annotations("m2", shift=5), name="m2.json")
    written(folder, row(2), row("good"), name="bad.json")
    written(folder, row(2, "m1", "m2"), row(1, "m2", "m1"), name="both.json")
    write_gamed(folder / "df_gamed.csv")
    return folder


@pytest.fixture(scope="module")
def ran(folder: Path) -> dict[str, tuple[int, str]]:
    """Exit codes and output by name of the command."""
    commands = {
        "one": ["m1.json", "--json"],
        "several": ["m1.json", "m2.json", "--json", "--resamples", "300", "--seed", "3"],
        "fitted": ["m1.json", "--json", "--difficulty", str(folder / "df_gamed.csv"), "--reference", "base"],
        "people": ["m1.json", "m2.json"],
        "bad": ["m1.json", "bad.json"],
        "absent": ["none.json", "--json"],
        "both": ["both.json"],
        "named": ["both.json", "--reference", "m1", "--json"],
        "resamples": ["m1.json", "--resamples", "0"],
        "table": ["m1.json", "--difficulty", str(folder / "none.csv")],
    }
    full = [[str(folder / word) if word.endswith(".json") else word for word in words] for words in commands.values()]
    command = [sys.executable, "-c", CHECK, json.dumps(full)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(commands, ((code, out) for code, out in json.loads(done.stdout)), strict=True))


def test_one_model_is_an_object_and_several_are_a_list(ran: dict[str, tuple[int, str]]) -> None:
    code, out = ran["one"]
    one: dict[str, Any] = json.loads(out)
    assert code == 0
    assert (one["model"], one["win_rate"], one["n_wins"], one["n_draws"], one["n_total"]) == ("m1", 58.5, 25, 10, 50)
    assert one["length_controlled_win_rate"] == pytest.approx(57.781237, abs=1e-4)
    several = json.loads(ran["several"][1])
    assert [each["model"] for each in several] == ["m1", "m2"]
    assert several[0]["comparisons"][0]["other"] == "m2"
    assert several[0]["win_rate"] == one["win_rate"]


def test_the_table_of_difficulties_gives_the_leaderboards_fit(ran: dict[str, tuple[int, str]]) -> None:
    code, out = ran["fitted"]
    found = json.loads(out)
    assert code == 0
    assert found["length_controlled_glm"] == "length_controlled_v1"
    assert found["length_controlled_win_rate"] == pytest.approx(57.002083, abs=1e-4)
    assert found["lc_standard_error"] == pytest.approx(0.0048, abs=1e-3)


def test_people_get_a_table_and_a_sentence_per_comparison(ran: dict[str, tuple[int, str]]) -> None:
    code, out = ran["people"]
    assert code == 0
    (line,) = [line for line in out.splitlines() if "│ m1" in line]
    assert "58.50" in line
    assert "57.78" in line
    assert "m1 and m2: undecided" in out or "m2 and m1: undecided" in out
    assert "preferences of one judge" in out
    assert "10 rows without a verdict, left out" in out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bad", "bad.json, record 2: preference is 'good'; it must be a number from 1 to 2, or 0 for a draw, or null"),
        ("absent", "no file matches"),
        ("both", "add --reference m1, or --reference m2"),
        ("resamples", "--resamples must be at least 1"),
        ("table", "none.csv"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(ran: dict[str, tuple[int, str]], name: str, said: str) -> None:
    code, out = ran[name]
    assert (code, len(out.splitlines())) == (2, 1), out
    assert out.startswith("error: ")
    assert said in out


def test_a_named_reference_decides(ran: dict[str, tuple[int, str]]) -> None:
    found = json.loads(ran["named"][1])
    assert (found["reference"], found["model"], found["win_rate"], found["n_swapped"]) == ("m1", "m2", 100, 1)


def test_the_job_runs_as_a_module(folder: Path) -> None:
    command = [sys.executable, "-m", "jobs.winrate", str(folder / "m1.json"), "--json"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n_total"] == 50
