"""Prediction and rating, compared with the usual alternatives; prompts and lengths are the demo's segments'.

    make bench-inference     (or: python -m tests.benchmarks.inference engine stage scorers rows)

`stage-vllm`, which the make target runs last, needs vLLM and so the virtual environment of `make test-vllm`.

engine   rows/s of the transformers engine over those of the loop people write: arrival order, batches of 32 padded on
         the left, `generate` to the longest reply of the batch. Llamas of 3 M and 50 M parameters with random weights.
         A lower bound: the time of the products with the weights for every token read or written, at the rate of one
         such product of 128 rows. The same with the engine's own choice of number format (`dtype: auto`), whose
         replies may differ. Also once over transformers' continuous batching, with 32 rows of the small model.
stage    end-to-end seconds of a process that builds the same engine and gives it all prompts at once, over those of a
         stage through Ray with one replica (both start, load the model and end); seconds of one replica over those of
         two, with an engine that sleeps.
scorers  pairs/s of `rubric_expected` over those of `rubric` with one reply of 128 tokens per pair.
rows     the framework's own cost with the engine `echo`, 2,000 rows per shard: microseconds per row at 10^4, 10^5 and
         10^6 rows beyond the time of a run of one row, the driver's memory, seconds to resume a finished stage.

The rivals take turns in one call; every figure is the median over rounds of a ratio taken within a round.
"""

import argparse
import asyncio
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from humpback_ray import storage
from humpback_ray.augment import AugmentConfig, AugmentRecipe, backward_request, make_candidates
from humpback_ray.config import load
from humpback_ray.corpus.segments import Segmenter
from humpback_ray.curate.scorers import Rubric, RubricExpected
from humpback_ray.engines import Completion, EchoEngine, Engine, Request, TransformersEngine, VllmEngine, generate_all
from humpback_ray.needs import Resources
from humpback_ray.placement import PoolPlacement, TaskPlacement
from humpback_ray.prompts.chat import ChatRecipe, encode_prompt
from humpback_ray.records import SEGMENT, record_id
from humpback_ray.runconfig import RunConfig
from humpback_ray.sample.base import BaseRecipe, train_tokenizer
from humpback_ray.sample.world import WorldRecipe, documents, write_world
from humpback_ray.stages.commits import Commit
from humpback_ray.stages.ledger import Attempt
from humpback_ray.stages.manifest import Manifest
from humpback_ray.stages.models import Model
from humpback_ray.stages.outputs import TableWriter
from humpback_ray.stages.stage import Place, Stage
from tests.benchmarks import ledger
from tests.jobs.prepared import write_model

DEMO = Path(__file__).parents[2] / "configs/demo.yaml"
BATCH_ROWS = 32
SHAPES = {"3m": {"hidden_size": 256, "num_hidden_layers": 3}, "50m": {"hidden_size": 512, "num_hidden_layers": 15}}
ROWS = {"3m": 1024, "50m": 256}


@dataclass(frozen=True)
class Material:
    """The texts of the demo's segments, and a tokenizer trained on its web."""

    config: RunConfig
    texts: list[str]
    tokenizer: Any

    @staticmethod
    def make(folder: Path) -> "Material":
        config, recipe = load(RunConfig, str(DEMO), []), WorldRecipe()
        write_world(recipe, folder)
        cut = Segmenter(config.corpus.recipe.segments, config.corpus.recipe.readers)
        tables = [cut(file) for file in storage.find(str(folder / "web" / "*.warc.gz"))]
        texts = sorted({text for table in tables for text in table["text"].to_pylist() if text})
        return Material(config, texts, train_tokenizer(BaseRecipe(), documents(recipe)))

    def requests(self, count: int, rng: random.Random) -> list[Request]:
        """Return requests for replies to segments, each as long as another segment."""
        lengths = [len(self.tokenizer(text)["input_ids"]) for text in rng.choices(self.texts, k=count)]
        chosen = rng.choices(self.texts, k=count)
        return [
            Request(self.config.chat.backward_prompt(text), max_new_tokens=length)
            for text, length in zip(chosen, lengths, strict=True)
        ]


def save_llama(folder: Path, tokenizer: Any, **shape: Any) -> Path:
    """Write a Llama with random weights and clearly different logits, so rounding changes no token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    hidden = shape["hidden_size"]
    config = LlamaConfig(
        vocab_size=len(tokenizer), intermediate_size=hidden * 11 // 4, num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64, max_position_embeddings=2048, initializer_range=0.1, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        **shape,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plain_loop(model: Any, tokenizer: Any, requests: Sequence[Request]) -> list[str]:
    """Complete requests as one would in a notebook."""
    import torch

    texts = []
    for start in range(0, len(requests), BATCH_ROWS):
        batch = requests[start : start + BATCH_ROWS]
        rows = [encode_prompt(tokenizer, request.prompt) for request in batch]
        width = max(map(len, rows))
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        longest = max(request.max_new_tokens for request in batch)
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=mask, max_new_tokens=longest, do_sample=False)
        for request, row in zip(batch, out[:, width:].tolist(), strict=True):
            texts.append(tokenizer.decode(row[: request.max_new_tokens], skip_special_tokens=True))
    return texts


def continuous(model: Any, tokenizer: Any, requests: Sequence[Request]) -> list[str]:
    """Complete requests with transformers' own continuous batching."""
    from transformers import GenerationConfig

    settings = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=max(request.max_new_tokens for request in requests),
    )  # fmt: skip
    texts: dict[str, str] = {}
    with model.continuous_batching_context_manager(generation_config=settings) as manager:
        names = [
            manager.add_request(encode_prompt(tokenizer, request.prompt), max_new_tokens=request.max_new_tokens)
            for request in requests
        ]
        while len(texts) < len(names):
            result = manager.get_result(timeout=120)
            assert result is not None, f"{len(texts)} of {len(names)} replies after 120 s without one"
            if result.is_finished():
                texts[result.request_id] = tokenizer.decode(result.generated_tokens, skip_special_tokens=True)
    return [texts[name] for name in names]


def equal_share(completions: Sequence[Completion], texts: Sequence[str]) -> float:
    """Return the share of replies that equal the rival's."""
    return statistics.mean(c.text == text for c, text in zip(completions, texts, strict=True))


def floor_s(model: Any, tokenizer: Any, requests: Sequence[Request], completions: Sequence[Completion]) -> float:
    """Return the seconds of the products with the weights, each token once, at the rate of a product of 128 rows."""
    import torch

    read = sum(len(encode_prompt(tokenizer, request.prompt)) for request in requests)
    written = sum(completion.completion_tokens for completion in completions)
    head = model.get_output_embeddings().weight
    layers = sum(p.numel() for p in model.model.layers.parameters() if p.dim() == 2)
    weight = next(p for name, p in model.named_parameters() if "up_proj" in name).detach()
    inputs, rounds = torch.randn(128, weight.shape[1]), 300
    seconds, _ = timed(lambda: [torch.nn.functional.linear(inputs, weight) for _ in range(rounds)])
    products = layers * (read + written - len(requests)) + head.numel() * written
    return products / (128 * weight.numel() * rounds) * seconds


def models(cpus: int) -> Iterator[tuple[str, Material, Path, Engine]]:
    """Yield each Llama's name, its material, its directory and the transformers engine that runs it."""
    with tempfile.TemporaryDirectory(prefix="bench-inference-") as directory:
        folder = Path(directory)
        material = Material.make(folder / "web")
        for name, shape in SHAPES.items():
            path = save_llama(folder / name, material.tokenizer, **shape)
            ours = build(path, cpus, dtype="float32")
            yield name, material, path, ours
            ours.close()


def build(path: Path, cpus: int, **settings: Any) -> Engine:
    """Start the transformers engine as a laptop runs it."""
    return TransformersEngine(**settings).build(str(path), Resources(cpus=cpus))


def engine(rounds: int, cpus: int) -> None:
    """Measure the transformers engine against the plain loop."""
    import torch
    from transformers import AutoModelForCausalLM

    for name, material, path, ours in models(cpus):
        model, chosen = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), build(path, cpus)
        ratios, rates, equal, floors, as_chosen, equal_as_chosen = [], [], [], [], [], []
        for turn in range(rounds + 1):
            requests = material.requests(ROWS[name] if turn else BATCH_ROWS, random.Random(turn))
            plain_s, texts = timed(lambda: plain_loop(model, material.tokenizer, requests))  # noqa: B023
            ours_s, completions = timed(lambda: asyncio.run(generate_all(ours, requests)))  # noqa: B023
            chosen_s, freely = timed(lambda: asyncio.run(generate_all(chosen, requests)))  # noqa: B023
            if turn:  # the first turn is a warm-up
                ratios.append(plain_s / ours_s)
                rates.append(len(requests) / ours_s)
                as_chosen.append(plain_s / chosen_s)
                floors.append(floor_s(model, material.tokenizer, requests, completions) / ours_s)
                equal.append(equal_share(completions, texts))
                equal_as_chosen.append(equal_share(freely, texts))
                print(f"{name}: plain {plain_s:.1f} s, ours {ours_s:.1f} s, {equal[-1]:.1%} equal", flush=True)
        if name == "3m":
            few = material.requests(BATCH_ROWS, random.Random(0))
            theirs_s, texts = timed(lambda: continuous(model, material.tokenizer, few))  # noqa: B023
            ours_s, completions = timed(lambda: asyncio.run(generate_all(ours, few)))  # noqa: B023
            print(f"{name}: continuous batching {theirs_s:.1f} s, ours {ours_s:.1f} s", flush=True)
            line("engine_3m_over_continuous_batching", [theirs_s / ours_s], "-")
        chosen.close()
        line(f"engine_{name}_auto_over_plain_loop", as_chosen, "-")
        line(f"engine_{name}_auto_equal_replies", equal_as_chosen, "-")
        line(f"engine_{name}_rows_per_s", rates, "-")
        line(f"engine_{name}_equal_replies", equal, ">=1")
        line(f"engine_{name}_floor_over_ours", floors, "-")
        line(f"engine_{name}_over_plain_loop", ratios, ">=2.5")


ENGINES = {"transformers": TransformersEngine(dtype="float32"), "vllm": VllmEngine(dtype="float32", eager=True)}
STAGE_ROWS = {"transformers": 6000, "vllm": 2000}


def write_texts(attempt: Attempt, texts: Sequence[str]) -> Commit:
    """Write a corpus of texts, each row once."""
    writer = TableWriter(attempt, SEGMENT)
    blank = {"document_id": "", "url": "", "header": "", "position": 0, "text_hash": "", "drop_reason": None}
    rows = [{**blank, "id": record_id(i), "text": text, "chars": len(text)} for i, text in enumerate(texts)]
    writer.write(pa.Table.from_pylist(rows, schema=SEGMENT))
    return writer.commit()


def direct(path: str, texts: Sequence[str], recipe: AugmentRecipe, placement: PoolPlacement, chat: ChatRecipe) -> None:
    """Run in its own process without Ray: build the engine and give it all prompts at once."""
    running = recipe.engine.build(path, placement.resources)
    rows = [{"id": record_id(i), "text": text} for i, text in enumerate(texts)]
    asyncio.run(generate_all(running, [backward_request(row, recipe, chat) for row in rows]))
    running.close()


def stage(rounds: int, cpus: int, kind: str = "transformers") -> None:
    """Measure a stage against the engine alone, and two replicas against one."""
    import ray

    fresh = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="bench-inference-") as directory:
        folder = Path(directory)
        material = Material.make(folder / "web")
        path = save_llama(folder / "model/data", material.tokenizer, **SHAPES["3m"])
        texts = random.Random(0).choices(material.texts, k=STAGE_ROWS[kind])
        ray.init(address="local", num_cpus=max(2, cpus), include_dashboard=False, log_to_driver=False)
        model = Stage(Place("models/backward", str(folder / "model"), "bench"), {}, {}).leased(write_model)
        chat = material.config.chat

        def staged(corpus: Manifest, recipe: AugmentRecipe, placement: PoolPlacement) -> float:
            config = AugmentConfig(recipe=recipe, placement=placement)
            place = Place("candidates", str(folder / f"run-{time.time_ns()}"), "bench")
            seconds, made = timed(lambda: make_candidates(config, chat, corpus, Model(str(path), model), place))
            assert made.rows == corpus.kept
            return seconds

        def write(name: str, texts: Sequence[str]) -> Manifest:
            corpus = Stage(Place("corpus", str(folder / name), "bench"), {}, {}, SEGMENT)
            return corpus.once(write_texts, (texts,), TaskPlacement())

        corpus, sleepy = write("corpus", texts), write("sleepy", texts[:1600])
        predict = AugmentRecipe(engine=ENGINES[kind], max_new_tokens=32, max_failed_share=1.0)
        alone = PoolPlacement(cpus_per_replica=cpus, batch_rows=128, rows_per_shard=500, cache_bytes=1 << 30)
        sleep = AugmentRecipe(engine=EchoEngine(delay_s=0.5), max_failed_share=1.0)
        shares, doubled = [], []
        for _ in range(rounds):
            process = fresh.Process(target=direct, args=(str(path), texts, predict, alone, chat))
            direct_s = timed(lambda: (process.start(), process.join()))[0]  # noqa: B023
            stage_s = staged(corpus, predict, alone)
            shares.append(direct_s / stage_s)
            print(f"{kind}: alone {direct_s:.1f} s, stage {stage_s:.1f} s", flush=True)
            if kind != "transformers":
                continue
            one_s, two_s = (
                staged(
                    sleepy, sleep, PoolPlacement(min_replicas=n, batch_rows=8, rows_per_shard=40, cpus_per_replica=0.5)
                )
                for n in (1, 2)
            )
            doubled.append(one_s / two_s)
            print(f"asleep: one replica {one_s:.1f} s, two {two_s:.1f} s", flush=True)
        ray.shutdown()
        line(f"stage_over_{kind}_alone_3m", shares, ">=0.9")
        if doubled:
            line("stage_two_replicas_over_one", doubled, ">=1.9")


PAIRS = {"3m": 64, "50m": 16}


def scorers(rounds: int, cpus: int) -> None:
    """Measure one forward pass per pair against a written verdict."""
    for name, material, _, ours in models(cpus):
        written = Rubric(samples=1, temperature=0, max_new_tokens=128)
        ratios, rates = [], []
        for turn in range(rounds):
            texts = random.Random(turn).sample(material.texts, 2 * PAIRS[name])
            pairs = [
                {"id": str(i), "instruction": texts[2 * i], "response": texts[2 * i + 1]} for i in range(PAIRS[name])
            ]
            slow_s, fast_s = (
                timed(lambda: asyncio.run(scorer.score(pairs, material.config.chat, ours)))[0]  # noqa: B023
                for scorer in (written, RubricExpected())
            )
            ratios.append(slow_s / fast_s)
            rates.append(len(pairs) / fast_s)
            print(f"{name}: rubric {slow_s:.1f} s, rubric_expected {fast_s:.1f} s", flush=True)
        line(f"scorers_{name}_expected_pairs_per_s", rates, "-")
        line(f"scorers_{name}_expected_over_rubric", ratios, ">=15")


def rows(rounds: int, cpus: int) -> None:
    """Measure the cost of a row besides its engine, each size in its own driver."""
    fresh = multiprocessing.get_context("spawn")
    sizes = (10**4, 10**5, 10**6)
    found: dict[int, dict[str, float]] = {}
    for count in (1, *sizes):
        with tempfile.TemporaryDirectory(prefix="bench-inference-") as folder:
            told = fresh.Queue()
            shard_rows = min(count, 2000)
            driver = fresh.Process(target=ledger.measure, args=(Path(folder), count // shard_rows, shard_rows, told))
            driver.start()
            found[count] = told.get()
            driver.join()
        print(f"{count} rows: {found[count]}", flush=True)
    for count in sizes:
        line(f"rows_{count}_us_per_row", [1e6 * (found[count]["run_s"] - found[1]["run_s"]) / count], "-")
    per_row = [(found[count]["run_s"] - found[1]["run_s"]) / count for count in sizes]
    line("rows_dearest_over_cheapest", [max(per_row) / min(per_row)], "<=1.1")
    line("rows_driver_growth_mb", [found[sizes[-1]]["peak_mb"] - found[sizes[0]]["peak_mb"]], "<50")
    line("rows_1000000_finished_s", [found[sizes[-1]]["finished_s"]], "-")
    line("rows_1000000_resume_s", [found[sizes[-1]]["resume_s"]], "-")


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    since = time.perf_counter()
    value = call()
    return time.perf_counter() - since, value


def line(name: str, values: Sequence[float], goal: str, form: str = ".3f") -> None:
    """Print one figure: its median, lowest and highest."""
    value, low, high = (format(figure, form) for figure in (statistics.median(values), min(values), max(values)))
    print(f"BENCH {name} value={value} low={low} high={high} goal={goal}", flush=True)


def stage_vllm(rounds: int, cpus: int) -> None:
    """Measure the same with vLLM, which must be installed."""
    stage(rounds, cpus, "vllm")


PARTS: dict[str, Callable[[int, int], None]] = {
    "engine": engine, "stage": stage, "scorers": scorers, "rows": rows, "stage-vllm": stage_vllm
}  # fmt: skip


def main(description: str, parts: dict[str, Callable[[int, int], None]], default: Sequence[str]) -> None:
    """Measure the parts that the command line names, and print."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], default=list(default))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpus", type=int, default=2)
    arguments = parser.parse_args()
    for part in arguments.parts:
        parts[part](arguments.rounds, arguments.cpus)


if __name__ == "__main__":
    main(str(__doc__), PARTS, list(PARTS)[:-1])
