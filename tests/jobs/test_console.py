"""How jobs end: unusable input gives one line before Ray or torch is imported, a signal says how far the work is."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DEMO = str(REPOSITORY / "configs/demo.yaml")

CHECK = """
import contextlib, io, json, runpy, sys
for job, *arguments in json.loads(sys.argv[1]):
    sys.argv = [job, *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try: runpy.run_module(f'jobs.{job}', run_name='__main__')
        except SystemExit as end: code = end.code
    loaded = {'ray', 'torch'} & set(sys.modules)
    assert not loaded, (job, *arguments, loaded)
    print(json.dumps((code, out.getvalue().strip())))
"""


def jobs(*commands: Sequence[str]) -> list[tuple[int, str]]:
    """Exit code and output of jobs that need neither Ray nor torch, one after another in one process."""
    command = [sys.executable, "-c", CHECK, json.dumps(commands)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return [(code, out) for code, out in map(json.loads, done.stdout.splitlines())]


def job(*arguments: str) -> tuple[int, str]:
    return jobs(arguments)[0]


SINGLE = "curate.recipe.scorer={kind: rubric, samples: 1, read: parsed}"
UNUSABLE: dict[tuple[str, ...], str] = {
    ("pipeline", DEMO, "corpus.recipe.input=[a]"): (
        "error: unknown key corpus.recipe.input; did you mean corpus.recipe.inputs?"
    ),
    ("pipeline", DEMO, "train.placement.zero_stage=4"): "error: train.placement.zero_stage",
    ("pipeline", DEMO, "corpus.recipe.inputs=[/nowhere/*.warc.gz]"): (
        "error: corpus.recipe.inputs: no file matches /nowhere/*.warc.gz"
    ),
    ("pipeline", DEMO, "seed.recipe.inputs=[/nowhere/trees.jsonl]"): (
        "error: seed.recipe.inputs: no file matches /nowhere/trees.jsonl"
    ),
    ("pipeline", DEMO, "base_model=/nowhere/llama"): (
        "error: base_model: /nowhere/llama is not a model directory: it does not exist; `hf download"
    ),
    ("pipeline", DEMO, "base_model=meta-llama/Llama-3.1-8B"): (
        "error: base_model: meta-llama/Llama-3.1-8B is a Hub id, not a directory or an s3:// URI; "
        "`hf download meta-llama/Llama-3.1-8B --local-dir models/Llama-3.1-8B` fetches it"
    ),
    ("pipeline", DEMO, "max_hours=1:30"): "error: max_hours is '1:30', but it takes a plain number",
    ("pipeline", DEMO, "train.placement.workers=many"): (
        "error: train.placement.workers is 'many', but it takes a plain whole number or a list"
    ),
    ("pipeline", DEMO, "sample=null"): ("error: base_model is not set, and no `sample` section is set to take it from"),
    ("pipeline", DEMO, "reuse.corpus=/nowhere"): "error: reuse.corpus: /nowhere is not a finished stage",
    ("pipeline", DEMO, "root=/proc/nowhere"): "error: cannot write to /proc/nowhere",
    ("pipeline", DEMO, "curate.placement.max_replicas=0"): "error: curate.placement.max_replicas",
    ("pipeline", DEMO, "corpus.recipe.inputs=[{at}/page.pdf]"): ("error: no reader takes {at}/page.pdf"),
    ("pipeline", DEMO, "base_model={at}"): (
        "error: base_model: {at} has no .safetensors weights; pickled weights are not supported"
    ),
    ("train", DEMO, "model=m0", "base_model={at}/cut"): (
        "error: base_model: {at}/cut/model.safetensors is cut off: it has 100 bytes"
    ),
    ("pipeline", "nowhere.yaml"): "error: cannot read the configuration nowhere.yaml: No such file or directory",
    ("curate", DEMO, SINGLE, "curate.recipe.rounds=[{threshold: 4.5}]"): (
        "error: curate.recipe: round 1 keeps scores >= 4.5 but rates each pair once"
    ),
    ("curate", DEMO, "--compare", "round=7"): "error: round is '7'; this run has rounds 1 to 2",
    ("curate", DEMO, "curate.recipe.rounds=[{threshold: 6}]"): (
        "error: curate.recipe: round 1 keeps scores >= 6, but the scores of rubric go from 1 to 5"
    ),
    ("train", DEMO, "model=m7"): "error: models/m7 is not a stage of this run",
}
"""Unusable commands, and the beginning of their only line of output."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], tuple[int, str, str]]:
    """Exit code, output and expected output of every unusable command; roots and inputs are in a folder."""
    at = tmp_path_factory.mktemp("unusable")
    (at / "page.pdf").write_text("no")
    (at / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (at / "pytorch_model.bin").write_bytes(b"\x80")
    shutil.copytree(at, at / "cut")
    (at / "cut/model.safetensors").write_bytes((200).to_bytes(8, "little") + b"{" + bytes(91))
    commands = [[word.replace("{at}", str(at)) for word in command] for command in UNUSABLE]
    for number, command in enumerate(commands):
        if not any(word.startswith("root=") for word in command):
            command.append(f"root={at}/{number}")
    told = zip(UNUSABLE.items(), jobs(*commands), strict=True)
    return {command: (code, out, said.replace("{at}", str(at))) for (command, said), (code, out) in told}


@pytest.mark.parametrize("command", UNUSABLE, ids=lambda command: command[-1])
def test_an_unusable_configuration_is_one_line_and_exit_code_2(
    answers: dict[tuple[str, ...], tuple[int, str, str]], command: tuple[str, ...]
) -> None:
    code, out, said = answers[command]
    assert code == 2, out
    assert out.startswith(said)
    assert "\n" not in out


def test_verify_of_nothing_exits_1(tmp_path: Path) -> None:
    code, out = job("verify", str(tmp_path))
    assert code == 1
    assert out.startswith("difference: ")


ENDED = """
import contextlib, ctypes, hashlib, signal, sys, time
from jobs.console import ending, guarded, say

signal.signal(signal.SIGINT, signal.default_int_handler)  # as at a terminal: in the background it is ignored

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
IN_HASH = (  # `system` ignores SIGINT; the word comes from a thread, once the main one is inside
    "__import__('threading').Timer(0.5, print, ['at work'], {'flush': True}).start(); "
    "hashlib.pbkdf2_hmac('sha256', b'x', b'y', 10**9)"
)
KNOWN, HANGS = "lambda: '5 of 24 shards'", "lambda: time.sleep(60)"
RESUMES = "the same command resumes from here"


TOLD: dict[str, tuple[int, str, str, int, list[str]]] = {
    "SIGTERM": (signal.SIGTERM, WAITS, KNOWN, 143, ["given back", f"terminated; 5 of 24 shards; {RESUMES}"]),
    "Ctrl-C": (signal.SIGINT, WAITS, KNOWN, 130, ["given back", f"interrupted; 5 of 24 shards; {RESUMES}"]),
    "the main thread hangs": (signal.SIGTERM, IN_C, KNOWN, 143, [f"terminated; 5 of 24 shards; {RESUMES}"]),
    "storage hangs": (
        signal.SIGTERM, WAITS, HANGS, 143, ["given back", f"terminated; committed work stays; {RESUMES}"]
    ),
    "SIGHUP": (signal.SIGHUP, WAITS, KNOWN, 129, ["given back", f"terminated; 5 of 24 shards; {RESUMES}"]),
    "Ctrl-C, and storage hangs": (
        signal.SIGINT, WAITS, HANGS, 130, ["given back", f"interrupted; committed work stays; {RESUMES}"]
    ),
    "Ctrl-C, and the main thread hangs": (
        signal.SIGINT, IN_HASH, HANGS, 130, [f"interrupted; committed work stays; {RESUMES}"]
    ),
    "both hang": (signal.SIGTERM, IN_C, HANGS, 143, [f"terminated; committed work stays; {RESUMES}"]),
}  # fmt: skip
"""The signal, what the job is doing, its known state; then its exit code and its last lines."""


@pytest.fixture(scope="module")
def ended() -> dict[str, tuple[int, list[str]]]:
    """Exit codes and last lines of jobs that get a signal; each waits, so they run at the same time."""
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-c", ENDED.format(work=work, state=state)],
            cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
        )
        for name, (_, work, state, _, _) in TOLD.items()
    }  # fmt: skip
    for process in processes.values():
        assert process.stdout
        assert process.stdout.readline() == "at work\n"
    for name, process in processes.items():
        process.send_signal(TOLD[name][0])
    return {name: (process.wait(60), process.communicate()[0].splitlines()) for name, process in processes.items()}


@pytest.mark.parametrize("name", TOLD)
def test_a_signal_gives_back_what_is_held_and_the_last_line_says_what_is_left(
    ended: dict[str, tuple[int, list[str]]], name: str
) -> None:
    *_, code, said = TOLD[name]
    assert ended[name] == (code, said)


FULL = """
import errno, os, sys
from humpback_ray import storage
from jobs.console import ending, guarded

def full(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

def work():
    os.fsync = full
    storage.{call}
    return 0

ending.state = lambda: "candidates has 5 of 24 shards committed"
sys.exit(guarded(work))
"""


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("write_bytes(uri, b'1')", "error: [Errno 28] No space left on device: '{uri}'"),
        ("create(uri, b'1')", "error: [Errno 28] No space left on device: '{uri}'"),
        ("check_room(uri)", "error: cannot write to {uri}: No space left on device; make room on its file system "
         "(`python -m jobs.gc` names the files of a run that can be deleted)"),
    ],
)  # fmt: skip
def test_a_disk_that_is_full_in_the_middle_of_a_run_is_one_line(tmp_path: Path, call: str, said: str) -> None:
    uri = str(tmp_path / "manifest.json")
    script = FULL.format(call=call).replace("uri", repr(uri))
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    left = f"; candidates has 5 of 24 shards committed; {RESUMES}"
    assert (done.returncode, done.stdout, done.stderr) == (1, said.format(uri=uri) + left + "\n", "")


def test_a_root_without_hard_links_exits_2_before_ray_starts(tmp_path: Path) -> None:
    script = f"""
import errno, os, sys
def link(source, target): raise OSError(errno.EPERM, "Operation not permitted", source, None, target)
os.link = link
from jobs.console import run_until
code = run_until([{DEMO!r}, "root={tmp_path}/fat"], "", lambda found, config: None)
assert "ray" not in sys.modules
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, ""), done.stderr
    assert done.stdout.startswith(f"error: the file system of {tmp_path}/fat/probe-")
    assert "does not support hard links (Operation not permitted)" in done.stdout
    assert done.stdout.count("\n") == 1


def test_an_unexpected_error_keeps_its_traceback_and_exits_1() -> None:
    script = ENDED.format(work="raise RuntimeError('never seen before')", state=KNOWN)
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("RuntimeError: never seen before\n")
