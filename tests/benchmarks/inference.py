"""Prediction and rating, side by side with what one would use instead; prompts and lengths are the demo's segments'.

    make bench-inference          (or: python -m tests.benchmarks.inference engine stage scorers rows)

engine   rows/s of the transformers engine over those of the loop people write: arrival order, batches of 32 padded on
         the left, `generate` to the longest reply of the batch. Llamas of 3 M and 50 M parameters with random weights.

Rivals take turns in one call; every figure is the median over rounds of a ratio taken within a round.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from humpback_ray.config import load
from humpback_ray.corpus.segments import Segmenter
from humpback_ray.engines import Request, TransformersEngine, generate_all
from humpback_ray.placement import Resources
from humpback_ray.prompts.chat import encode_prompt
from humpback_ray.run import RunConfig
from humpback_ray.sample.base import BaseRecipe, train_tokenizer
from humpback_ray.sample.world import WorldRecipe, documents, write_world

DEMO = Path(__file__).parents[2] / "configs/demo.yaml"
BATCH_ROWS = 32
SHAPES = {"3m": {"hidden_size": 256, "num_hidden_layers": 3}, "50m": {"hidden_size": 512, "num_hidden_layers": 15}}
ROWS = {"3m": 512, "50m": 96}


@dataclass(frozen=True)
class Material:
    """The demo's segments, as texts, and a tokenizer that has learned from its web."""

    config: RunConfig
    texts: list[str]
    tokenizer: Any

    @staticmethod
    def make(folder: Path) -> "Material":
        config, recipe = load(RunConfig, str(DEMO), []), WorldRecipe()
        write_world(recipe, folder)
        cut = Segmenter(config.corpus.recipe.segments, config.corpus.recipe.readers)
        tables = [cut(str(file)) for file in sorted((folder / "web").glob("*.warc.gz"))]
        texts = sorted({text for table in tables for text in table["text"].to_pylist() if text})
        return Material(config, texts, train_tokenizer(BaseRecipe(), documents(recipe)))

    def requests(self, count: int, rng: random.Random) -> list[Request]:
        """Ask for replies to segments, each as long as another segment."""
        lengths = [len(self.tokenizer(text)["input_ids"]) for text in rng.sample(self.texts, count)]
        chosen = rng.sample(self.texts, count)
        return [
            Request(self.config.chat.backward_prompt(text), max_new_tokens=length)
            for text, length in zip(chosen, lengths, strict=True)
        ]


def save_llama(folder: Path, tokenizer: Any, **shape: int) -> Path:
    """Write a Llama with random weights, its next tokens far apart, so that rounding changes none."""
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


def engine(rounds: int, cpus: int) -> None:
    """Measure the transformers engine against the plain loop."""
    import torch
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory(prefix="bench-inference-") as directory:
        folder = Path(directory)
        material = Material.make(folder / "web")
        for name, shape in SHAPES.items():
            path = save_llama(folder / name, material.tokenizer, **shape)
            torch.set_num_threads(cpus)
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
            ours = TransformersEngine(dtype="float32").build(str(path), Resources(cpus=cpus, batch_rows=64))
            ratios, rates, equal = [], [], []
            for turn in range(rounds + 1):
                requests = material.requests(ROWS[name] if turn else BATCH_ROWS, random.Random(turn))
                plain_s, texts = timed(lambda: plain_loop(model, material.tokenizer, requests))  # noqa: B023
                ours_s, completions = timed(lambda: asyncio.run(generate_all(ours, requests)))  # noqa: B023
                if turn:  # the first is to warm up
                    ratios.append(plain_s / ours_s)
                    rates.append(len(requests) / ours_s)
                    same = [c.text == text for c, text in zip(completions, texts, strict=True)]
                    equal.append(sum(same) / len(same))
                    print(f"{name}: plain {plain_s:.1f} s, ours {ours_s:.1f} s, {equal[-1]:.1%} equal", flush=True)
            ours.close()
            line(f"engine_{name}_rows_per_s", rates, "-")
            line(f"engine_{name}_equal_replies", equal, ">=1")
            line(f"engine_{name}_over_plain_loop", ratios, ">=2.5")


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    since = time.perf_counter()
    value = call()
    return time.perf_counter() - since, value


def line(name: str, values: Sequence[float], goal: str) -> None:
    """Print one figure: its median, lowest and highest."""
    print(
        f"BENCH {name} value={statistics.median(values):.3f} low={min(values):.3f} high={max(values):.3f} goal={goal}",
        flush=True,
    )


PARTS: dict[str, Callable[[int, int], None]] = {"engine": engine}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpus", type=int, default=2)
    arguments = parser.parse_args()
    for part in arguments.parts:
        PARTS[part](arguments.rounds, arguments.cpus)


if __name__ == "__main__":
    main()
