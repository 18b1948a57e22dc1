"""How jobs end: what is unusable with one line before Ray or torch is even imported, a signal with what is left."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from humpback_ray.config import ConfigError, load
from humpback_ray.run import RunConfig
from jobs.console import check_local

REPOSITORY = Path(__file__).parents[2]
DEMO = str(REPOSITORY / "configs/demo.yaml")

CHECK = """
import runpy, sys
job, *arguments = sys.argv[1:]
sys.argv = [job, *arguments]
try: runpy.run_module(f'jobs.{job}', run_name='__main__')
except SystemExit as end: code = end.code
loaded = {'ray', 'torch'} & set(sys.modules)
assert not loaded, loaded
sys.exit(code)
"""


def job(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", CHECK, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.strip()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("corpus.recipe.input=[a]", "error: unknown key corpus.recipe.input"),
        ("train.placement.zero_stage=4", "error: train.placement.zero_stage"),
        (
            "corpus.recipe.inputs=[/nowhere/*.warc.gz]",
            "error: corpus.recipe.inputs: no file matches /nowhere/*.warc.gz",
        ),
        (
            "seed.recipe.inputs=[/nowhere/trees.jsonl]",
            "error: seed.recipe.inputs: no file matches /nowhere/trees.jsonl",
        ),
        (
            "base_model=/nowhere/llama",
            "error: base_model: /nowhere/llama is no model directory (it has no config.json)",
        ),
        ("sample=null", "error: base_model is not set, and there is no `sample` section to take it from"),
        ("reuse.corpus=/nowhere", "error: reuse.corpus: /nowhere is no finished stage"),
        ("root=/proc/nowhere", "error: cannot write to /proc/nowhere"),
        ("curate.placement.max_replicas=0", "error: curate.placement.max_replicas"),
    ],
)
def test_an_unusable_configuration_is_one_line_and_exit_code_2(tmp_path: Path, override: str, said: str) -> None:
    code, out = job("pipeline", DEMO, f"root={tmp_path}", override)
    assert code == 2, out
    assert out.startswith(said)
    assert "\n" not in out


def test_a_file_that_no_reader_takes_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.pdf").write_text("no")
    code, out = job("pipeline", DEMO, f"root={tmp_path}/run", f"corpus.recipe.inputs=[{tmp_path}/page.pdf]")
    assert code == 2, out
    assert "no reader takes" in out
    assert "page.pdf" in out


def test_a_threshold_that_single_ratings_cannot_reach_says_the_fix(tmp_path: Path) -> None:
    scorer = "curate.recipe.scorer={kind: rubric, samples: 1, read: parsed}"
    code, out = job("curate", DEMO, f"root={tmp_path}", scorer, "curate.recipe.rounds=[{threshold: 4.5}]")
    assert code == 2, out
    assert "round 1 keeps scores >= 4.5 but rates each pair once" in out


def test_a_stage_that_the_run_does_not_have_is_named(tmp_path: Path) -> None:
    code, out = job("train", DEMO, f"root={tmp_path}", "model=m7")
    assert code == 2, out
    assert out.startswith("error: models/m7 is no stage of this run")


def test_a_missing_configuration_file_is_named() -> None:
    assert job("pipeline", "nowhere.yaml") == (
        2,
        "error: cannot read the configuration nowhere.yaml: No such file or directory",
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("augment.placement.min_replicas=9", r"augment.placement asks for 18 CPUs at once, this machine has 4"),
        ("curate.placement.gpus_per_replica=0.5", r"curate.placement asks for 0.5 GPUs at once, this machine has 0"),
        (
            "train.placement.labels={ray.io/market-type: spot}",
            r"train.placement.labels asks .* ray.io/market-type=spot",
        ),
    ],
)
def test_what_this_machine_alone_can_never_give_is_refused(override: str, said: str) -> None:
    have = {"CPU": 4.0, "GPU": 0.0}
    check_local(load(RunConfig, DEMO, ["augment.placement.max_replicas=100"]), have)
    with pytest.raises(ConfigError, match=said):
        check_local(load(RunConfig, DEMO, [override]), have)


def test_verify_of_nothing_exits_1(tmp_path: Path) -> None:
    code, out = job("verify", str(tmp_path))
    assert code == 1
    assert out.startswith("difference: ")


def test_a_model_of_pickled_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    code, out = job("pipeline", DEMO, f"root={tmp_path}/run", f"base_model={tmp_path}")
    assert code == 2, out
    assert "pickled weights are not loaded" in out


ENDED = """
import contextlib, ctypes, sys, time
from jobs.console import ending, guarded, say

@contextlib.contextmanager
def held():
    try: yield
    finally: print('given back', flush=True)

def work():
    with held():
        {work}
    return 0

ending.state = {state}
sys.exit(guarded(work))
"""
WAITS = "print('at work', flush=True); time.sleep(60)"
IN_C = "ctypes.CDLL(None).system(b'echo at work; exec > /dev/null 2>&1; while kill -0 $PPID; do sleep 0.2; done')"
KNOWN, HANGS = "lambda: '5 of 24 shards'", "lambda: time.sleep(60)"
GOES_ON = "the same command goes on from here"


@pytest.mark.parametrize(
    ("number", "work", "state", "code", "said"),
    [
        (signal.SIGTERM, WAITS, KNOWN, 143, ["given back", f"terminated; 5 of 24 shards; {GOES_ON}"]),
        (signal.SIGINT, WAITS, KNOWN, 130, ["given back", f"interrupted; 5 of 24 shards; {GOES_ON}"]),
        (signal.SIGTERM, IN_C, KNOWN, 143, [f"terminated; 5 of 24 shards; {GOES_ON}"]),
        (signal.SIGTERM, WAITS, HANGS, 143, ["given back", f"terminated; what is committed stays; {GOES_ON}"]),
        (signal.SIGTERM, IN_C, HANGS, 143, [f"terminated; what is committed stays; {GOES_ON}"]),
    ],
    ids=["SIGTERM", "Ctrl-C", "the main thread hangs", "storage hangs", "both hang"],
)
def test_a_signal_gives_back_what_is_held_and_the_last_line_says_what_is_left(
    number: int, work: str, state: str, code: int, said: list[str]
) -> None:
    script = ENDED.format(work=work, state=state)
    process = subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "at work\n"
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == code
    assert out.splitlines() == said


def test_an_unexpected_error_keeps_its_traceback_and_exits_1() -> None:
    script = ENDED.format(work="raise RuntimeError('never seen before')", state=KNOWN)
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("RuntimeError: never seen before\n")
