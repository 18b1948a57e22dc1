"""A tiny random Llama with a byte-level tokenizer, and pairs for it."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from humpback_ray.prompts.chat import ChatRecipe
from humpback_ray.records import PAIR, record_id
from humpback_ray.train.data.examples import Example, read_examples
from humpback_ray.train.data.schedule import schedule
from humpback_ray.train.data.tokens import tokenise
from humpback_ray.train.recipe import TrainRecipe


def make_tokenizer(pad: bool = False) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", *(["<pad>"] if pad else [])]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["Which river runs below the old mill?"] * 8, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>" if pad else None
    )


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Return a base model's directory; its tokenizer has no pad token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    directory = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, attention_dropout=0.05,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": record_id("pair", number),
            "instruction": f"What is {number} plus {number}? " * (1 + number % 3),
            "response": f"It is {2 * number}. " * (1 + number % 5),
            "source": "seed" if number % 2 else "augmented",
            "score": None,
            "drop_reason": "low_score" if number % 10 == 3 else None,
        }
        for number in range(count)
    ]


def tokens_of(some: Sequence[dict[str, Any]], tokenizer: Any, limit: int = 256) -> pa.Table:
    """Return the pairs that are kept, tokenized forward."""
    kept = [row for row in some if row["drop_reason"] is None]
    return tokenise(pa.Table.from_pylist(kept, schema=PAIR), tokenizer, ChatRecipe(), "forward", limit, "drop")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> tuple[str, ...]:
    """Return two files of tokens; 27 of 30 pairs are kept."""
    directory = tmp_path_factory.mktemp("pairs")
    uris = []
    for part, some in enumerate([rows(30)[:20], rows(30)[20:]]):
        uris.append(str(directory / f"{part}.parquet"))
        pq.write_table(tokens_of(some, tokenizer), uris[-1])
    return tuple(uris)


def plain_loop(
    base: Path, pairs: Sequence[str], recipe: TrainRecipe, skipped: Collection[int] = ()
) -> list[tuple[float, float]]:
    """Return loss and gradient norm per step of a loop without DeepSpeed, padding, packing or micro-batches."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    examples, _ = read_examples(pairs)
    plan = schedule(recipe, "m0", len(examples))
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attention_dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), betas=recipe.betas, eps=recipe.epsilon, weight_decay=0.1)
    steps = []
    for step in range(1, plan.steps + 1):
        batch = [examples[index] for index in plan.batch(step)]
        total = torch.zeros(())
        for example in batch:
            ids, start = torch.tensor(example.ids, dtype=torch.long), example.loss_start
            logits = model(ids[None]).logits[0]
            total = total + cross_entropy(logits[start - 1 : -1], ids[start:], reduction="sum")
        loss = total / sum(example.output_tokens for example in batch)
        optimizer.param_groups[0]["lr"] = plan.rate(step)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if step not in skipped:
            optimizer.step()
        steps.append((loss.item(), norm.item()))
    return steps


def examples_of(lengths: Sequence[int], loss_start: int = 1) -> list[Example]:
    """Return examples of the given numbers of tokens, drawn at random."""
    draw = np.random.default_rng(0)
    return [
        Example(str(number), draw.integers(2, 300, length, np.int32), loss_start)
        for number, length in enumerate(lengths)
    ]
