import asyncio
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.engines import Request, TransformersEngine, generate_all
from humpback_ray.engines.base import Completion
from humpback_ray.engines.batching import BatchedEngine, OutOfMemory
from humpback_ray.engines.transformers import fastest_dtype
from humpback_ray.needs import Resources
from humpback_ray.prompts.chat import encode, encode_prompt
from humpback_ray.stages.ledger import Ledger
from tests.conftest import one_example_in
from tests.engines.tiny import save_model

WORDS = st.sampled_from(["river", "Arden", "Score:", "é", "😀", "</s>", "\n\n", "the library", "12", "{x}", "?"])
PROMPTS = st.lists(st.lists(WORDS, max_size=12).map(" ".join), min_size=1, max_size=7)


@pytest.fixture(scope="module", params=[True, False], ids=["bos", "no bos"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), bos=request.param)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Any:
    engine = TransformersEngine(dtype="float32").build(str(folder), Resources(cpus=1, batch_rows=4))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    """The same model and tokenizer in plain transformers, one prompt at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def generate_plainly(plain: Any, request: Request) -> str:
    import torch

    model, tokenizer = plain
    ids = encode_prompt(tokenizer, request.prompt) or [tokenizer.bos_token_id]
    out = model.generate(torch.tensor([ids]), max_new_tokens=request.max_new_tokens, do_sample=False)
    return tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)


@given(prompts=PROMPTS, limits=st.lists(st.integers(1, 12), min_size=7, max_size=7))
@one_example_in(4)
def test_greedy_replies_equal_plain_generate_one_by_one(
    engine: BatchedEngine, plain: Any, prompts: list[str], limits: list[int]
) -> None:
    requests = [Request(prompt, max_new_tokens=limit) for prompt, limit in zip(prompts, limits, strict=False)]
    completions = asyncio.run(generate_all(engine, requests))
    assert [c.text for c in completions] == [generate_plainly(plain, request) for request in requests]


@given(prompts=PROMPTS)
@one_example_in(4)
def test_a_rows_samples_do_not_depend_on_the_other_rows_of_the_batch(engine: BatchedEngine, prompts: list[str]) -> None:
    requests = [
        Request(prompt, max_new_tokens=8, temperature=0.8, top_p=0.9, seed=seed) for seed, prompt in enumerate(prompts)
    ]
    together = asyncio.run(generate_all(engine, requests))
    alone = [asyncio.run(engine.generate(request)) for request in requests]
    assert together == alone


@given(prompt=st.lists(WORDS, max_size=8).map(" ".join), prefix=st.sampled_from(["", "Score:", "The river "]))
@one_example_in(4)
def test_continuations_have_the_log_probability_of_all_their_tokens(
    engine: BatchedEngine, plain: Any, prompt: str, prefix: str
) -> None:
    import torch

    model, tokenizer = plain
    continuations = (" 1", " 5", " the library of Arden", "é", "</s>")
    head = encode_prompt(tokenizer, prompt) or [tokenizer.bos_token_id]
    bare, expected = encode(tokenizer, prefix), []
    variants = [encode(tokenizer, prefix + text) for text in continuations]
    # The byte-level splits of these texts do not cross into the prefix, except for its final space.
    shared = next((i for i, t in enumerate(bare) if any(v[i : i + 1] != [t] for v in variants)), len(bare))
    for variant in variants:
        with torch.no_grad():
            logprobs = torch.log_softmax(model(torch.tensor([[*head, *variant]])).logits[0], -1)
        places = range(len(head) + shared, len(head) + len(variant))
        expected.append(sum(logprobs[place - 1, variant[place - len(head)]].item() for place in places))
    scored = asyncio.run(engine.generate(Request(prompt, reply_prefix=prefix, continuations=continuations)))
    assert scored.logprobs == pytest.approx(expected, abs=1e-3)


def test_greedy_writes_the_likeliest_of_all_single_tokens(engine: BatchedEngine, plain: Any) -> None:
    tokenizer = plain[1]
    texts = {tokenizer.decode([token]) for token in range(3, len(tokenizer))}
    single = tuple(t for t in texts if "\ufffd" not in t and len(encode(tokenizer, t)) == 1)
    scored = asyncio.run(engine.generate(Request("a river", continuations=single)))
    assert scored.logprobs is not None
    assert sum(math.exp(logprob) for logprob in scored.logprobs) <= 1 + 1e-5
    written = asyncio.run(engine.generate(Request("a river", max_new_tokens=1))).text
    if written in single:
        assert single[scored.logprobs.index(max(scored.logprobs))] == written


def test_an_engine_does_not_use_cudnn_attention(folder: Path) -> None:
    import torch

    torch.backends.cuda.enable_cudnn_sdp(True)
    TransformersEngine().build(str(folder), Resources()).close()
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_a_smaller_context_in_the_recipe_is_respected(folder: Path) -> None:
    engine = TransformersEngine(dtype="float32", max_context_tokens=12).build(str(folder), Resources())
    completion = asyncio.run(engine.generate(Request("the library of Arden", max_new_tokens=12)))
    engine.close()
    assert completion.finish_reason == "context"


def test_the_checkpoints_sampling_defaults_do_not_reach_a_reply(folder: Path, tmp_path: Path, plain: Any) -> None:
    import shutil

    from transformers import GenerationConfig

    changed = shutil.copytree(folder, tmp_path / "changed")
    GenerationConfig(
        do_sample=True, temperature=2.0, repetition_penalty=3.0, eos_token_id=1, max_length=5
    ).save_pretrained(changed)
    engine = TransformersEngine(dtype="float32").build(str(changed), Resources())
    request = Request("the library of Arden", max_new_tokens=12)
    completion = asyncio.run(engine.generate(request))
    engine.close()
    assert completion.text == generate_plainly(plain, request)


SHAPES: dict[str, dict[str, Any]] = {
    "grouped heads": {"kind": "llama"},
    "windows": {"kind": "mistral", "sliding_window": 24},
    "mixed layers": {
        "kind": "qwen3",
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 16,
        "use_sliding_window": True,
    },
}
"""Models with several kinds of attention; each must write what plain `generate` writes."""


@pytest.fixture(scope="module", params=list(SHAPES))
def shaped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), **SHAPES[request.param])


HEADS = ["Which of five grades fits? Answer with knowledge of the town and its river. ", "Arden: "]


@given(
    asked=st.lists(
        st.tuples(st.sampled_from(HEADS), st.lists(WORDS, max_size=20), st.integers(1, 40)), min_size=9, max_size=16
    )
)
@one_example_in(10)
def test_greedy_replies_do_not_change_when_rows_join_leave_and_share_a_prefix(shaped: Path, asked: list[Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    engine = TransformersEngine(dtype="float32").build(str(shaped), Resources(cpus=1, batch_rows=4))
    plain = (
        AutoModelForCausalLM.from_pretrained(shaped, dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(shaped),
    )
    requests = [Request(head + " ".join(words), max_new_tokens=limit) for head, words, limit in asked]
    completions = asyncio.run(generate_all(engine, requests))
    engine.close()
    assert [c.text for c in completions] == [generate_plainly(plain, request) for request in requests]


class Tight:
    """A model on a device whose memory runs out with more than a given number of rows."""

    def __init__(self, model: Any, most_rows: int) -> None:
        self.model, self.most_rows, self.refused = model, most_rows, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, ids: Any, **arguments: Any) -> Any:
        import torch

        if ids.shape[0] > self.most_rows:
            self.refused += 1
            raise torch.OutOfMemoryError(f"{ids.shape[0]} rows")
        return self.model(ids, **arguments)


def tight_engine(folder: Path, most_rows: int) -> tuple[Any, Tight]:
    engine: Any = TransformersEngine(dtype="float32").build(str(folder), Resources(cpus=1, batch_rows=16))
    engine._model.decoder.model = tight = Tight(engine._model.decoder.model, most_rows)
    return engine, tight


def test_if_memory_runs_out_batches_are_halved_and_no_reply_changes(folder: Path, plain: Any) -> None:
    engine, tight = tight_engine(folder, most_rows=3)
    requests = [Request(f"the library of Arden {i} " * (1 + i % 3), max_new_tokens=5 + i % 7) for i in range(24)]
    scored = [Request(f"{i} rivers", continuations=(" 1", " the library")) for i in range(12)]
    completions = asyncio.run(generate_all(engine, [*requests, *scored]))
    refused = tight.refused
    assert [c.text for c in completions[:24]] == [generate_plainly(plain, request) for request in requests]
    assert {c.finish_reason for c in completions[24:]} == {"scored"}
    assert 0 < refused < 16
    asyncio.run(generate_all(engine, requests))
    engine.close()
    assert tight.refused - refused <= 1  # the size is remembered


def test_if_memory_runs_out_on_the_first_prompts_batches_still_have_as_many_rows_as_fit(folder: Path) -> None:
    engine, _ = tight_engine(folder, most_rows=8)
    requests = [Request(f"{i} rivers", max_new_tokens=4) for i in range(16)]
    longest = 4 + max(len(engine._model.reader.read(request).ids) for request in requests)
    asyncio.run(generate_all(engine, requests))
    engine.close()
    assert engine._model.decoder.most_tokens // longest >= 8 // 2


def test_if_memory_runs_out_while_a_prefix_is_read_half_of_the_tokens_are_held(folder: Path, plain: Any) -> None:
    engine, tight = tight_engine(folder, most_rows=16)
    model, calls = tight.model, 0

    def sometimes(ids: Any, **arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            assert len(ids) == 1, "the first pass reads the shared prefix"
            raise RuntimeError("can't allocate memory")
        return model(ids, **arguments)

    tight.model = sometimes
    tight.__dict__ |= {"config": model.config, "device": model.device}
    requests = [Request(f"{HEADS[0]}{i}", max_new_tokens=4) for i in range(3)]
    before = engine._model.decoder.most_tokens
    completions = asyncio.run(generate_all(engine, requests))
    engine.close()
    assert [c.text for c in completions] == [generate_plainly(plain, request) for request in requests]
    assert engine._model.decoder.most_tokens == before // 2


def test_a_request_that_never_fits_into_memory_fails_and_says_so(folder: Path) -> None:
    engine, _ = tight_engine(folder, most_rows=0)
    with pytest.raises(OutOfMemory):
        asyncio.run(engine.generate(Request("a", max_new_tokens=2)))
    engine.close()


def test_models_with_state_other_than_keys_and_values_are_refused(tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    from tests.engines.tiny import make_tokenizer

    tokenizer = make_tokenizer(True)
    MambaForCausalLM(
        MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4)
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="use the vllm engine"):
        TransformersEngine(dtype="float32").build(str(tmp_path), Resources())


def test_a_cached_prefix_serves_prompts_that_share_only_a_part_of_it(folder: Path, plain: Any) -> None:
    engine = TransformersEngine(dtype="float32").build(str(folder), Resources(cpus=1, batch_rows=4))
    groups = [[f"{HEADS[0]}{text} {i}" for i in range(3)] for text in ("the library of Arden", "12 rivers", "the town")]
    for prompts in [*groups, [HEADS[0] + "?"], groups[0]]:
        requests = [Request(prompt, max_new_tokens=6) for prompt in prompts]
        completions = asyncio.run(generate_all(engine, requests))
        assert [c.text for c in completions] == [generate_plainly(plain, request) for request in requests]
    engine.close()


@pytest.fixture(scope="module", params=[math.inf, math.nan], ids=["inf", "nan"])
def poisoned(folder: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Return the model with non-finite logits for one token, `{`."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    path = tmp_path_factory.mktemp("poisoned")
    shutil.copytree(folder, path, dirs_exist_ok=True)
    (token,) = encode(AutoTokenizer.from_pretrained(folder), "{")
    weights = load_file(path / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = torch.full((32,), request.param)
    weights["lm_head.weight"][token] = 0  # no reply gets there by itself
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("temperature", [0.0, 0.9], ids=["greedy", "sampled"])
def test_a_prompt_without_finite_logits_fails_alone_and_leaves_nothing_behind(
    poisoned: Path, temperature: float
) -> None:
    asked = ["river", "{ poison", "Arden", "the library", "12 {", "Which river?", "{", "opens", "closes at five"]
    asked += ["short {", "a much longer prompt that takes the place of one that has failed " * 2]
    requests = [
        *(Request(p, 8, temperature, 0.9, seed) for seed, p in enumerate(asked)),
        *(Request(p, continuations=("Arden", " river")) for p in asked),
    ]

    def completions(requests: list[Request]) -> list[Completion]:
        engine = TransformersEngine(dtype="float32").build(str(poisoned), Resources(cpus=1, batch_rows=3))
        try:
            return asyncio.run(generate_all(engine, requests))
        finally:
            engine.close()

    together, healthy = completions(requests), [request for request in requests if "{" not in request.prompt]
    assert [c.finish_reason == "not_finite" for c in together] == ["{" in request.prompt for request in requests]
    assert {(c.text, c.logprobs) for c in together if c.finish_reason == "not_finite"} == {("", None)}
    found = [c for c, request in zip(together, requests, strict=True) if request in healthy]
    for mine, alone in zip(found, completions(healthy), strict=True):
        assert (mine.text, mine.finish_reason) == (alone.text, alone.finish_reason)
        assert mine.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_on_a_gpu_the_capability_decides_the_dtype(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: str
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: capability)
    assert fastest_dtype("cuda") == dtype


@pytest.mark.parametrize("first", ["float32", "bfloat16"])
def test_all_replicas_use_the_dtype_that_the_first_one_measured(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    ledger, found = Ledger(str(tmp_path), "s"), []
    for measured in (first, "float32", "bfloat16"):
        monkeypatch.setattr("humpback_ray.engines.transformers.fastest_dtype", lambda _, found=measured: found)
        engine: Any = TransformersEngine().build(str(folder), Resources(cpus=1, agree=ledger.agree))
        found.append(str(engine._model.decoder.model.dtype))
        engine.close()
    assert found == [f"torch.{first}"] * 3
    assert ledger.agreed() == {"dtype": first}


def test_a_model_that_caps_its_scores_is_run_with_the_cap(tmp_path: Path) -> None:
    """torch's kernel leaves the cap out."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(save_model(tmp_path / "gemma2", kind="gemma2", attn_logit_softcapping=0.5, query_pre_attn_scalar=32))
    requests = [Request(prompt, max_new_tokens=12) for prompt in ("The river of Arden", "é {x} 12, then 😀", "a")]
    engine = TransformersEngine(dtype="float32").build(folder, Resources(cpus=1, batch_rows=4))
    try:
        found = [one.text for one in asyncio.run(generate_all(engine, requests))]
    finally:
        engine.close()
    capped, plain = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=name).eval()
        for name in ("eager", "sdpa")
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert found == [generate_plainly((capped, tokenizer), request) for request in requests]
    assert found != [generate_plainly((plain, tokenizer), request) for request in requests]
