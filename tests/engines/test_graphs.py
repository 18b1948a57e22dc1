"""Decode steps of fixed shapes, recorded and repeated on the CPU as a CUDA graph would be (recorded.py)."""

import asyncio
import random
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from humpback_ray.engines import Request, TransformersEngine, generate_all
from humpback_ray.engines import graphs as graphs_module
from humpback_ray.engines.attention import NAME, share_heads
from humpback_ray.engines.base import Completion
from humpback_ray.engines.batching import Job
from humpback_ray.engines.decoding import Decoder
from humpback_ray.engines.graphs import FixedStep, Graphs, distances
from humpback_ray.engines.slots import Slots, rounded
from humpback_ray.needs import Resources
from tests.conftest import Said
from tests.engines.recorded import CpuRecorder, Recording
from tests.engines.tiny import save_model

MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
KINDS: dict[str, dict[str, Any]] = {
    "grouped heads": {"kind": "llama"},
    "tied": {"kind": "llama", "tie_word_embeddings": True, "num_key_value_heads": 4},
    "windows": {"kind": "mistral", "sliding_window": 24},
    "mixed layers": {"kind": "qwen3", "use_sliding_window": True, **MIXED},
    "two sets of positions": {"kind": "gemma3_text", **MIXED},
    "mixture of experts": {"kind": "mixtral", "num_local_experts": 4},
}


@pytest.fixture(autouse=True)
def eager_to_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs_module, "USES", 2)


@pytest.fixture(scope="module", params=list(KINDS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), **KINDS[request.param])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


HEAD = "Which of five grades fits? Answer with knowledge of the town and its river. "
"""Long enough to be a shared prefix."""


def requests(count: int) -> list[Request]:
    """Return requests with prompts and replies of many lengths; some share a prefix, and every third is sampled."""
    draw = random.Random(0)
    texts = [
        " ".join(draw.choices(["river", "Arden", "the library", "12"], k=draw.randint(1, 25))) for _ in range(count)
    ]
    return [
        Request(HEAD * (n % 4 == 0) + text, draw.randint(1, 50), 0.7 * (n % 3 == 0), 0.9, n)
        for n, text in enumerate(texts)
    ]


def run(
    folder: Path, asked: list[Request], recorder: Any = None, **resources: Any
) -> tuple[list[Completion], Graphs | None]:
    """Return the completions of an engine, with graphs if there is a recorder, and its graphs."""
    engine: Any = TransformersEngine(dtype="float32").build(str(folder), Resources(cpus=1, batch_rows=6, **resources))
    decoder = engine._model.decoder
    decoder.graphs = Graphs(decoder.model, recorder, 6) if recorder else None
    try:
        return asyncio.run(generate_all(engine, asked)), decoder.graphs
    finally:
        engine.close()


def test_replaying_writes_what_plain_steps_write(folder: Path) -> None:
    asked = requests(16)
    found, graphs = run(folder, asked, CpuRecorder())
    assert found == run(folder, asked)[0]
    assert graphs
    assert graphs.off is None
    assert graphs.replays > graphs.plain_steps
    assert graphs.recorded >= 2


class Steps:
    """A decoder with a few rows, and a fixed step of its shape."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        share_heads(model)
        if device == "meta":
            model.to(device, torch.bfloat16)  # its kernels for experts know no float32
        self.decoder = Decoder(model, [], 2, 8, 1 << 10)
        self.inputs = torch.zeros((8, 3), dtype=torch.long, device=device)
        self.logits = torch.zeros((8, model.config.vocab_size), device=device, dtype=model.dtype)
        self.graphs = Graphs(model, CpuRecorder(), 8)

    def fill(self) -> None:
        rows = [[5 + n, 6, 7 + n, 8][: 2 + n] * 9 for n in range(3)]
        self.decoder.join([Job(Request("", 90), Future(), ids) for ids in rows])

    def fixed(self) -> FixedStep:
        slots = self.decoder.slots
        return FixedStep(self.decoder.model, slots, (3, 64, slots.columns), self.inputs, self.logits)


def test_two_steps_at_different_columns_run_the_same_operations_on_the_same_memory(folder: Path) -> None:
    steps, traces = Steps(folder), []
    with torch.inference_mode():
        steps.fill()
        for _ in range(2):
            slots = steps.decoder.slots
            with slots.writing():
                steps.inputs[:3] = torch.tensor([[9, start, slots.at] for start in slots.starts])
                with (recording := Recording()):
                    steps.fixed()()
            traces.append(recording)
    first, second = (recording.trace() for recording in traces)
    assert len(first) > 50
    for one, other in zip(first, second, strict=True):
        assert one == other


def test_a_fixed_step_neither_waits_for_values_nor_copies_from_the_host(folder: Path) -> None:
    steps = Steps(folder, "meta")  # has no values, so waiting for one raises; the recording refuses copies
    slots = steps.decoder.slots
    slots.starts, slots.end = [0, 3, 9], 20
    slots.reserve(3, 20, 40, 8, 1 << 10)
    with torch.inference_mode(), slots.writing(), Recording():
        steps.fixed()()


def test_the_recording_refuses_what_stops_a_capture() -> None:
    value = torch.ones(3)
    for work in (
        lambda: value.sum().item(),
        lambda: bool(value.all()),
        lambda: value.nonzero(),
        lambda: value[value > 0],
        lambda: value.to("meta"),
    ):
        with pytest.raises(RuntimeError), Recording():
            work()


class Broken(CpuRecorder):
    """Records as `fault` says."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def record(self, work: Any) -> Any:
        if self.fault == "refuses":
            raise RuntimeError("operation not permitted when stream is capturing")
        if self.fault == "no memory":
            raise torch.OutOfMemoryError("no memory")
        if self.fault == "nothing":
            work()
            return lambda: None
        replay = super().record(work)
        inputs = work.inputs_R3
        old = inputs.clone()

        def stale() -> None:  # writes and reads the column of the time when it was recorded
            now = inputs.clone()
            inputs[:, 2] = old[:, 2]
            replay()
            inputs.copy_(now)

        return stale


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("refuses", "not permitted"), ("no memory", "memory ran out"), ("nothing", "noise"), ("stale", "noise")],
)
def test_a_graph_that_fails_is_never_used_and_no_reply_changes(
    llama: Path, fault: str, reason: str, said: Said
) -> None:
    asked = requests(16)
    found, graphs = run(llama, asked, recorder := Broken(fault))
    assert found == run(llama, asked)[0]
    assert graphs
    assert graphs.off
    assert reason in graphs.off
    assert (graphs.replays, graphs.held) == (0, {})
    assert [(level, graphs.off in line) for level, line in said.records] == [("WARNING", True)]
    assert recorder.released


def test_a_single_request_survives_a_wrong_graph(llama: Path) -> None:
    asked = [Request("a river", 40)]
    assert run(llama, asked, Broken("stale"))[0] == run(llama, asked)[0]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_device_that_has_failed_ends_the_engine(llama: Path) -> None:
    from humpback_ray.stages.processes import Dead

    class Failed(Broken):
        def now_s(self) -> float:
            if self.passed:
                raise torch.AcceleratorError("an illegal memory access was encountered")
            return super().now_s()

    with pytest.raises(Dead):
        run(llama, requests(8), Failed("refuses"))


def test_a_graph_that_is_slower_than_plain_steps_is_not_used(llama: Path) -> None:
    class Slow(CpuRecorder):
        def now_s(self) -> float:
            self.passed += 1
            self.time_s = getattr(self, "time_s", 0.0) + 1 / self.passed  # each interval is shorter than the last
            return self.time_s

    asked = requests(16)
    found, graphs = run(llama, asked, Slow())
    assert found == run(llama, asked)[0]
    assert graphs
    assert set(graphs.held.values()) == {None}
    assert graphs.replays == 0


@pytest.mark.parametrize("limit", ["number", "memory"])
def test_graphs_are_bounded(llama: Path, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs_module, "PADDING", 1.0)
    monkeypatch.setattr(graphs_module, "SPARE_TOKENS", 0)
    if limit == "number":
        monkeypatch.setattr(graphs_module, "MOST_GRAPHS", 1)
    asked = requests(16)
    found, graphs = run(llama, asked, CpuRecorder(0 if limit == "number" else 1 << 30))
    assert found == run(llama, asked)[0]
    assert graphs
    assert graphs.recorded >= 2 if limit == "number" else graphs.recorded - graphs.drops <= 1
    assert len(graphs.held) == 1


def test_without_memory_graphs_go_and_come_back(llama: Path) -> None:
    asked = requests(16)
    engine: Any = TransformersEngine(dtype="float32").build(str(llama), Resources(cpus=1, batch_rows=6))
    decoder = engine._model.decoder
    decoder.graphs = graphs = Graphs(decoder.model, CpuRecorder(), 6)
    model, calls = decoder.model, 0

    def sometimes(ids: Any, **arguments: Any) -> Any:
        nonlocal calls
        calls += graphs.replays > 0
        if calls == 3:
            raise torch.OutOfMemoryError("no memory")
        return model(ids, **arguments)

    class Tight:
        __call__ = staticmethod(sometimes)

        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

    decoder.model = Tight()
    found = asyncio.run(generate_all(engine, asked))
    engine.close()
    assert found == run(llama, asked)[0]
    assert graphs.off is None
    assert graphs.drops >= 1
    assert graphs.held
    assert decoder.most_tokens < Resources().batch_tokens


def test_graphs_go_when_the_memory_that_they_read_has_grown(llama: Path) -> None:
    engine: Any = TransformersEngine(dtype="float32").build(str(llama), Resources(cpus=1, batch_rows=6))
    decoder = engine._model.decoder
    decoder.graphs = graphs = Graphs(decoder.model, CpuRecorder(), 6)
    single = [[Request(f"Arden {n}", 40)] for n in range(4)]
    many = [[Request(f"the library {n}", 40) for n in range(6)]]
    found = [asyncio.run(generate_all(engine, one)) for one in single]
    before, memory = graphs.replays, decoder.slots.allocations
    found += [asyncio.run(generate_all(engine, one)) for one in [*many, *single]]
    engine.close()
    assert found == [run(llama, one)[0] for one in [*single, *many, *single]]
    assert 0 < before < graphs.replays
    assert decoder.slots.allocations > memory
    assert graphs.drops > 0


class Late(CpuRecorder):
    """Fails after the work has run."""

    def record(self, work: Any) -> Any:
        work()
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize("recorder", [CpuRecorder, Late])
def test_rows_that_nobody_asked_for_leave_nothing_behind(
    llama: Path, monkeypatch: pytest.MonkeyPatch, recorder: type[CpuRecorder]
) -> None:
    """They get the first row's token, here one whose keys are not finite where it stands first."""
    steps = Steps(llama)
    steps.graphs.recorder = recorder()
    decoder, embedding = steps.decoder, steps.decoder.model.get_input_embeddings()  # type: ignore[attr-defined]
    decoder.graphs = steps.graphs
    inner = embedding.forward

    def poisoned(ids: Any) -> Any:
        found = inner(ids)
        return found.index_fill(0, torch.arange(3, len(found)), torch.nan) if len(found) == 8 else found

    monkeypatch.setattr(embedding, "forward", poisoned)
    with torch.inference_mode():
        steps.fill()
        decoder.slots.reserve(8, 27, 1, 8, 1 << 10)
        for _ in range(12):
            decoder.step()
            for layer in decoder.slots.layers:
                assert layer.keys is not None
                assert layer.values is not None
                assert bool(layer.keys.isfinite().all() & layer.values.isfinite().all())
    assert (steps.graphs.replays > 0) == (recorder is CpuRecorder)
    assert {key[0] for key in steps.graphs.held} <= {8}


def test_sizes_are_rounded_up_by_an_eighth_at_most() -> None:
    for count in range(1, 5000):
        assert count <= rounded(count, 8) < count + max(8, count / 8 + 1)
    assert len({rounded(count, 64) for count in range(1, 2049)}) <= 24


def test_distances_see_any_difference_and_ignore_a_common_offset() -> None:
    wanted = torch.tensor([[1.0, 2.0, 4.0], [1.0, -torch.inf, 3.0], [torch.nan, 1.0, 2.0]])
    found = wanted.clone()
    assert distances(found, wanted).tolist() == [0, 0, 0]
    found[1, 1] = 0
    found[0, 2] += 1
    apart = distances(found, wanted)
    assert apart[0] == pytest.approx(distances(found + 100, wanted + 100)[0])
    assert apart[0] > 0.4
    assert apart[1] == torch.inf


def test_there_are_no_graphs_on_a_cpu(llama: Path) -> None:
    engine: Any = TransformersEngine().build(str(llama), Resources(cpus=1))
    engine.close()
    assert engine._model.decoder.graphs is None


class OnGpus:
    """A model as it looks on some GPUs."""

    def __init__(self, devices: list[str], attention: str = NAME, rope: str = "default") -> None:
        self.devices = devices
        self.config: Any = type("Config", (), {"_attn_implementation": attention})()
        self.rope = torch.nn.Identity()
        self.rope.rope_type = rope  # type: ignore[assignment]
        self.device = "cpu"

    def parameters(self) -> Iterator[Any]:
        return iter([type("Parameter", (), {"device": torch.device(name)})() for name in self.devices])

    def modules(self) -> Iterator[Any]:
        return iter([self.rope])


@pytest.mark.parametrize(
    ("model", "eager", "expected"),
    [
        (OnGpus(["cuda:0", "cuda:0"]), False, True),
        (OnGpus(["cuda:0", "cuda:0"]), True, False),
        (OnGpus(["cuda:0", "cuda:1"]), False, False),
        (OnGpus(["cpu", "cpu"]), False, False),
        (OnGpus(["cuda:0"], attention="flash_attention_2"), False, False),
        (OnGpus(["cuda:0"], rope="longrope"), False, False),
        (OnGpus(["cuda:0"], rope="dynamic"), False, False),
        (OnGpus(["cuda:0"], rope="yarn"), False, True),
    ],
)
def test_graphs_need_one_gpu_our_attention_and_positions_that_stay_there(
    model: Any, eager: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs_module, "CudaRecorder", CpuRecorder)
    assert bool(graphs_module.cuda_graphs(model, 8, eager)) == expected


def test_slots_keep_rows_when_memory_is_divided_anew() -> None:
    draw = random.Random(0)
    slots, held = Slots(1), {}
    layer = slots.layers[0]
    for _ in range(200):
        rows, length = draw.randint(1, 3), draw.randint(1, 90)
        if draw.random() < 0.5 and slots.starts:
            gone = draw.sample(range(len(slots.starts)), draw.randint(1, len(slots.starts)))
            held = {new: held[old] for new, old in enumerate(slots.drop(gone))}
        after, before, full = draw.randint(0, 100), slots.allocations, slots.tokens == 2048
        slots.reserve(len(slots.starts) + rows, length, after, 8, 2048)
        assert slots.rows * slots.columns <= slots.tokens
        if full and (len(slots.starts) + rows) * rounded(slots.end + after, 64) <= 2048:
            assert slots.allocations == before
        new = torch.rand(rows, 2, length, 4)
        with slots.reading([length] * rows, length, None) as starts:
            layer.update(new, new + 1)
        first = len(slots.starts)
        slots.starts += starts
        held |= {first + n: new[n] for n in range(rows)}
        if len(slots.starts) > 6:
            held = {now: held[old] for now, old in enumerate(slots.drop(range(3)))}
        for row, keys in held.items():
            assert layer.keys is not None
            assert layer.values is not None
            assert torch.equal(layer.keys[row, :, slots.starts[row] : slots.end], keys)
            assert torch.equal(layer.values[row, :, slots.starts[row] : slots.end], keys + 1)
