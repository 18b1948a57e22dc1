"""The process in which exports are checked, and what is asked of it."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from humpback_ray.stages import warm
from humpback_ray.train.export import fresh, process, reload
from humpback_ray.train.job import TrainingStopped, TrainJob
from tests.conftest import Said
from tests.train.export.test_directory import LONG, asked, model, this, write

assert model, this  # fixtures


@pytest.fixture
def exported(model: Any, base: Path, tokenizer: Any, this: TrainJob, tmp_path: Path) -> Path:
    write(model, base, tokenizer, this, tmp_path / "scratch")
    return tmp_path / "model"


def test_the_check_holds_in_a_process_whose_transformers_is_patched(
    exported: Path, model: Any, tokenizer: Any, this: TrainJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.llama import modeling_llama

    probe = asked(model, tokenizer, this)

    def kernel(*arguments: Any, **more: Any) -> Any:
        raise ValueError("Pointer argument (at 0) cannot be accessed from Triton (cpu tensor?)")

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", kernel)
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", kernel)
    here = AutoModelForCausalLM.from_pretrained(exported)
    with pytest.raises(ValueError, match="Triton"):
        here(input_ids=torch.tensor([[1, 2]]))
    reload.check_directory(exported, probe, this)


def test_an_error_of_positions_that_only_a_long_probe_sees_is_found(
    base: Path, tokenizer: Any, this: TrainJob, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base, max_position_embeddings=2048, initializer_range=0.4)  # it must attend
    config.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    attending: Any = AutoModelForCausalLM.from_config(config).eval()
    write(attending, tmp_path / "base", tokenizer, this, tmp_path / "scratch")
    written = json.loads((tmp_path / "model/config.json").read_text())
    written["rope_parameters"]["rope_theta"] *= 1 + 1.5e-5
    (tmp_path / "model/config.json").write_text(json.dumps(written))
    reload.check_directory(tmp_path / "model", asked(attending, tokenizer, this), this)
    long = asked(attending, tokenizer, this, 2048, LONG * 8)
    with pytest.raises(TrainingStopped, match=r"logits differ by 0\.00\d+ of the largest at token 1,\d+ of 1,920"):
        reload.check_directory(tmp_path / "model", long, this)


def test_the_scores_of_a_model_that_caps_them_are_capped(tokenizer: Any, this: TrainJob, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from humpback_ray.engines.attention import cap_scores

    config = AutoConfig.for_model(
        "gemma2", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=256, initializer_range=0.3,
        attn_logit_softcapping=0.5, query_pre_attn_scalar=32, pad_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    config.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    capped: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    without = asked(capped, tokenizer, this)
    cap_scores(capped)
    write(capped, tmp_path / "base", tokenizer, this, tmp_path / "scratch")
    reload.check_directory(tmp_path / "model", asked(capped, tokenizer, this), this)
    with pytest.raises(TrainingStopped, match="logits differ by"):
        reload.check_directory(tmp_path / "model", without, this)


@pytest.mark.parametrize("limit", [1, 2, 3, 32, 100, 256])
def test_no_sequence_of_the_probe_is_longer_than_the_context(
    model: Any, tokenizer: Any, this: TrainJob, limit: int
) -> None:
    probe = asked(model, tokenizer, this, limit)
    assert len(probe.long.ids) == min(limit, len(LONG))
    assert max(probe.start, len(probe.short.ids)) <= limit
    assert probe.start + len(probe.greedy) <= max(limit, 2)
    assert len(probe.greedy) == min(16, max(1, limit // 2))
    assert probe.short.ids == [*probe.prompt[: probe.start], *probe.greedy[:-1]]


def test_at_most_64_positions_and_those_of_the_greedy_tokens_are_compared() -> None:
    assert reload.spread(5, 1) == [0, 1, 2, 3, 4]
    places = reload.spread(2048, 16)
    assert (places[0], places[-16:]) == (0, list(range(2032, 2048)))
    assert len(places) <= 64 + 16
    assert max(later - earlier for earlier, later in itertools.pairwise(places)) <= 33


def test_only_the_positions_asked_for_get_logits(model: Any) -> None:
    import torch

    sizes: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda module, given, made: sizes.append(made.shape[1]))
    some = fresh.logits_at(model, LONG, [3, 100, 239], "cpu")
    hook.remove()
    with torch.no_grad():
        whole = model(input_ids=torch.tensor([LONG])).logits[0]
    assert sizes == [3]
    assert torch.allclose(some, whole[[3, 100, 239]], atol=1e-5)


def test_a_model_without_an_argument_for_positions_gives_the_same_logits(model: Any) -> None:
    import torch

    class Plain:
        def __init__(self) -> None:
            self.forward = lambda input_ids, use_cache: model(input_ids=input_ids)

        def __call__(self, **arguments: Any) -> Any:
            return self.forward(**arguments)

    found = fresh.logits_at(Plain(), LONG, [3, 239], "cpu")
    assert torch.allclose(found, fresh.logits_at(model, LONG, [3, 239], "cpu"), atol=1e-5)


def test_the_process_is_kept_for_the_next_model_and_told_failures_are_its_own_words(
    exported: Path, model: Any, tokenizer: Any, this: TrainJob
) -> None:
    probe = asked(model, tokenizer, this)
    reload.check_directory(exported, probe, this)
    before = process.started(gpu=False)
    (exported / "model.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(
        process.CheckFailed, match="exported m0 could not be loaded in a fresh process: SafetensorError: "
    ):
        reload.check_directory(exported, probe, this)
    assert process.started(gpu=False) is before


def test_a_killed_process_is_an_ordinary_failure_in_plain_words(
    exported: Path, model: Any, tokenizer: Any, this: TrainJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe, other = asked(model, tokenizer, this), process.Process(gpu=False)
    os.kill(other._popen.pid, signal.SIGKILL)
    monkeypatch.setattr(process, "started", lambda gpu: other)
    with pytest.raises(
        process.CheckFailed, match=r"it was killed \(signal 9\), as the kernel does if .* out of memory"
    ):
        reload.check_directory(exported, probe, this)
    monkeypatch.undo()
    reload.check_directory(exported, probe, this)


def test_a_process_that_may_use_gpus_uses_the_host_where_it_finds_none_and_is_not_kept(
    exported: Path, model: Any, tokenizer: Any, this: TrainJob, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_processes", {})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    reload.check_directory(exported, asked(model, tokenizer, this), this, gpu=True)
    assert said.records[-1][1].startswith("m0: loaded again, logits differ by ")
    assert not process._processes, "it would hold memory of the GPU"


def test_a_process_that_has_died_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_processes", {})
    first = process.started(gpu=False)
    os.kill(first._popen.pid, signal.SIGKILL)
    first._popen.wait()
    second = process.started(gpu=False)
    assert second is not first
    assert second.runs()
    process.ended()
    assert not second.runs()


def test_a_warm_training_worker_has_started_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_processes", {})
    monkeypatch.setattr(warm, "_import", lambda modules: None)
    warm.import_training()
    (begun,) = process._processes.values()
    assert begun.runs()
    assert process.started(gpu=False) is begun
    process.ended()


def test_a_process_that_does_not_answer_in_time_is_ended() -> None:
    begun = process.Process(gpu=False)
    os.kill(begun._popen.pid, signal.SIGSTOP)
    with pytest.raises(process.CheckFailed, match="it did not answer within 0 s, and was ended"):
        begun.ask({}, 0.2)
    assert not begun.runs()


def test_the_process_ends_with_the_one_that_asks() -> None:
    code = (
        "import os, signal; from humpback_ray.train.export import process\n"
        "print(process.started(gpu=False)._popen.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    pid, deadline = int(made.stdout), time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and b"fresh" in Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_process_sees_no_launcher_and_finds_the_package_where_its_parent_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = {
        "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1",
        "ACCELERATE_USE_DEEPSPEED": "true", "OMP_NUM_THREADS": "1", "RAY_JOB_ID": "1", "CUDA_VISIBLE_DEVICES": "3",
        "HOME": "/root", "PYTHONPATH": "old",
    }  # fmt: skip
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "lib", Path("/ignored"), "/lib"])
    monkeypatch.chdir(tmp_path)
    made = process.environment(given, gpu=True)
    at = os.pathsep.join([str(tmp_path), str(tmp_path), str(tmp_path / "lib"), "/lib"])
    expected = {"HOME": "/root", "CUDA_VISIBLE_DEVICES": "3", "HF_HUB_OFFLINE": "1", "PYTHONPATH": at}
    assert made == expected
    assert process.environment(given, gpu=False)["CUDA_VISIBLE_DEVICES"] == ""


def test_the_process_outlives_the_working_directory_of_its_parent(
    exported: Path, model: Any, tokenizer: Any, this: TrainJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(sys, "path", ["", "lib", *sys.path])
    monkeypatch.setattr(process, "_processes", {})
    reload.check_directory(exported, asked(model, tokenizer, this), this)
    process.ended()


def test_weights_go_to_gpus_then_to_the_host_then_stay_on_disk() -> None:
    giga = 10**9
    one, two = {0: 70 * giga}, {0: 70 * giga, 1: 70 * giga}
    host = {"cpu": 100 * giga}
    assert fresh.place(14 * giga, {}, 100 * giga) == fresh.Placed({}, "cpu", "", True)
    expected = fresh.Placed({"device_map": "auto", "max_memory": host}, "cpu", " from disk", False)
    assert fresh.place(130 * giga, {}, 100 * giga) == expected
    assert fresh.place(14 * giga, two, 100 * giga) == fresh.Placed({"device_map": {"": 0}}, "cuda:0", " on a GPU", True)
    busy = {0: 5 * giga, 1: 70 * giga}
    assert fresh.place(14 * giga, busy, 0) == fresh.Placed({"device_map": {"": 1}}, "cuda:1", " on a GPU", True)
    assert fresh.place(130 * giga, two, 100 * giga) == fresh.Placed(
        {"device_map": "sequential", "max_memory": {**two, **host}}, "cuda:0", " on 2 GPUs", True
    )
    assert fresh.place(130 * giga, one, 100 * giga) == fresh.Placed(
        {"device_map": "sequential", "max_memory": {**one, **host}}, "cuda:0", " on 1 GPUs and from the host", False
    )
    assert fresh.place(180 * giga, one, 100 * giga).words == " on 1 GPUs and from disk"


def test_the_time_limit_grows_with_the_model_and_the_sequence(tmp_path: Path) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(130 * 10**9)
    assert 4 * 3600 < reload.limit_s(tmp_path, 2048) < 8 * 3600


@pytest.mark.parametrize(
    ("name", "dtype", "wrong", "same"),
    [
        ("experts", "bfloat16", {3: 1.0, 90: -1.0}, True),
        ("experts", "bfloat16", {3: math.nan}, False),
        ("experts", "bfloat16", dict.fromkeys(range(40, 60), 1.0), False),
        ("experts", "float32", {3: 1.0}, False),
        ("mlp", "bfloat16", {3: 1.0}, False),
    ],
)
def test_rounding_may_send_a_few_tokens_to_other_experts(
    name: str, dtype: str, wrong: dict[int, float], same: bool, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import save_file

    class Table(torch.nn.Module):
        """Gives each position fixed logits."""

        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(dtype=getattr(torch, dtype))
            torch.manual_seed(0)
            self.register_parameter(name, torch.nn.Parameter(torch.randn(96, 9).to(self.config.dtype)))

        def forward(self, input_ids: Any, use_cache: bool) -> Any:
            return SimpleNamespace(logits=self.get_parameter(name)[None, : input_ids.shape[1]])

    table = Table()
    expected = table.get_parameter(name).detach().clone()
    ids, positions = list(range(96)), list(range(96))
    greedy = expected[-16:].argmax(-1).tolist()
    for place, value in wrong.items():
        expected[place] += value
    save_file({"0": expected}, tmp_path / "logits.safetensors")
    request: Any = {
        "logits": str(tmp_path / "logits.safetensors"), "model": "m0", "tolerance": reload.TOLERANCE[dtype],
        "greedy": greedy, "passes": [ids], "positions": [positions],
    }  # fmt: skip
    if same:
        apart, agreed = fresh.compare(table, request, "cpu")
        assert (apart, agreed) == (0.0, 16)
    else:
        with pytest.raises(fresh.Unlike, match="logits differ by"):
            fresh.compare(table, request, "cpu")
